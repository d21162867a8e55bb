"""Which rounds an aggregator that drains finishes."""

import pytest

from psum.aggregator.core.actions import Sum
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from tests.aggregator.core.restarted import hello, push, returned
from tests.aggregator.keys import declare

job = pytest.fixture(returned)


def test_open_rounds_are_those_that_somebody_contributed_to(job: Job) -> None:
    """A draining aggregator finishes these and no others."""
    for rank in range(3):
        declare(job, rank, 0)
    assert job.open_rounds() == []
    push(job, 1, 0)
    assert job.open_rounds() == [(7, 0, 0)]
    push(job, 0, 0)
    [action] = push(job, 2, 0)
    assert job.open_rounds() == [(7, 0, 0)]
    assert isinstance(action, Sum)
    job.summed(action.key, 0, "sum")
    assert job.open_rounds() == []


def test_a_round_that_waits_for_a_rank_that_is_gone_is_not_to_be_finished(job: Job) -> None:
    """A draining aggregator accepts no streams, so a missing rank could not contribute."""
    for rank in range(3):
        declare(job, rank, 0)
    push(job, 0, 0)
    job.lost(0, 1.0)
    assert job.open_rounds() == [(7, 0, 0)]
    job.lost(1, 1.0)
    assert job.open_rounds() == []


def test_a_round_that_waits_for_a_rank_that_never_came_is_not_to_be_finished() -> None:
    """A draining aggregator accepts no streams, so a rank that has not joined could not contribute."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    job.join(hello(0), "peer", 0.0)
    declare(job, 0, 0)
    push(job, 0, 0)
    assert job.open_rounds() == []
