"""The timeline that is made of a session's recording."""

import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psum.client import ElementType, Operation, Ticket
from psum.client.core.recorder import Recorder
from psum.client.core.session import Session
from psum.client.observe import trace
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode, encode, to_columns, to_rows
from tests.trace_events import check, checked


class Worker:
    """A session with a manual clock and one key of two shards."""

    def __init__(self, recorder: Recorder | None) -> None:
        self.now = 0.0
        self.step = 0.0
        """How far the clock advances each time it is read."""
        handed_over: list[Ticket] = []
        self._handed_over = handed_over
        self.session = Session(
            ["aggregator:1"],
            (),
            rank=0,
            elastic=True,
            partition_bytes=16,
            credit_bytes=1 << 20,
            hand_over=handed_over.append,
            recorder=recorder,
            clock=self._look,
        )
        self.value = np.arange(8, dtype=np.int32)

    def _look(self) -> float:
        self.now += self.step
        return self.now

    def begin(self, now: float, operation: Operation = Operation.SUM) -> None:
        """Reserves an operation, and starts it half a second later."""
        self.now = now
        ticket = self.session.reserve(0, "w", (8,), ElementType.INT32, operation, 0)
        view = self.value.view(np.uint8).data
        ticket.start(view, view, lambda _: None)
        self.session.submit(self._handed_over.pop(), now + 0.5)

    def send(self, now: float, copying: float = 0.0) -> pb.ExchangeRequest:
        """Takes all messages to send; returns the last. The clock advances by so much each time it is read."""
        self.now = now
        last = None
        while True:
            self.step = 0.0 if last is None else copying
            data = self.session.next_message(0)
            self.step = 0.0
            if data is None:
                assert last is not None
                return last
            self.now = now
            last = decode(pb.ExchangeRequest, data)[0]

    def answer(
        self,
        request: pb.ExchangeRequest,
        now: float,
        *,
        timing: tuple[int, float, float] | None = None,
        forwarding: float = 0.0,
    ) -> None:
        """Receives the result, after a timing if one is given: (last rank, waiting, summing), and forwarding."""
        self.now = now
        shards = to_rows(request.push.shards)
        if timing is not None:
            last_rank, waiting, summing = timing
            told = pb.Timings(
                timings=[
                    pb.Timing(
                        id=entry.id,
                        shard=entry.shard,
                        round=entry.round,
                        last_rank=last_rank,
                        waiting_seconds=waiting,
                        summing_seconds=summing,
                        forwarding_seconds=forwarding,
                    )
                    for entry in shards
                ]
            )
            self.session.receive(0, encode(pb.ExchangeResponse(timings=told)), now)
        self.session.receive(
            0, encode(pb.ExchangeResponse(result=pb.Result(shards=to_columns(shards))), bytes(32)), now
        )


def recorded(recorder: Recorder, shard: int = 0) -> dict[str, tuple[float, float]]:
    """Returns the begin and end of each stage of one shard, and of stages without shards."""
    return {
        one.stage.label: (one.start, one.end)
        for one in trace.slices(recorder)
        if one.arguments.get("shard", shard) == shard
    }


def test_each_stage_of_a_shard_is_told() -> None:
    """The stages cover the time from the call to the result. What the aggregator reports is not counted as wire."""
    recorder = Recorder(0, 0)
    worker = Worker(recorder)
    worker.begin(10.0)
    request = worker.send(11.0)
    assert [entry.timed for entry in to_rows(request.push.shards)] == [True, True]
    worker.answer(request, 15.0, timing=(1, 2.0, 0.5))
    assert recorded(recorder) == {
        "step": (10.0, 15.0),
        "value": (10.0, 10.5),
        "queue": (10.5, 11.0),
        "copy in": (11.0, 11.0),
        "wire, to the aggregator": (11.0, 11.75),
        "wait for the last rank": (11.75, 13.75),
        "sum": (13.75, 14.25),
        "wire, from the aggregator": (14.25, 15.0),
        "copy out": (15.0, 15.0),
    }
    assert {one.arguments["last_rank"] for one in trace.slices(recorder) if one.stage is trace.WAIT} == {1}


def test_copies_are_apart_from_the_wire() -> None:
    """Copies into and out of the message or the shared memory have stages of their own."""
    recorder = Recorder(0, 0)
    worker = Worker(recorder)
    worker.begin(10.0)
    request = worker.send(11.0, copying=0.25)
    worker.step = 0.125
    worker.answer(request, 15.0)
    stages = recorded(recorder)
    assert stages["copy in"] == (11.25, 11.5)
    assert stages["wire and round"] == (11.5, 15.0)
    assert stages["copy out"] == (15.0, 15.125)
    assert recorded(recorder, shard=1)["copy out"] == (15.0, 15.25)
    assert stages["step"] == (10.0, 15.25)


def test_a_timing_of_another_round_is_left_aside() -> None:
    """A timing of an earlier round, sent before a connection broke, is ignored."""
    recorder = Recorder(0, 0)
    worker = Worker(recorder)
    worker.begin(10.0)
    request = worker.send(11.0)
    stale = [
        pb.Timing(id=e.id, shard=e.shard, round=e.round + 1, waiting_seconds=1) for e in to_rows(request.push.shards)
    ]
    stale.append(pb.Timing(id=1, shard=0, round=0, waiting_seconds=1))
    worker.session.receive(0, encode(pb.ExchangeResponse(timings=pb.Timings(timings=stale))), 14.0)
    worker.answer(request, 15.0)
    assert recorded(recorder)["wire and round"] == (11.0, 15.0)


def test_a_broadcast_does_not_make_a_step_longer() -> None:
    """A broadcast after the last sum of a step, such as a checkpoint's, does not prolong the step."""
    recorder = Recorder(0, 0)
    worker = Worker(recorder)
    worker.begin(10.0)
    worker.answer(worker.send(11.0), 15.0)
    worker.begin(20.0, Operation.BROADCAST)
    request = worker.send(21.0)
    request.push.shards.ClearField("lengths")
    told = pb.ExchangeResponse(result=pb.Result(shards=request.push.shards))
    worker.session.receive(0, encode(told), 25.0)
    found = list(trace.slices(recorder))
    assert [(one.start, one.end) for one in found if one.stage is trace.STEP] == [(10.0, 15.0)]
    assert sum("broadcast" in one.arguments for one in found if one.stage is trace.COPY_OUT) == 2


def test_an_aggregator_that_tells_nothing_leaves_the_exchange_in_one() -> None:
    """Without timings, as from an aggregator of an older version, one stage covers the exchange."""
    recorder = Recorder(0, 0)
    worker = Worker(recorder)
    worker.begin(10.0)
    worker.answer(worker.send(11.0), 15.0)
    assert recorded(recorder)["wire and round"] == (11.0, 15.0)
    assert "sum" not in recorded(recorder)


def test_what_a_relay_forwards_has_a_stage_of_its_own() -> None:
    """The time from the host's sum until that of all ranks is neither the sum's nor the wire's."""
    recorder = Recorder(0, 0)
    worker = Worker(recorder)
    worker.begin(10.0)
    worker.answer(worker.send(11.0), 21.0, timing=(1, 1.0, 1.0), forwarding=6.0)
    stages = recorded(recorder)
    assert stages["wire, to the aggregator"] == (11.0, 12.0)
    assert stages["wait for the last rank"] == (12.0, 13.0)
    assert stages["sum"] == (13.0, 14.0)
    assert stages["forward"] == (14.0, 20.0)
    assert stages["wire, from the aggregator"] == (20.0, 21.0)


def test_what_was_sent_again_has_not_waited_longer_than_since_then() -> None:
    """A wait that the aggregator counts from before a reconnection is cut to the exchange."""
    recorder = Recorder(0, 0)
    worker = Worker(recorder)
    worker.begin(10.0)
    worker.send(11.0)
    worker.session.reconnected(0)
    worker.answer(worker.send(20.0), 22.0, timing=(1, 10.0, 1.0))
    stages = recorded(recorder)
    assert stages["queue"] == (10.5, 20.0)
    assert stages["wait for the last rank"] == (20.0, 22.0)
    assert stages["sum"] == (22.0, 22.0)


def test_a_step_begins_where_the_one_before_ended() -> None:
    """A step begins with the end of the step before, even the first recorded one, so that computing is visible."""
    recorder = Recorder(1, 2)
    worker = Worker(recorder)
    for step in range(4):
        worker.begin(10.0 * step)
        worker.answer(worker.send(10.0 * step + 1), 10.0 * step + 2)
    steps = {one.name: (one.start, one.end) for one in trace.slices(recorder) if one.stage is trace.STEP}
    assert steps == {"step 1": (2.0, 12.0), "step 2": (12.0, 22.0)}
    assert recorder.over


def test_an_operation_that_failed_is_no_step() -> None:
    """A step whose operation failed is left out."""
    recorder = Recorder(0, 5)
    worker = Worker(recorder)
    worker.begin(10.0)
    request = worker.send(11.0)
    fault = pb.Fault(code=pb.FAULT_CODE_TIMEOUT, text="too late", id=request.push.shards.ids[0])
    worker.session.receive(0, encode(pb.ExchangeResponse(fault=fault)), 12.0)
    assert list(recorded(recorder)) == ["value"]


def test_nothing_is_asked_for_outside_of_the_steps_to_record() -> None:
    """No timings are requested for other steps, or without a timeline. One that comes anyway does no harm."""
    for recorder in (None, Recorder(5, 6)):
        worker = Worker(recorder)
        worker.begin(10.0)
        request = worker.send(11.0)
        assert [entry.timed for entry in to_rows(request.push.shards)] == [False, False]
        worker.answer(request, 12.0, timing=(1, 0.5, 0.5))
        assert worker.session.running == {}


def test_the_file_is_what_perfetto_reads(tmp_path: pathlib.Path) -> None:
    """The file says whose it is, and the time of day at its 0."""
    recorder = Recorder(0, 1)
    worker = Worker(recorder)
    for step in range(2):
        worker.begin(100.0 + step)
        worker.answer(worker.send(100.6 + step), 100.7 + step, timing=(3, 0.01, 0.001))
    path = tmp_path / trace.file_name(4)
    trace.write(path, recorder, rank=4, wall_offset=1e9, about={"worker": "host pid 7", "job": "night"})
    document = checked(path)
    assert document["otherData"] == {
        "psum": trace.FORMAT,
        "rank": 4,
        "wall_seconds": 1e9 + 100.0,
        "full": False,
        "worker": "host pid 7",
        "job": "night",
    }
    names = [e["args"]["name"] for e in document["traceEvents"] if e["name"] == "process_name"]
    assert names == ["rank 4 (host pid 7)"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["rank-4.json"]


def test_changes_of_the_members_are_moments_of_the_rank(tmp_path: pathlib.Path) -> None:
    """A loss and a join while steps are recorded. What happens before and afterwards is not in the file."""
    recorder = Recorder(0, 1)
    worker = Worker(recorder)
    loss = pb.Loss(rank=1, text="it vanished")
    worker.session.welcomed(pb.Welcome(losses=[pb.Loss(rank=2, text="long ago")]))
    for step in range(2):
        worker.begin(100.0 + step)
        worker.answer(worker.send(100.6 + step), 100.7 + step, timing=(3, 0.01, 0.001))
        worker.session.receive(0, encode(pb.ExchangeResponse(losses=pb.Losses(losses=[loss]))), 100.75)
    recorder.mark(100.8, "rank 1 joins")
    path = tmp_path / trace.file_name(4)
    trace.write(path, recorder, rank=4, wall_offset=1e9, about={})
    marks = [event for event in checked(path)["traceEvents"] if event["ph"] == "i"]
    assert [(mark["name"], mark["ts"], mark["args"]) for mark in marks] == [
        ("rank 1 is lost", 750_000, {"text": "it vanished"}),
        ("rank 1 joins", 800_000, {"text": ""}),
    ]
    assert {(mark["pid"], mark["cat"], mark["s"]) for mark in marks} == {(4, "members", "p")}


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: pathlib.Path) -> None:
    """If the file cannot be written, the old one stays and nothing is left beside it."""
    path = tmp_path / "rank-0.json"
    path.write_text("before")
    recorder = Recorder(0, 1)
    Worker(recorder).begin(1.0)
    with pytest.raises(TypeError):
        trace.write(path, recorder, rank=0, wall_offset=0.0, about={"worker": object()})
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


MOMENTS = st.floats(0, 1e5, allow_nan=False, allow_subnormal=False)


@given(st.lists(st.tuples(MOMENTS, st.one_of(st.just(0.0), st.floats(0, 10))), max_size=40), MOMENTS)
def test_slices_of_a_thread_never_overlap(spans: list[tuple[float, float]], origin: float) -> None:
    """Slices of a thread never overlap, however many shards a stage has at once, and no slice is lost."""
    origin = min([origin, *(begin for begin, _ in spans)])
    slices = [
        trace.Slice(begin, begin + lasted, trace.WAIT, "w", {"step": 0, "number": number})
        for number, (begin, lasted) in enumerate(spans)
    ]
    events = list(trace.events(slices, 3, origin, ""))
    assert json.loads(json.dumps(events)) == events
    check(events)
    shown: dict[int, dict[str, Any]] = {e["args"]["number"]: e for e in events if e["ph"] == "X"}
    assert sorted(shown) == list(range(len(spans)))
    for number, (begin, lasted) in enumerate(spans):
        assert math.isclose(shown[number]["ts"], (begin - origin) * 1e6, abs_tol=0.5)
        assert math.isclose(shown[number]["dur"], lasted * 1e6, abs_tol=0.5)
    # No more threads than slices at once.
    at_once = [
        1 + sum(other <= begin < other + lasted for n, (other, lasted) in enumerate(spans) if n != number)
        for number, (begin, _) in enumerate(spans)
    ]
    assert len({event["tid"] for event in shown.values()}) <= max(at_once, default=0)
