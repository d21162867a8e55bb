"""Contributions that are taken together lead to what they lead to one after the other."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytest

from psum.aggregator.core.actions import Action
from psum.aggregator.core.job import Job
from psum.aggregator.core.layouts import Message
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.registry import Registry
from psum.aggregator.core.small_rounds import MESSAGE_HOLD_SECONDS
from psum.aggregator.service.action_runner import ActionRunner
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.receiver import Receiver
from psum.aggregator.service.summation import _joined
from psum.aggregator.sums.pool import PriorityPool
from psum.v1 import aggregator_pb2 as pb
from psum.wire import LARGE_PAYLOAD_BYTES, ElementType, ShardRound, decode, encode, split, to_columns, to_rows
from psum.wire.errors import InternalError, ProtocolError

RANKS = 3

#: Elements and type of each key, by id; a broadcast and a large one among them.
KEYS = {
    1: (3, ElementType.FLOAT32),
    2: (5, ElementType.FLOAT32),
    3: (4, ElementType.FLOAT16),
    4: (2, ElementType.INT32),
    5: (1, ElementType.BFLOAT16),
    6: (2, ElementType.FLOAT32),
    7: (LARGE_PAYLOAD_BYTES // 4, ElementType.FLOAT32),
    8: (100, ElementType.FLOAT32),
}
BROADCAST = 6


class AtOncePool:
    """Makes every sum at once."""

    at_once_bytes = 1 << 40


class Aggregator:
    """One job with all its workers, without I/O.

    Args:
        together: Whether contributions may be taken together.
        elastic: Whether the job is elastic.
    """

    def __init__(self, *, together: bool, elastic: bool = False) -> None:
        self.now = 1.0
        self.connections = {rank: WorkerConnection() for rank in range(RANKS)}
        self.runner = ActionRunner(cast(PriorityPool, AtOncePool()), lambda job, rank: self.connections.get(rank))
        registry = Registry(Limits())
        for rank in range(RANKS):
            hello = pb.Hello(
                protocol_version=1, job="j", rank=rank, num_workers=RANKS, incarnation=rank + 1, partition_bytes=1 << 20
            )
            if elastic:
                hello.elastic.CopyFrom(pb.Elastic(min=1, max=RANKS))
            job, _, refusal = registry.join(hello, "peer:1", self.now)
            assert refusal is None, refusal
            assert job is not None
            self.job: Job = job
        if not together:
            self.job.contribute_together = self._contribute_each
        self.receivers = [
            Receiver(self.job, rank, connection, self.runner, clock=lambda: self.now, uncredited=lambda: None)
            for rank, connection in self.connections.items()
        ]

    def _contribute_each(
        self,
        rank: int,
        shards: pb.ShardRounds,
        payload: memoryview,
        now: float,
        message_bytes: int,
        actions: list[Action],
    ) -> None:
        rows = to_rows(shards)
        for row, piece in zip(rows, split(payload, rows), strict=True):
            actions += self.job.contribute(rank, row, piece, now, message_bytes)

    def handle(self, rank: int, data: bytes) -> str:
        """Handles a message; returns what was wrong with it."""
        self.now += 0.001
        coroutine = self.receivers[rank].handle(data, None)
        try:
            coroutine.send(None)
        except StopIteration:
            return ""
        except ProtocolError as error:
            return str(error)
        raise AssertionError("it waited")

    def declare(self, rank: int) -> None:
        for number, (elements, kind) in KEYS.items():
            operation = pb.OPERATION_BROADCAST if number == BROADCAST else pb.OPERATION_SUM
            key = pb.Key(
                id=number,
                name=f"k{number}",
                elements=elements,
                type=kind.wire,
                operation=operation,
                shape=[elements],
                shards=[pb.Shard(index=0, elements=elements)],
            )
            assert self.handle(rank, encode(pb.ExchangeRequest(declare=pb.Declare(keys=[key])))) == ""

    def answers(self, rank: int) -> list[tuple[str, object]]:
        """What a worker is sent: each sum with its bytes, and the kind of anything else."""
        found: list[tuple[str, object]] = []
        queue = self.connections[rank].queue
        while queue:
            message, payload = decode(pb.ExchangeResponse, queue.get())
            if message.HasField("result"):
                rows = to_rows(message.result.shards)
                found += [
                    (f"{row.id}/{row.round}/{row.priority}", bytes(piece))
                    for row, piece in zip(rows, split(payload, rows), strict=True)
                ]
            else:
                found.append((str(message.WhichOneof("kind")), str(message)))
        return sorted(found, key=repr)

    def state(self) -> object:
        """All that later messages depend on, and what operators see."""
        self.job.check()
        return (
            {
                (number, index): (shard.round, shard.phase, shard.priority, shard.since, _bytes(shard.contributions))
                for number, key in self.job.keys.items()
                for index, shard in key.shards.items()
            },
            [
                (bytes(cast(bytes, shard.last_result)) if number != 7 else None)
                for number, key in self.job.keys.items()
                for shard in key.shards.values()
                if shard.last_result is not None
            ],
            self.job.held_bytes,
            list(self.job.open_shards),
            self.job.rounds.completed,
            self.job.counters.sum.contributions,
            self.job.counters.sum.received_bytes,
            self.job.counters.sum.sent_bytes,
            self.job.counters.duplicates,
            self.job.counters.sum.waiting.buckets(),
            self.job.counters.sum.duration.count,
            [
                (
                    w.contributed,
                    w.received_bytes,
                    w.sent_bytes,
                    [
                        (held.since, key.id, index, round)
                        for held in w.uncredited
                        for (key, index, _), round in zip(held.rows, held.rounds, strict=True)
                    ],
                )
                for w in self.job.workers.values()
            ],
        )


def _bytes(contributions: dict[int, memoryview]) -> dict[int, bytes]:
    return {rank: bytes(value) for rank, value in contributions.items()}


@dataclasses.dataclass
class Push:
    """One message: a rank's contributions to the rounds that it is at, shifted, of some keys."""

    rank: int
    keys: list[int]
    shift: list[int]
    priority: int
    seed: int
    timed: bool
    cut: bool


def pushes(seed: int) -> Iterator[Push]:
    """A history of messages, most of which are ordinary. Half of them name the same keys."""
    random = np.random.default_rng(seed)
    usual = random.permutation([1, 2, 3, 4, 5])[: random.integers(1, 6)].tolist()
    for _ in range(120):
        yield Push(
            rank=int(random.integers(RANKS)),
            keys=usual if random.random() < 0.5 else random.choice(sorted(KEYS), random.integers(1, 9)).tolist(),
            shift=random.choice([0, -1, 1], 8, p=[0.96, 0.03, 0.01]).tolist(),
            priority=int(random.integers(-2, 3)),
            seed=int(random.integers(1 << 16)),
            timed=random.random() < 0.05,
            cut=random.random() < 0.02,
        )


def message(push: Push, rounds: dict[int, int]) -> bytes:
    """The message, if its rank is at these rounds of the keys."""
    random = np.random.default_rng(push.seed)
    rows, payloads = [], []
    for key, shift in zip(push.keys, push.shift, strict=False):
        elements, kind = KEYS[key]
        size = elements * kind.itemsize - (kind.itemsize if push.cut else 0)
        values = random.integers(-9, 9, size // kind.itemsize)
        payload = values.astype(kind.numpy).tobytes()
        rows.append(
            ShardRound(key, 0, max(0, rounds[key] + shift), push.priority, length=len(payload), timed=push.timed)
        )
        payloads.append(payload)
    return encode(pb.ExchangeRequest(push=pb.Push(shards=to_columns(rows))), *payloads)


def declared(*, together: bool = True, elastic: bool = False) -> Aggregator:
    """An aggregator to which all ranks have declared their keys."""
    aggregator = Aggregator(together=together, elastic=elastic)
    for rank in range(RANKS):
        aggregator.declare(rank)
    return aggregator


def contribute(aggregator: Aggregator, push: Push, round: int, ranks: Sequence[int] = range(RANKS)) -> None:
    """Each of these ranks sends the same values."""
    for rank in ranks:
        data = message(dataclasses.replace(push, rank=rank), dict.fromkeys(KEYS, round))
        assert aggregator.handle(rank, data) == ""


def assert_key_1_summed(aggregator: Aggregator) -> None:
    """Rank 0 has the first sum of key 1, to which all ranks contributed the values of seed 1."""
    expected = np.random.default_rng(1).integers(-9, 9, 3).astype(np.float32) * RANKS
    assert ("1/0/0", expected.tobytes()) in aggregator.answers(0)


@pytest.mark.parametrize("seed", range(12))
def test_what_is_taken_together_leads_to_the_same(seed: int) -> None:
    """Also with duplicates, rounds that are early or late, wrong sizes, broadcasts, large shards and timings."""
    plain, quick = declared(together=False), declared()
    for push in pushes(seed):
        # A rank contributes to the current round, until it has done so.
        rounds = {key: plain.job.keys[key].shards[0].round for key in KEYS}
        data = message(push, rounds)
        assert plain.handle(push.rank, data) == quick.handle(push.rank, data)
        for rank in range(RANKS):
            told, expected = quick.answers(rank), plain.answers(rank)
            assert [kind for kind, _ in told] == [kind for kind, _ in expected]
            assert [each for each in told if each[0] != "timings"] == [e for e in expected if e[0] != "timings"]
        assert plain.state() == quick.state()
    assert plain.job.rounds.completed > 20


def test_a_contribution_that_is_said_to_be_in_two_places_changes_nothing() -> None:
    """The message is refused as a whole, and names the key."""
    aggregator = Aggregator(together=True)
    aggregator.declare(0)
    before = aggregator.state()
    rows = [ShardRound(1, length=12), ShardRound(3, length=8, outside_size=8)]
    wrong = aggregator.handle(0, encode(pb.ExchangeRequest(push=pb.Push(shards=to_columns(rows))), bytes(20)))
    assert wrong.startswith("shard 0 of key 0x3, round 0, has 8 bytes in the message and 8 outside of it")
    assert aggregator.state() == before


@pytest.mark.parametrize("happens", ["leave", "fail"])
def test_what_happens_between_two_messages_is_seen_by_the_second(happens: str) -> None:
    """After a rank has left, or the job has failed, the other ranks hear of it in both ways."""
    told = []
    for together in (False, True):
        aggregator = declared(together=together)
        job = aggregator.job
        fault = InternalError("for the test")
        aggregator.runner.perform(job, job.leave(2, 1.5) if happens == "leave" else job.fail(fault, 1.5))
        push = Push(0, [1, 2, 3], [0] * 3, 0, 1, timed=False, cut=False)
        assert aggregator.handle(0, message(push, dict.fromkeys(KEYS, 0))) == ""
        told.append([aggregator.answers(rank) for rank in range(RANKS)])
        aggregator.job.check()
    assert told[0] == told[1]
    assert any("fault" in kind for kind, _ in told[1][0])


def test_one_message_has_all_small_sums_of_a_message() -> None:
    """Neighbours of one element type are added up together, and travel together."""
    aggregator = declared()
    push = Push(0, [1, 2], [0, 0], 0, 1, timed=False, cut=False)
    for rank in range(RANKS):
        aggregator.handle(rank, message(dataclasses.replace(push, rank=rank, seed=rank), dict.fromkeys(KEYS, 0)))
    queue = aggregator.connections[0].queue
    decoded, payload = decode(pb.ExchangeResponse, queue.get())
    assert [row.id for row in to_rows(decoded.result.shards)] == [1, 2]
    total = sum(np.random.default_rng(rank).integers(-9, 9, 3) for rank in range(RANKS))
    assert np.frombuffer(payload[:12], np.float32).tolist() == cast(Any, total).tolist()


def test_sums_of_several_types_travel_in_one_message() -> None:
    """A small sum of another type, such as the roll call of an elastic job, costs no message of its own."""
    aggregator = declared()
    push = Push(rank=0, keys=[1, 2, 4, 3], shift=[0] * 4, priority=0, seed=1, timed=False, cut=False)
    contribute(aggregator, push, 0)
    for rank, connection in aggregator.connections.items():
        queue = connection.queue
        sent = [decode(pb.ExchangeResponse, queue.get())[0] for _ in range(len(queue))]
        assert [len(each.result.shards.ids) for each in sent] == [4], rank


def test_a_contribution_that_waits_for_long_lets_go_of_its_message() -> None:
    """The view of a few bytes would keep the whole message alive. It is copied, also if its worker has been lost.

    A message of which most still waits stays as it is.
    """
    aggregator = declared()
    push = Push(0, [1, 8, 4], [0] * 3, 0, 1, timed=False, cut=False)
    data = message(push, dict.fromkeys(KEYS, 0))
    unused = sys.getrefcount(data)
    assert aggregator.handle(0, data) == ""
    first = aggregator.now
    for each in range(1, 4):
        aggregator.runner.perform(aggregator.job, aggregator.job.tick(first + each * MESSAGE_HOLD_SECONDS))
        assert sys.getrefcount(data) > unused, "all of it waits"
    contribute(aggregator, dataclasses.replace(push, keys=[8]), 0, ranks=(1, 2))
    assert sys.getrefcount(data) > unused, "it is not looked at before its time"
    # Its credit is returned on its next connection.
    aggregator.job.workers[0].uncredited.clear()
    aggregator.runner.perform(aggregator.job, aggregator.job.tick(first + 5 * MESSAGE_HOLD_SECONDS))
    assert sys.getrefcount(data) == unused
    contribute(aggregator, dataclasses.replace(push, keys=[1, 4]), 0, ranks=(1, 2))
    assert_key_1_summed(aggregator)


def test_a_message_is_not_left_because_an_earlier_one_is_old() -> None:
    """A training sends the same shards again and again. Each message's contributions stay in it for their own time."""
    aggregator = declared()
    push = Push(0, [1, 8, 4], [0] * 3, 0, 1, timed=False, cut=False)
    contribute(aggregator, push, 0)
    first = aggregator.now
    aggregator.now += MESSAGE_HOLD_SECONDS / 2
    data = message(push, dict.fromkeys(KEYS, 1))
    unused = sys.getrefcount(data)
    assert aggregator.handle(0, data) == ""
    second = aggregator.now
    contribute(aggregator, dataclasses.replace(push, keys=[8]), 1, ranks=(1, 2))
    contributions = aggregator.job.keys[1].shards[0].contributions
    aggregator.runner.perform(aggregator.job, aggregator.job.tick(first + MESSAGE_HOLD_SECONDS))
    assert contributions[0].obj is data, "it has just come"
    aggregator.runner.perform(aggregator.job, aggregator.job.tick(second + MESSAGE_HOLD_SECONDS))
    assert contributions[0].obj is not data
    assert sys.getrefcount(data) == unused


def test_what_else_is_in_a_message_is_let_go_at_once() -> None:
    """It may be of any size, and no budget counts it."""
    aggregator = declared()
    request, payload = decode(
        pb.ExchangeRequest, message(Push(0, [1, 4], [0] * 2, 0, 1, timed=False, cut=False), dict.fromkeys(KEYS, 0))
    )
    request.padding = bytes(1 << 16)
    data = encode(request, payload)
    unused = sys.getrefcount(data)
    assert aggregator.handle(0, data) == ""
    assert sys.getrefcount(data) == unused
    assert bytes(aggregator.job.keys[1].shards[0].contributions[0]) == payload[:12]


def test_a_message_that_comes_again_lets_go_of_the_first_one() -> None:
    """As after a broken connection. The contributions that count are those of the first one, in copies."""
    aggregator = declared()
    push = Push(0, [1, 8, 4], [0] * 3, 0, 1, timed=False, cut=False)
    data = message(push, dict.fromkeys(KEYS, 0))
    unused = sys.getrefcount(data)
    assert aggregator.handle(0, data) == ""
    again = bytes(bytearray(data))
    assert aggregator.handle(0, again) == ""
    assert sys.getrefcount(data) == unused
    contribute(aggregator, push, 0, ranks=(1, 2))
    assert_key_1_summed(aggregator)


def test_a_message_of_large_shards_is_let_go_with_its_sums() -> None:
    """With a large model, what came within MESSAGE_HOLD_SECONDS would be as much as half of what the sums take."""
    aggregator = declared()
    push = Push(0, [7], [0], 0, 1, timed=False, cut=False)
    data = message(push, dict.fromkeys(KEYS, 0))
    unused = sys.getrefcount(data)
    assert aggregator.handle(0, data) == ""
    assert aggregator.job.keys[7].shards[0].contributions[0].obj is data, "it is not copied"
    contribute(aggregator, push, 0, ranks=(1, 2))
    assert [kind for kind, _ in aggregator.answers(0)] == ["7/0/0"]
    assert sys.getrefcount(data) == unused


@pytest.mark.parametrize("ends", ["fail", "end"])
def test_a_job_that_is_over_holds_no_message(ends: str) -> None:
    """Not even the last ones, which were to be summed together."""
    aggregator = declared()
    data = message(Push(0, [1, 8], [0] * 2, 0, 1, timed=False, cut=False), dict.fromkeys(KEYS, 0))
    unused = sys.getrefcount(data)
    assert aggregator.handle(0, data) == ""
    assert sys.getrefcount(data) > unused
    if ends == "fail":
        aggregator.job.fail(InternalError("for the test"), 1.5)
    else:
        aggregator.job.end()
    assert sys.getrefcount(data) == unused


def test_a_key_that_is_declared_later_is_found_in_the_same_message() -> None:
    """What was looked up once is looked up again while it was not known, and after it has failed."""
    aggregator = Aggregator(together=True)
    data = message(Push(0, [1, 2], [0] * 2, 0, 1, timed=False, cut=False), dict.fromkeys(KEYS, 0))
    assert "has not declared" in aggregator.handle(0, data)
    for rank in range(RANKS):
        aggregator.declare(rank)
    assert aggregator.handle(0, data) == ""
    job = aggregator.job
    aggregator.runner.perform(job, job.abort(1, pb.Abort(id=2, round=0, text="for the test")))
    assert aggregator.handle(1, data) == ""
    assert aggregator.handle(2, data) == ""
    job.check()
    assert [kind for kind, _ in aggregator.answers(0)] == ["1/0/0", "fault"]


def test_contributions_in_their_messages_order_are_not_copied() -> None:
    """The message's own bytes are added; but copies if a contribution was replaced since."""
    payload = memoryview(b"abcdef")
    pieces = [payload[:2], payload[2:]]
    together = Message(1.0, pieces, payload)
    assert _joined(list(pieces), together) is payload
    for other in ([pieces[0]], [pieces[1], pieces[0]], [pieces[0], memoryview(b"wxyz")]):
        assert _joined(other, together) == b"".join(other)
    assert _joined(pieces, None) == payload
    # Copies are not compared with what they were copied from, which would take longer than to join them.
    copies = [memoryview(bytes(piece)) for piece in pieces]
    assert (joined := _joined(copies, together)) == payload
    assert joined is not payload


@pytest.mark.parametrize("elastic", [False, True])
def test_a_first_sum_of_another_size_does_not_make_messages_of_an_elastic_job_long(elastic: bool) -> None:
    """There it is the roll call. Other jobs may have clients that do not know columns of two entries."""
    aggregator = declared(elastic=elastic)
    for rank in range(RANKS):
        push = Push(rank, [1, 3, 4], [0] * 3, 0, rank, timed=False, cut=False)
        aggregator.handle(rank, message(push, dict.fromkeys(KEYS, 0)))
    decoded, _ = decode(pb.ExchangeResponse, aggregator.connections[0].queue.get())
    assert list(decoded.result.shards.lengths) == ([12, 8] if elastic else [12, 8, 8])
    assert [row.length for row in to_rows(decoded.result.shards)] == [12, 8, 8]
