"""A round that waits for long is reported before it fails: the waiting ranks learn which ranks are missing."""

from collections.abc import Iterator

import pytest

from psum.aggregator.core.actions import Warn
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.stall_warnings import StallWarnings
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from tests.aggregator.keys import key


def test_a_warning_comes_after_some_time_and_each_time_that_has_doubled() -> None:
    """Ten minutes of waiting give a handful of warnings."""
    warnings_ = StallWarnings(10)
    assert [second for second in range(601) if warnings_.due("w", second)] == [10, 20, 40, 80, 160, 320]


def test_each_thing_that_waits_has_its_own_time() -> None:
    """A warning about one round does not suppress one about the next."""
    warnings_ = StallWarnings(10)
    assert warnings_.due("round 1", 100)
    assert not warnings_.due("round 2", 5)
    assert warnings_.due("round 2", 11)


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job(
        pb.Hello(job="night", num_workers=3),
        Limits(worker_timeout=1000, round_timeout=600, warn_after=30, max_shards=1000),
    )
    for rank in range(2):
        job.join(pb.Hello(job="night", rank=rank, num_workers=3, worker=f"host{rank} pid 7"), "peer", 0.0)
    for id in (1, 2):
        for rank in range(2):
            job.declare(rank, key(id, name=f"w{id}"), 0.0)
    yield job
    job.check()


def warnings(job: Job, now: float) -> list[Warn]:
    return [action for action in job.tick(now) if isinstance(action, Warn)]


def test_the_oldest_round_that_waits_is_told_to_those_who_wait_for_it(job: Job) -> None:
    """The warning names the missing ranks, their processes, when they were heard last, what they wait for themselves,
    and when the round will fail."""
    job.contribute(0, ShardRound(id=1), memoryview(b"abcd"), 1.0)
    job.contribute(1, ShardRound(id=2), memoryview(b"abcd"), 2.0)
    job.workers[1].last_heard = 30.0
    assert warnings(job, 30.0) == []
    [warning] = warnings(job, 32.0)
    assert warning.ranks == (0,)
    assert warning.text == (
        "job 'night' key 'w1' round 0 waits for rank 1 (host1 pid 7, last heard 2.0 s ago; it waits itself, for others"
        " in key 'w2' round 0), rank 2 (never joined). It has waited 31 s, and will fail after 600 s; 1 more"
        " shards wait"
    )
    assert warnings(job, 33.0) == []
    assert len(warnings(job, 64.0)) == 1


def test_a_rank_that_vanished_is_told_to_have_vanished(job: Job) -> None:
    """The warning tells a vanished rank from a slow one."""
    job.contribute(0, ShardRound(id=1), memoryview(b"abcd"), 1.0)
    job.lost(1, 20.0)
    [warning] = warnings(job, 40.0)
    assert "rank 1 (host1 pid 7, vanished 20.0 s ago)" in warning.text
