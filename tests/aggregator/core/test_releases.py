"""A worker that leaves is released when no other rank can need a sum of it any more."""

import pytest

from psum.aggregator.core.actions import Ask, Deliver, Release, Sum
from psum.aggregator.core.departures import RELEASE_SECONDS
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.wire.errors import TakenError
from tests.aggregator.core.restarted import give_back, hello, push, returned, sync
from tests.aggregator.keys import declare

job = pytest.fixture(returned)


def summed_once(job: Job) -> None:
    for rank in range(3):
        declare(job, rank, 0)
        actions = push(job, rank, 0)
    [action] = actions
    assert isinstance(action, Sum)
    job.summed(action.key, 0, "sum")


def test_a_worker_is_released_when_the_others_have_received_their_sums(job: Job) -> None:
    """Its goodbye is answered when each connected rank has confirmed; a rank that leaves too needs nothing more."""
    summed_once(job)
    assert job.leave(2, 5.0) == [sync(2, 0, 1)]
    assert job.synced(0, 2, 5.0) == []
    assert job.leave(1, 5.0) == [sync(1, 0), Release(2)]
    assert job.synced(0, 1, 5.0) == [Release(1)]
    assert job.leave(0, 6.0) == [Release(0)]
    # Its memory is kept as long as one of them may still answer.
    for rank in range(3):
        assert not job.over
        job.lost(rank, 6.0)
    assert job.over


def test_a_worker_is_released_after_a_while_in_any_case(job: Job) -> None:
    """A rank that does not answer delays another one's end only for a while."""
    summed_once(job)
    job.lost(0, 4.0)
    assert job.leave(2, 5.0) == [sync(2, 0, 1)]
    assert job.synced(1, 2, 5.0) == []
    assert job.tick(5.0 + RELEASE_SECONDS / 2) == []
    assert job.tick(5.0 + RELEASE_SECONDS) == [Release(2)]
    assert job.tick(6.0 + RELEASE_SECONDS) == []


def test_a_worker_whose_connection_breaks_after_its_goodbye_says_it_again(job: Job) -> None:
    """If it were refused, it would end, although other aggregators may still need its sums."""
    summed_once(job)
    assert job.leave(2, 5.0) == [sync(2, 0, 1)]
    job.lost(2, 5.5)
    assert job.join(hello(2), "peer", 6.0) == ([], None)
    assert job.leave(2, 6.0) == [sync(2, 0, 1)]
    assert job.synced(0, 2, 6.0) == []
    assert job.synced(1, 2, 6.0) == [Release(2)]
    _, refusal = job.join(hello(2, incarnation=7), "peer", 7.0)
    assert isinstance(refusal, TakenError)


def test_a_worker_that_took_part_in_nothing_is_released_when_all_know() -> None:
    """No rank can need a sum of it. But the next process of this aggregator would wait for it."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    for rank in range(3):
        job.join(hello(rank, resuming=False), "peer", 0.0)
    assert job.leave(1, 5.0) == [sync(1, 0, 2)]
    assert job.synced(0, 1, 5.0) == []
    assert job.synced(2, 1, 5.0) == [Release(1)]


def test_a_worker_that_leaves_after_a_restart_stays_for_ranks_that_are_not_back(job: Job) -> None:
    """It has contributed to nothing since, but it may have sums that ranks lack that have not come back yet."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    job.join(hello(2), "peer", 0.0)
    declare(job, 2, 6)
    assert job.leave(2, 1.0) == [sync(2, 0, 1)]
    job.join(hello(0), "peer", 1.0)
    declare(job, 0, 5)
    assert push(job, 0, 5) == [Ask(2, ((7, 0, 5),))]
    [action] = give_back(job, 2, 5)
    assert isinstance(action, Deliver)
    assert action.ranks == (0,)


def test_a_worker_that_leaves_does_not_fail_those_who_wait_for_a_sum_that_it_has(job: Job) -> None:
    """They wait for the round before, to which it has contributed, not for the next one."""
    declare(job, 2, 6)
    declare(job, 0, 5)
    assert push(job, 0, 5) == [Ask(2, ((7, 0, 5),))]
    assert job.leave(2, 2.0) == [sync(2, 0, 1)]
    job.check()
    [action] = give_back(job, 2, 5)
    assert isinstance(action, Deliver)
    assert action.ranks == (0,)
