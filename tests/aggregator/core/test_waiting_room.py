"""Processes that wait to join a job that has no member at this aggregator, or is not elastic."""

from typing import Any

import pytest

from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.registry import Registry
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import DisagreementError, InvalidError, TakenError, WorkerLostError
from tests.aggregator.core.elastic import hello
from tests.aggregator.core.joining import ELASTIC, candidate, listed, refusals


def room(**limits: Any) -> Registry:
    return Registry(Limits(round_timeout=60, **limits))


def test_a_process_waits_for_the_first_member_of_its_job() -> None:
    """As after a restart of the aggregator. It is checked when the member is here."""
    registry = room()
    good, bad = candidate(3), candidate(4, partition_bytes=77)
    for each in (good, bad):
        assert registry.wait(each, 20.0) == ([], None)
    assert not registry.jobs
    job, actions, refusal = registry.join(hello(0, resuming=True, elastic=ELASTIC), "peer", 21.0)
    assert refusal is None
    assert isinstance(job, ElasticJob)
    done = [action for _, action in actions]
    assert listed(done) == [([3], (0,))]
    assert [type(each) for each in refusals(done)] == [DisagreementError]
    assert list(registry.refusals(500.0)) == []


def test_a_process_that_waits_for_a_job_without_members_is_refused_after_the_round_timeout() -> None:
    """The fault says that nobody has come, and how a job begins."""
    registry = room()
    registry.wait(candidate(3), 20.0)
    assert list(registry.refusals(79.0)) == []
    [refusal] = refusals(registry.refusals(81.0))
    assert isinstance(refusal, WorkerLostError)
    assert "no member of this job has come to this aggregator. Start the job's first workers without" in str(refusal)
    assert list(registry.refusals(82.0)) == []


def test_a_process_that_goes_away_waits_no_more() -> None:
    """Neither in a job nor for one."""
    registry = room()
    process = candidate(3)
    registry.wait(process, 20.0)
    assert registry.withdraw(process, 21.0) == []
    assert list(registry.refusals(500.0)) == []
    registry.join(hello(0, elastic=ELASTIC), "peer", 21.0)
    registry.wait(process, 22.0)
    assert listed([action for _, action in registry.withdraw(process, 23.0)]) == [([], (0,))]


def test_two_processes_for_one_rank_of_a_job_without_members() -> None:
    """As in a job: the same process replaces itself, another one is refused."""
    registry = room()
    registry.wait(candidate(3), 20.0)
    assert registry.wait(candidate(3), 20.0) == ([], None)
    assert [type(each) for each in refusals(registry.refusals(21.0))] == [TakenError]
    assert isinstance(registry.wait(candidate(3, incarnation=5), 20.0)[1], TakenError)


def test_those_who_wait_are_told_when_the_job_has_ended() -> None:
    """All members have left."""
    registry = room()
    job, _, _ = registry.join(hello(0, num_workers=1, elastic=ELASTIC), "peer", 1.0)
    assert job is not None
    registry.wait(candidate(3, num_workers=1), 20.0)
    job.leave(0, 21.0)
    job.lost(0, 21.0)
    registry.settle(job, 21.0)
    [refusal] = refusals(registry.refusals(21.0))
    assert isinstance(refusal, WorkerLostError)
    assert "elastic job 'night' has ended while new3 pid 8" in str(refusal)


def test_nobody_joins_a_job_that_is_not_elastic() -> None:
    """The text says which setting differs, whoever comes first."""
    registry = room()
    registry.join(hello(0, elastic=None), "peer", 1.0)
    _, refusal = registry.wait(candidate(1), 20.0)
    assert "PSUM_ELASTIC" in str(refusal)
    assert isinstance(refusal, DisagreementError)
    assert registry.withdraw(candidate(1), 20.0) == []
    registry = room()
    registry.wait(candidate(1), 20.0)
    _, actions, _ = registry.join(hello(0, elastic=None), "peer", 21.0)
    assert [type(each) for each in refusals(action for _, action in actions)] == [DisagreementError]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"elastic": None}, "not elastic"),
        ({"rank": 5}, "rank 5 of 5 workers"),
        ({"incarnation": 0}, "must have an incarnation"),
        ({"elastic": pb.Elastic(min=0, max=5)}, "an elastic job of 0 to 5 ranks"),
        ({"ranks": [1, 2], "incarnations": [5, 6], "generations": [0, 0]}, "expected one rank at first"),
    ],
)
def test_a_process_whose_hello_makes_no_sense_may_not_wait(change: dict[str, Any], text: str) -> None:
    """It is refused at once."""
    process = candidate(1, **change) if "rank" not in change else candidate(**change)
    _, refusal = room().wait(process, 20.0)
    assert isinstance(refusal, InvalidError)
    assert text in str(refusal)


def test_ranks_up_to_the_maximum_may_come_back() -> None:
    """A worker of a rank that the job did not begin with says hello as any other."""
    job, _, refusal = room().join(hello(4, incarnation=9, resuming=True, elastic=ELASTIC), "peer", 1.0)
    assert refusal is None
    assert job is not None
    assert job.members.roster.known == (0, 1, 2, 4)
