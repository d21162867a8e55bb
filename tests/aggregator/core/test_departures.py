"""An aggregator that was started again learns from those who come back which members have left before."""

from typing import Any

import pytest

from psum.aggregator.core.actions import Ask, Deliver, Release, Report, Sum, Sync
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.registry import Registry
from psum.v1 import aggregator_pb2 as pb
from psum.wire import PROTOCOL_VERSION, ShardRound
from psum.wire.errors import InvalidError, TakenError, WorkerLostError
from tests.aggregator.keys import FOUR, declare, entry

LIMITS = Limits(worker_timeout=30, round_timeout=600)


def hello(rank: int, *departed: int, **change: Any) -> pb.Hello:
    """The hello of a rank that comes back, and says that these ranks have left."""
    fields: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "job": "night",
        "rank": rank,
        "num_workers": 3,
        "incarnation": 100 + rank,
        "partition_bytes": 1024,
        "aggregators": ["a:1"],
        "resuming": True,
        "departures": [departure(other) for other in departed],
    }
    return pb.Hello(**fields | change)


def departure(*ranks: int, level: int = 0) -> pb.Departure:
    return pb.Departure(ranks=ranks, incarnation=100 + ranks[0], level=level)


def restarted(*hellos: pb.Hello) -> Job:
    """A job on an aggregator that was just started again, to which these workers have come back."""
    job = Job(hellos[0], LIMITS)
    for each in hellos:
        assert job.join(each, "peer", 0.0) == ([], None)
    return job


def push(job: Job, rank: int, round: int) -> list[Any]:
    return list(job.contribute(rank, entry(round), FOUR, 1.0))


def test_those_who_stay_are_told_who_leaves() -> None:
    """Before a worker is let go, the others know who it was; and so does one that connects again later."""
    job = Job(hello(0), LIMITS)
    for rank in range(3):
        job.join(hello(rank, resuming=False), "peer", 0.0)
        declare(job, rank, 0)
        actions = push(job, rank, 0)
    job.summed(actions[0].key, 0, "sum")
    assert job.departures() == []
    assert job.leave(1, 5.0) == [Sync(1, (0, 2), (departure(1),))]
    assert job.departures() == [departure(1)]


def test_a_rank_that_has_left_is_not_waited_for() -> None:
    """The job goes on, and its last ranks may leave, though one of them does not come back to the new process."""
    job = restarted(hello(0, 1), hello(2))
    assert job.complete
    declare(job, 0, 6)
    declare(job, 2, 5)
    assert push(job, 2, 5) == [Ask(0, ((7, 0, 5),))]
    [action] = job.restore(0, ShardRound(id=7, round=5, length=4), memoryview(b"abcd"))
    assert isinstance(action, Sum)
    [delivered] = job.restored(action.key, 0, 5, "sum")
    assert isinstance(delivered, Deliver)
    assert job.tick(LIMITS.worker_timeout + 1) == []
    assert job.failure is None
    assert job.leave(0, 40.0) == [Sync(0, (2,), (departure(0),))]
    assert Release(2) in job.leave(2, 40.0)
    for rank in (0, 2):
        job.lost(rank, 41.0)
    assert job.over


def test_others_are_told_of_it_again() -> None:
    """What one worker has told is known to all, for the process after this one."""
    job = restarted(hello(0, 1), hello(2))
    assert job.departures() == [departure(1)]


def test_a_rank_that_has_left_may_come_back_for_its_farewell() -> None:
    """It has not heard that it may go. It is let in as the same process, and released like any other."""
    job = restarted(hello(0, 1), hello(2))
    assert job.join(hello(1), "peer", 1.0) == ([], None)
    assert job.leave(1, 1.0) == [Sync(1, (0, 2), (departure(1),))]
    job.synced(0, 1, 1.0)
    assert job.synced(2, 1, 1.0) == [Release(1)]


def test_another_process_does_not_get_the_rank_of_one_that_has_left() -> None:
    """It belongs to the next run, and waits for the end of this one, which goes on."""
    job = restarted(hello(0, 1), hello(2))
    _, refusal = job.join(hello(1, incarnation=9, resuming=False), "peer", 20.0)
    assert isinstance(refusal, TakenError)
    assert "a process that had left before (according to peer), which has left it" in str(refusal)
    assert job.failure is None


def test_nothing_fails_before_a_rank_has_had_the_time_to_come_back() -> None:
    """A rank that lacks a sum contributes again; another one that is not back yet has the sum."""
    job = restarted(hello(0, 1))
    declare(job, 0, 5)
    assert push(job, 0, 5) == []
    assert job.join(hello(2), "peer", 2.0) == ([], None)
    declare(job, 2, 6)
    assert not any(isinstance(action, Report) for action in job.tick(3.0))
    assert job.keys[7].failure is None
    assert job.keys[7].shards[0].ranks_lacking_result == {0}


def test_what_needs_a_rank_that_has_left_fails() -> None:
    """The worker timeout after the first rank came back, no other rank can have the sum, and nobody contributes."""
    job = restarted(hello(0, 1), hello(2))
    for rank in (0, 2):
        declare(job, rank, 6)
    assert push(job, 0, 6) == []
    [report] = [action for action in job.tick(LIMITS.worker_timeout + 1) if isinstance(action, Report)]
    assert isinstance(report.fault, WorkerLostError)
    assert report.fault.ranks == (1,)
    job.check()


def test_a_relay_that_has_left_stood_for_its_ranks() -> None:
    """The member is known again by its ranks together."""
    job = restarted(hello(0, departures=[departure(1, 2)]))
    assert job.complete
    assert job.join(hello(1, ranks=[1, 2]), "peer", 1.0) == ([], None)


@pytest.mark.parametrize(
    "joins",
    [
        pytest.param(hello(0, 1, resuming=False), id="it comes for the first time"),
        pytest.param(hello(0, departures=[departure(0)]), id="it is there itself"),
        pytest.param(hello(0, departures=[departure(0, 1)]), id="the ranks are partly there"),
        pytest.param(hello(0, departures=[departure(1, level=1)]), id="of the next relay's members"),
        pytest.param(hello(0, departures=[departure(5, 6)], num_workers=8, group_size=2), id="more than the group has"),
    ],
)
def test_what_makes_no_sense_here_is_left_out(joins: pb.Hello) -> None:
    """Only ranks that are missing at an aggregator that was started again can have left before."""
    job = restarted(joins)
    assert list(job.workers) == [0]
    assert not job.complete


@pytest.mark.parametrize("ranks", [[], [3], [1, 1], [2, 1]])
def test_a_departure_of_impossible_ranks_is_refused(ranks: list[int]) -> None:
    """A hello that names no rank, or none of the job's, breaks the protocol."""
    joins = hello(0, departures=[pb.Departure(ranks=ranks)])
    _, _, refusal = Registry(LIMITS).join(joins, "peer", 0.0)
    assert isinstance(refusal, InvalidError)
    assert "it says that a member for ranks" in str(refusal)
