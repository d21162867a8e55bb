"""A worker that asks learns how long its contribution waited, for which rank, and how long the sum took."""

from collections.abc import Iterator
from typing import Any

import pytest

from psum.aggregator.core.actions import Action, Deliver, Sum, TellTiming
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.timings import Timings
from psum.aggregator.service.send_queue import SendQueue
from psum.aggregator.sums.results import Results
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, decode

FOUR = memoryview(b"abcd")


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def job(clock: Clock) -> Iterator[Job]:
    """A job of three workers with one key of two shards, whose invariants are checked at the end."""
    fields: dict[str, Any] = {"job": "night", "num_workers": 3, "partition_bytes": 4, "aggregators": ["a:1"]}
    job = Job(pb.Hello(**fields), Limits(worker_timeout=30, round_timeout=600))
    job.rounds.timings = Timings(clock)
    key = pb.Key(
        id=7,
        name="w",
        elements=8,
        type=pb.ELEMENT_TYPE_UINT8,
        operation=pb.OPERATION_SUM,
        shape=[8],
        shards=[pb.Shard(index=0, elements=4), pb.Shard(index=1, elements=4)],
    )
    for rank in range(3):
        assert job.join(pb.Hello(rank=rank, **fields), "peer", now=0.0) == ([], None)
        assert job.declare(rank, key, now=0.0) == []
    yield job
    job.check()


def push(job: Job, rank: int, round: int = 0, *, timed: bool = True, shard: int = 0) -> list[Action]:
    """A rank contributes."""
    entry = ShardRound(id=7, shard=shard, round=round, length=4, timed=timed)
    return job.contribute(rank, entry, FOUR, now=0.0)


def timing_of(actions: list[Action]) -> TellTiming | None:
    """The timings that are told before the result."""
    *told, result = actions
    assert isinstance(result, Deliver)
    for action in told:
        assert isinstance(action, TellTiming)
        return action
    return None


def test_the_wait_of_each_rank_is_until_the_last_one_came(job: Job, clock: Clock) -> None:
    """The last rank waited for nobody, and the time of the sum is separate."""
    for clock.now, rank in ((1.0, 2), (3.0, 0), (10.0, 1)):
        actions = push(job, rank)
    (sum_up,) = actions
    assert isinstance(sum_up, Sum)
    clock.now = 10.5
    told = timing_of(job.summed(sum_up.key, 0, b"sum"))
    assert told is not None
    assert (told.last_rank, dict(told.waiting), told.summing) == (1, {2: 9.0, 0: 7.0, 1: 0.0}, 0.5)
    assert not job.rounds.timings


def test_only_those_who_asked_are_told(job: Job, clock: Clock) -> None:
    """The last rank is named even if it has not asked."""
    for clock.now, rank, timed in ((1.0, 0, True), (2.0, 2, False), (5.0, 1, False)):
        actions = push(job, rank, timed=timed)
    (sum_up,) = actions
    assert isinstance(sum_up, Sum)
    told = timing_of(job.summed(sum_up.key, 0, b"sum"))
    assert told is not None
    assert (told.last_rank, dict(told.waiting)) == (1, {0: 4.0})


def test_nothing_is_kept_where_nobody_asks(job: Job) -> None:
    """No rank asks by default."""
    for rank in range(3):
        (*_, last) = [None, *push(job, rank, timed=False)]
        assert not job.rounds.timings
    assert isinstance(last, Sum)
    assert timing_of(job.summed(last.key, 0, b"sum")) is None


def test_a_contribution_that_comes_twice_counts_from_the_first(job: Job, clock: Clock) -> None:
    """A contribution that is sent again over a new connection keeps its first time."""
    for clock.now, rank in ((1.0, 0), (2.0, 0), (3.0, 1), (4.0, 2)):
        actions = push(job, rank)
    (sum_up,) = actions
    assert isinstance(sum_up, Sum)
    told = timing_of(job.summed(sum_up.key, 0, b"sum"))
    assert told is not None
    assert told.waiting[0] == 3.0


@pytest.mark.parametrize(
    ("last_rank", "named", "waiting", "times"),
    [
        (5, 5, {0: 6.0, 1: 5.0, 2: 4.0}, (1.5, 4.5)),
        (0, 2, {0: 2.0, 1: 1.0, 2: 0.0}, (1.5, 8.5)),
    ],
    ids=["another group is last", "this group is last"],
)
def test_a_relay_adds_what_the_owner_says(
    job: Job, clock: Clock, last_rank: int, named: int, waiting: dict[int, float], times: tuple[float, float]
) -> None:
    """Waiting and summing are those of both levels. The rest was on the way between them."""
    for clock.now, rank in ((1.0, 0), (2.0, 1), (3.0, 2)):
        push(job, rank)
    clock.now = 4.0
    key, timings = job.keys[7], job.rounds.timings
    timings.forwarded(key, 0, 0)
    clock.now = 13.0
    owners = pb.Timing(last_rank=last_rank, waiting_seconds=waiting[2], summing_seconds=0.5)
    timings.answered(key, 0, 0, owners, range(3))
    (told,) = timings.summed(key, 0, 0)
    assert (told.last_rank, dict(told.waiting), (told.summing, told.forwarding)) == (named, waiting, times)


def test_an_owner_cannot_have_waited_longer_than_the_relay(job: Job, clock: Clock) -> None:
    """What the owner counts from before a connection broke is cut."""
    for rank in range(3):
        push(job, rank)
    key, timings = job.keys[7], job.rounds.timings
    timings.forwarded(key, 0, 0)
    clock.now = 2.0
    timings.answered(key, 0, 0, pb.Timing(last_rank=5, waiting_seconds=60, summing_seconds=1), range(3))
    (told,) = timings.summed(key, 0, 0)
    assert (told.waiting[0], told.summing, told.forwarding) == (2.0, 0.0, 0.0)


def test_shards_are_told_apart(job: Job, clock: Clock) -> None:
    """Each shard has its own round."""
    sums = {}
    for shard, order in ((0, (0, 1, 2)), (1, (2, 1, 0))):
        for rank in order:
            clock.now += 1.0
            for action in push(job, rank, shard=shard):
                sums[shard] = action
    assert len(job.rounds.timings) == 2
    for shard, last_rank in ((1, 0), (0, 2)):
        action = sums[shard]
        assert isinstance(action, Sum)
        told = timing_of(job.summed(action.key, shard, b"sum"))
        assert told is not None
        assert (told.shard, told.last_rank) == (shard, last_rank)


def test_a_round_that_ended_without_a_sum_leaves_nothing_to_the_next(job: Job, clock: Clock) -> None:
    """For example when a worker got the sum from an earlier aggregator process."""
    key = job.keys[7]
    job.rounds.timings.contributed(key, 0, 3, 0, asked=True, complete=False)
    clock.now = 10.0
    job.rounds.timings.contributed(key, 0, 4, 1, asked=True, complete=False)
    clock.now = 12.0
    job.rounds.timings.contributed(key, 0, 4, 0, asked=False, complete=True)
    (told,) = job.rounds.timings.summed(key, 0, 4)
    assert dict(told.waiting) == {1: 2.0}
    job.rounds.timings.contributed(key, 0, 5, 0, asked=True, complete=False)
    job.rounds.timings.contributed(key, 0, 6, 1, asked=False, complete=True)
    assert job.rounds.timings.summed(key, 0, 6) == []


def test_nothing_is_left_of_a_key_or_job_that_fails(job: Job) -> None:
    """Records of failed keys and jobs are dropped."""
    push(job, 0)
    push(job, 0, shard=1)
    assert len(job.rounds.timings) == 2
    job.abort(1, pb.Abort(id=7, round=0, text="no"))
    assert not job.rounds.timings


def test_timings_share_a_message_ahead_of_their_results() -> None:
    """There are never more than shards, even if the worker does not read."""
    queue = SendQueue()
    for round in range(3):
        for shard in range(5):
            queue.put_timing(pb.Timing(id=7, shard=shard, round=round))
            entry = ShardRound(id=7, shard=shard, round=round, length=1)
            queue.put(Results((entry,), (memoryview(b"x"),), priority=0))
    queue.put_control(pb.ExchangeResponse(notice=pb.Notice(text="first")))
    assert len(queue) == 11
    messages = [decode(pb.ExchangeResponse, queue.get())[0] for _ in range(3)]
    assert not queue
    assert [m.WhichOneof("kind") for m in messages] == ["notice", "timings", "result"]
    assert [(t.shard, t.round) for t in messages[1].timings.timings] == [(shard, 2) for shard in range(5)]
    queue.put_timing(pb.Timing(id=7))
    queue.clear()
    assert not queue
