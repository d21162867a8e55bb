"""Whatever the order in which streams, threads and psum go on, no transfer delivers wrong bytes."""

import contextlib
import functools
import gc
import random
import types
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psum import client as psum
from psum.torch.staging import pipeline as pipelines
from psum.torch.staging.background_thread import Worker
from psum.torch.staging.pipeline import Pipeline
from psum.torch.staging.request import Request
from tests.integration.conftest import Fleet
from tests.torch.staging.stand_in import GARBAGE, Bytes, StandIn, StandInEvent, StandInStream


class LateThread:
    """A thread whose work is done when the test says so."""

    def __init__(self) -> None:
        self.work: deque[Callable[[], None]] = deque()

    def do(self, work: Callable[[], None]) -> None:
        self.work.append(work)

    def stop(self) -> None:
        """There is nothing to stop."""


class Sum:
    """An operation of psum that triples a value of this rank, and takes 7 for that of another one.

    Args:
        started: Where it goes when it is started.
        fails: Whether it fails.

    If its value stands in for a lost root's, it leaves that value in the target as the result.
    """

    priority = 0

    def __init__(self, started: list["Sum"], *, fails: bool) -> None:
        self.key = types.SimpleNamespace(title="key 'w'")
        self.reason: str | None = None
        self.fails = fails
        self._started = started

    def start(
        self, source: Any, target: Any, done: Any, staged: int | None, *, stands_in: bool = False, borrows: bool = False
    ) -> None:
        assert not borrows
        self._source = source
        self._target = target
        self._stands_in = stands_in
        self._value: Any = None if source is None else source.copy()
        self._done = done
        self._started.append(self)

    def abort(self, reason: str) -> None:
        self.reason = reason

    def finish(self) -> None:
        """Delivers the result. The value must not have changed since it was handed over."""
        assert self._source is None or np.array_equal(self._source, self._value)
        if not self.fails and not self._stands_in:
            self._target[:] = 7 if self._value is None else self._value * 3
        self._done(psum.PsumError("lost") if self.fails else None)


class Program:
    """One tensor from its producer to its consumer.

    Args:
        device: The device.
        stream: The stream of the producer, and of whoever gets the memory next.
        consumer: The stream of the consumer.
        value: The value that the producer writes.
        gives, takes, stands_in: See Request.
        reads: Whether the consumer reads the result.
        doubles: Whether the result is doubled in host memory, as sums of gradients are scaled there.
    """

    def __init__(
        self,
        device: StandIn,
        stream: StandInStream,
        consumer: StandInStream,
        value: Bytes,
        *,
        gives: bool,
        takes: bool,
        reads: bool,
        stands_in: bool = False,
        doubles: bool = False,
    ) -> None:
        self._device, self._stream, self._consumer, self._value = device, stream, consumer, value
        self._gives, self._takes, self._reads = gives, takes, reads
        self._stands_in, self._doubles = stands_in, doubles
        self._fails = False
        self.tensor: torch.Tensor | None
        self.tensor, self._content = device.tensor(len(value), torch.uint8, stream)
        self.ends: list[psum.PsumError | None] = []
        self._event: StandInEvent | None = None
        self.seen: list[Bytes] = []
        self._consumed = False

    def begin(self, pipeline: Pipeline, ticket: Any) -> None:
        """Produces the value late, and begins the transfer."""
        value, content = self._value, self._content
        # Not the ticket: it would keep the tensor, and hide a copy to memory that was freed.
        self._fails = isinstance(ticket, Sum) and ticket.fails

        def produce() -> None:
            content[:] = value

        with self._device.use(self._stream):
            self._device.launch(self._stream, produce)
            assert self.tensor is not None
            request = Request(
                ticket,
                gives=self._gives,
                takes=self._takes,
                as_bytes=False,
                arrived=_double if self._doubles else None,
                stands_in=self._stands_in,
            )
            pipeline.begin(request, self.tensor, self._done)

    @property
    def may_consume(self) -> bool:
        return bool(self.ends) and not self._consumed

    def consume(self) -> None:
        """Reads the result late, unless it is ignored, and drops the tensor."""
        self._consumed = True
        if self._event is not None and self._reads:
            self._consumer.wait_event(self._event)
            content, seen = self._content, self.seen
            self._device.launch(self._consumer, lambda: seen.append(content.copy()))
            assert self.tensor is not None
            self._device.keep(self.tensor, self._consumer)
        self.tensor = None

    def check(self) -> None:
        # Nothing but the operation's own failure may end a transfer with an error. Else there were nothing to compare.
        assert [error and str(error) for error in self.ends] == ["lost" if self._fails else None]
        if self.ends == [None] and self._reads:
            assert np.array_equal(self.seen[0], self._expected())

    def _expected(self) -> Bytes:
        if not self._takes or self._stands_in:
            return self._value
        result = np.full_like(self._value, 7)
        if self._gives:
            np.multiply(self._value, 3, out=result)
        if self._doubles:
            result *= 2
        return result

    def _done(self, error: psum.PsumError | None) -> None:
        self.ends.append(error)
        if error is None:
            # As a torch.futures.Future does.
            self._event = self._device.record(self._device.current_stream())


def _double(_: object, array: Any) -> None:
    array *= 2


def run(seed: int, make: Callable[[random.Random], StandIn] = StandIn) -> None:
    """Runs transfers of many sizes in a random order, and checks that everybody sees the right bytes."""
    chance = random.Random(seed)
    device = make(chance)
    copying, waiting = LateThread(), LateThread()
    budget = chance.choice([4096, 20_000, 1 << 20])
    pipeline = Pipeline(device, lambda _: None, budget=budget, copying=copying, waiting=waiting)
    streams = [device.stream() for _ in range(3)]
    programs: list[Program] = []
    started: list[Sum] = []
    total = chance.randrange(2, 12)

    def begin() -> None:
        value = np.frombuffer(chance.randbytes(chance.choice([1, 50, 4097, 9000])), np.uint8)
        gives, takes, stands_in, doubles = chance.choice(
            [
                (True, True, False, False),
                (True, True, False, True),
                (True, False, False, False),
                (False, True, False, False),
                (False, True, True, False),
            ]
        )
        stream, consumer = chance.choice(streams), chance.choice(streams)
        reads = chance.random() < 0.8
        programs.append(
            Program(
                device,
                stream,
                consumer,
                value,
                gives=gives,
                takes=takes,
                reads=reads,
                stands_in=stands_in,
                doubles=doubles,
            )
        )
        programs[-1].begin(pipeline, Sum(started, fails=chance.random() < 0.05))

    def deliver() -> None:
        started.pop(chance.randrange(len(started))).finish()

    while True:
        choices: list[Callable[[], object]] = [program.consume for program in programs if program.may_consume]
        choices += [functools.partial(_next, thread) for thread in (copying, waiting) if thread.work]
        choices += [deliver] if started else []
        choices += [begin] if len(programs) < total else []
        if not choices:
            break
        chance.choice(choices)()
        device.go_on()
    device.finish()
    for program in programs:
        program.check()
    assert pipeline.drain(0)
    for block in device.freed:
        assert (block.content == GARBAGE).all(), "a copy changed memory that had been freed"


def _next(thread: LateThread) -> None:
    thread.work.popleft()()


@settings(max_examples=150)
@given(st.integers(0, 1 << 60))
def test_no_order_delivers_wrong_bytes(seed: int) -> None:
    """Every program sees its own result, each ends once, and memory is not touched after it was freed."""
    run(seed)


class Deaf(StandInStream):
    """A stream that waits for nothing."""

    def wait_event(self, event: Any) -> None:
        """Goes on at once."""


class WithoutOrder(StandIn):
    """A device with something missing that the pipeline relies on.

    Args:
        lack: What is missing.
    """

    def __init__(self, chance: random.Random, lack: str) -> None:
        super().__init__(chance)
        self.lack = lack
        if lack == "down":
            stream = Deaf(self)
            self._streams[self._streams.index(self.down)] = stream
            self.down = stream

    def use(self, stream: Any) -> Any:
        return contextlib.nullcontext() if self.lack == "use" and stream is self.up else super().use(stream)

    def keep(self, tensor: torch.Tensor, stream: Any) -> None:
        if self.lack != "keep" or stream is not self.up:
            super().keep(tensor, stream)

    def record(self, stream: Any) -> Any:
        event = super().record(stream)
        if self.lack == "synchronize":
            event.synchronize = lambda: None
        return event


@pytest.mark.parametrize("lack", ["down", "use", "keep", "synchronize"])
def test_what_is_missing_is_found(lack: str) -> None:
    """If one kind of wait were missing in the pipeline, the test before would fail: some order gives wrong bytes."""

    def run_many() -> None:
        for seed in range(300):
            run(seed, functools.partial(WithoutOrder, lack=lack))

    with pytest.raises(AssertionError):
        run_many()


def test_a_device_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the value does not come, the operation is aborted for all ranks with the device's words, and ends once."""
    chance = random.Random(1)
    device = StandIn(chance)
    copying, waiting = LateThread(), LateThread()
    pipeline = Pipeline(device, lambda _: None, budget=1 << 20, copying=copying, waiting=waiting)
    stream = device.stream()
    value = np.zeros(5000, np.uint8)
    program = Program(device, stream, stream, value, gives=True, takes=True, reads=True)
    ticket = Sum([], fails=False)
    program.begin(pipeline, ticket)

    def fail(_: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(StandInEvent, "synchronize", fail)
    for thread in (copying, waiting, copying):
        _next(thread)
    assert [str(error) for error in program.ends] == [ticket.reason]
    assert ticket.reason == (
        "the copy from the device of uint8 (5000,) on cpu failed: an illegal memory access was encountered"
    )
    assert pipeline.drain(0)


def carried_out(device: StandIn, arrived: Callable[[Any, Any], None] | None) -> tuple[Pipeline, list[Any]]:
    """Runs one transfer. Returns the pipeline, and what its `done` was called with."""
    copying, waiting = LateThread(), LateThread()
    pipeline = Pipeline(device, lambda _: None, budget=1 << 20, copying=copying, waiting=waiting)
    tensor, _ = device.tensor(50, torch.uint8, device.stream())
    started: list[Sum] = []
    ends: list[Any] = []
    ticket: Any = Sum(started, fails=False)
    pipeline.begin(Request(ticket, gives=True, takes=True, as_bytes=False, arrived=arrived), tensor, ends.append)
    for thread in (copying, waiting):
        _next(thread)
    started[0].finish()
    _next(copying)
    return pipeline, ends


def test_a_result_that_cannot_be_handed_over_is_an_error_at_once() -> None:
    """Who waits does not wait for a time-out. The error names the key and what failed."""

    def fail(_ticket: object, _array: object) -> None:
        raise RuntimeError("no counts")

    pipeline, ends = carried_out(StandIn(random.Random(1)), fail)
    assert [str(end) for end in ends] == [
        "the result of key 'w' arrived, and could not be handed over: RuntimeError: no counts"
    ]
    assert pipeline.drain(0)


def test_a_device_that_fails_at_the_end() -> None:
    """If the device fails when the result is there, who waits gets that error."""

    class Failing(StandIn):
        def record(self, stream: Any) -> Any:
            if stream is self.up and self.copied:
                self.copied = False
                raise RuntimeError("the device is gone")
            return super().record(stream)

        def keep(self, tensor: torch.Tensor, stream: Any) -> None:
            self.copied = True
            super().keep(tensor, stream)

        copied = False

    pipeline, ends = carried_out(Failing(random.Random(1)), None)
    assert [str(end) for end in ends] == ["the copy to the device of uint8 (50,) on cpu failed: the device is gone"]
    assert pipeline.drain(0)


def test_no_memory_for_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transfer for which there is no host memory fails, and the next one goes on."""
    device = StandIn(random.Random(1))
    copying, waiting = LateThread(), LateThread()
    pipeline = Pipeline(device, lambda _: None, budget=1 << 20, copying=copying, waiting=waiting)
    stream = device.stream()
    started: list[Sum] = []
    first, second = (
        Program(device, stream, stream, np.full(size, 2, np.uint8), gives=True, takes=True, reads=True)
        for size in (9000, 10)
    )
    with monkeypatch.context() as patched:
        patched.setattr(pipelines, "HostMemory", _no_memory)
        first.begin(pipeline, ticket := Sum(started, fails=False))
        _next(copying)
    assert "Cannot allocate memory" in str(ticket.reason)
    second.begin(pipeline, Sum(started, fails=False))
    _next(copying)
    _next(waiting)
    started.pop().finish()
    _next(copying)
    second.consume()
    device.finish()
    second.check()
    assert [str(error) for error in first.ends] == [ticket.reason]


def _no_memory(*_: object) -> None:
    raise OSError(12, "Cannot allocate memory")


def test_with_real_threads_and_aggregators(fleet: Fleet) -> None:
    """Two ranks sum many tensors from their devices. Aggregators read the copies where the devices put them, and the
    buffers serve one tensor after another."""
    # Too little for all tensors of a step at once.
    budget = 1_300_000

    def work(client: psum.Client) -> tuple[list[Bytes], int, StandIn]:
        device = StandIn(random.Random(client.rank))
        threads = Worker("psum-copies"), Worker("psum-waits")
        pipeline = Pipeline(device, client.allocate, budget=budget, copying=threads[0], waiting=threads[1])
        store = client.store()
        stream = device.stream()
        results = []
        allocated = []
        for step in range(3):
            programs = []
            for size in (1, 5000, 300_000, 700_000, 200_000):
                value = np.full(size, client.rank + step + 1, np.uint8)
                program = Program(device, stream, device.stream(), value, gives=True, takes=True, reads=True)
                programs.append(program)
                ticket = store.reserve(str(size), shape=(size,), element_type=psum.ElementType.UINT8)
                program.begin(pipeline, ticket)
            assert pipeline.drain(20)
            for program in programs:
                program.consume()
            device.finish()
            results += [program.seen[0] for program in programs]
            allocated.append(sum(device.pinned.values()))
        del pipeline
        for thread in threads:
            thread.stop()
        assert allocated[0] == allocated[-1]
        return results, allocated[-1], device

    def run_rank(rank: int) -> tuple[list[Bytes], int, StandIn]:
        with fleet.worker(rank, 2, job="pipeline", staging=True) as client:
            return work(client)

    with ThreadPoolExecutor(2) as pool:
        ranks = list(pool.map(run_rank, range(2), timeout=40))
    for number, sums in enumerate(zip(ranks[0][0], ranks[1][0], strict=True)):
        assert all((result == 2 * (number // 5) + 3).all() for result in sums)
    assert all(allocated <= budget for _, allocated, _ in ranks)
    gc.collect()
    assert not any(device.pinned for *_, device in ranks), "memory stays pinned after its pipeline"


def test_the_client_is_closed_meanwhile(fleet: Fleet) -> None:
    """Transfers end with an error, whether their sum was under way, their copy, or not even that."""
    device = StandIn(random.Random(1))
    copying, waiting = LateThread(), LateThread()
    stream = device.stream()
    with fleet.worker(0, 2, job="closed", staging=True) as client:
        # Memory for two of three.
        pipeline = Pipeline(device, client.allocate, budget=20_000, copying=copying, waiting=waiting)
        store = client.store()
        programs = []
        for key in ("sum", "copy", "queued"):
            program = Program(device, stream, stream, np.ones(8192, np.uint8), gives=True, takes=True, reads=True)
            program.begin(pipeline, store.reserve(key, shape=(8192,), element_type=psum.ElementType.UINT8))
            programs.append(program)
            _next(copying)
            if key == "sum":
                _next(waiting)
        client.close(timeout=0.1)
    while copying.work or waiting.work:
        _next(copying if copying.work else waiting)
    assert pipeline.drain(0)
    assert [[type(error) for error in program.ends] for program in programs] == [[psum.ClosedError]] * 3
