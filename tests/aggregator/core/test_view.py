"""An aggregator loses nobody by time while it cannot tell a lost rank from being cut off itself."""

import pytest

from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.registry import Registry
from psum.wire.errors import ProtocolError
from tests.aggregator.core.elastic import LIMITS, begun, hello, loss, push, started, tick, told
from tests.aggregator.keys import declare


def says(job: ElasticJob, *ranks: int, all: bool, now: float) -> None:
    """Members say whether they reach all aggregators."""
    for rank in ranks:
        assert job.reaches(rank, now, all_of_them=all) == []


def test_without_a_member_that_reaches_all_nobody_is_lost() -> None:
    """The network is cut in two: the members here miss another aggregator, and the rank there misses this one."""
    job = begun()
    job.lost(2, 10.0)
    says(job, 0, 1, all=False, now=12.0)
    assert tick(job, 100.0) == []
    assert not job.members.losses


def test_one_member_that_reaches_all_is_enough() -> None:
    """Another one has only lost a connection of its own."""
    job = begun()
    says(job, 0, all=False, now=9.0)
    job.lost(2, 10.0)
    assert told(tick(job, 15.1)) == [([2], (0, 1))]


def test_when_the_network_works_again_ranks_have_time_to_come_back() -> None:
    """The time begins anew with the view. A rank that has really ended is lost then."""
    job = begun()
    job.lost(2, 10.0)
    says(job, 0, 1, all=False, now=12.0)
    says(job, 1, all=True, now=60.0)
    assert tick(job, 64.9) == []
    assert told(tick(job, 65.1)) == [([2], (0, 1))]


def test_a_rank_that_comes_back_after_the_cut_is_a_member() -> None:
    """No half has lost the other."""
    job = begun()
    job.lost(2, 10.0)
    says(job, 0, 1, all=False, now=12.0)
    assert tick(job, 59.0) == []
    says(job, 1, all=True, now=60.0)
    assert job.join(hello(2, resuming=True), "peer", 61.0) == ([], None)
    assert tick(job, 100.0) == []


def test_a_member_on_a_new_stream_counts_as_one_that_reaches_all() -> None:
    """It says otherwise if that is wrong, before the time is over that any loss takes."""
    job = begun()
    job.lost(2, 10.0)
    says(job, 0, 1, all=False, now=12.0)
    job.lost(1, 20.0)
    assert job.join(hello(1, resuming=True), "peer", 21.0) == ([], None)
    assert tick(job, 25.9) == []
    assert told(tick(job, 26.1)) == [([2], (0, 1))]


def test_what_a_lost_rank_says_does_not_count() -> None:
    """Only members have a view."""
    job = begun()
    says(job, 0, 1, all=False, now=8.0)
    job.learn_losses(0, [loss(2)], 9.0)
    job.lost(1, 10.0)
    assert tick(job, 100.0) == []


def test_an_aggregator_that_is_cut_off_loses_nobody() -> None:
    """It hears of nobody, and forgets the job after a while. Its members come back as to one that was started again."""
    limits = Limits(worker_timeout=30, round_timeout=600, elastic_timeout=5, elastic_closed_timeout=1)
    registry = Registry(limits)
    job = None
    for rank in range(3):
        job, _, refusal = registry.join(hello(rank), "peer", 0.0)
        assert refusal is None
    assert isinstance(job, ElasticJob)
    for rank in range(3):
        declare(job, rank)
        push(job, rank)
        job.lost(rank, 10.0)
        registry.settle(job, 10.0)
    for now in (10.1, 20.0, 40.0):
        assert list(registry.tick(now)) == []
        assert registry.jobs
    assert list(registry.tick(40.2)) == []
    assert not registry.jobs
    assert registry.budget.reserved_bytes == 0
    again, _, refusal = registry.join(hello(1, resuming=True), "peer", 50.0)
    assert refusal is None
    assert again is not job


def test_a_rank_that_does_not_come_back_after_a_restart_is_lost_only_with_a_view() -> None:
    """It may be the members that are here which are cut off from the others."""
    job = started(range(2), resuming=True)
    says(job, 0, 1, all=False, now=1.0)
    assert tick(job, 30.0) == []
    says(job, 0, all=True, now=40.0)
    assert tick(job, 44.9) == []
    assert told(tick(job, 45.1)) == [([2], (0, 1))]


def test_only_elastic_jobs_hear_of_it() -> None:
    """In another job nobody asks."""
    plain = hello(0)
    plain.ClearField("elastic")
    job = Job(plain, LIMITS)
    job.join(plain, "peer", 0.0)
    with pytest.raises(ProtocolError, match="not elastic"):
        job.reaches(0, 1.0, all_of_them=False)


def test_the_reason_names_the_aggregator() -> None:
    """Who is excluded learns which connection it was about."""
    job = begun()
    job.lost(2, 10.0)
    assert tick(job, 15.0) == []
    [reason] = [each.text for each in job.members.due(15.1)]
    assert (
        reason == "h2 pid 7 (peer 2) vanished 5.1 s ago: its connection to aggregator a:1 was silent, and no other came"
    )
