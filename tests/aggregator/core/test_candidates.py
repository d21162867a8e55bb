"""Processes wait to join an elastic job: who may wait, who is told of them, and for how long."""

from psum.aggregator.core.actions import Warn
from psum.aggregator.core.budget import Budget
from psum.aggregator.core.elastic_job import ElasticJob
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import DisagreementError, ExhaustedError, TakenError, WorkerLostError
from tests.aggregator.core.elastic import LIMITS, add_up, hello, push, tick, told
from tests.aggregator.core.joining import ELASTIC, NEW, begun, candidate, listed, lost, refusals, refused, waits
from tests.aggregator.keys import declare


def test_members_are_told_who_waits() -> None:
    """All of them when a process comes or goes, and each one after its welcome."""
    job = begun()
    lost(job, 1)
    first, second = candidate(4), candidate(1)
    assert listed(waits(job, first)) == [([4], (0, 2))]
    assert listed(waits(job, second)) == [([1, 4], (0, 2))]
    assert [(each.rank, each.incarnation, each.worker) for each in job.candidates()] == [
        (1, NEW + 1, "new1 pid 8"),
        (4, NEW + 4, "new4 pid 8"),
    ]
    assert listed(job.withdraw(first, 21.0)) == [([1], (0, 2))]
    assert job.withdraw(first, 21.0) == []


def test_a_process_that_waits_is_no_member() -> None:
    """Rounds neither wait for it nor count it."""
    job = begun()
    waits(job, candidate(3))
    push(job, 0)
    push(job, 1)
    [action] = push(job, 2)
    assert add_up(job, action).contributors == 0


def test_the_same_process_may_ask_again_and_another_one_may_not() -> None:
    """A broken stream may not have been noticed yet. Two processes with one rank are a mistake, or the first one is
    about to end, for which the second one may wait."""
    job = begun()
    first = candidate(3)
    waits(job, first)
    again = candidate(3)
    [refusal] = refusals(waits(job, again))
    assert isinstance(refusal, TakenError)
    assert job.withdraw(first, 21.0) == []
    assert job.joins.candidates.of(3) is again
    refusal = refused(job, candidate(3, incarnation=5, worker="other pid 9"))
    assert isinstance(refusal, TakenError)
    assert "new3 pid 8 (peer of new 3) waits already to join elastic job 'night' as rank 3; refused other pid 9" in str(
        refusal
    )


def test_a_process_with_other_settings_is_refused_and_the_job_goes_on() -> None:
    """The fault shows both sides, also while the job waits for ranks."""
    for ranks in (range(3), range(2)):
        job = begun(ranks)
        refusal = refused(job, candidate(3, partition_bytes=77))
        assert isinstance(refusal, DisagreementError)
        assert "the partition size (PSUM_PARTITION_BYTES): rank 0 has 1024, rank 3 has 77" in str(refusal)
        refusal = refused(job, candidate(3, elastic=pb.Elastic(min=1, max=4)))
        assert "rank 0 has 1:5, rank 3 has 1:4" in str(refusal)
        refusal = refused(job, candidate(3, num_workers=4))
        assert "the number of workers (PSUM_NUM_WORKERS): rank 0 has 3, rank 3 has 4" in str(refusal)
        refusal = refused(job, candidate(3, aggregators=["a:1"]))
        assert "PSUM_AGGREGATORS" in str(refusal)
        assert job.failure is None


def test_a_process_that_comes_for_a_vanished_one_makes_that_one_lost() -> None:
    """It was started after the other one had vanished, so nobody waits for that one."""
    job = begun()
    push(job, 1)
    job.lost(1, 19.0)
    actions = waits(job, candidate(1, age_seconds=0.5))
    assert told(actions) == [([1], (0, 2))]
    assert listed(actions) == [([1], (0, 2))]


def test_a_process_for_a_rank_that_is_there_waits_and_is_refused_in_the_end() -> None:
    """The members do not admit it while the rank is held. The fault says by whom."""
    job = begun()
    waits(job, candidate(1))
    [warning] = [a for a in tick(job, 51.0) if isinstance(a, Warn)]
    assert "new1 pid 8 (peer of new 1) has waited 30 s to join elastic job 'night' as rank 1" in warning.text
    assert tick(job, 52.0) == []
    actions = tick(job, 621.0)
    [refusal] = refusals(actions)
    assert isinstance(refusal, WorkerLostError)
    assert "its rank is that of h1 pid 7 (peer 1), which is still there" in str(refusal)
    assert listed(actions) == [([], (0, 1, 2))]


def test_a_program_that_admits_nobody_is_named_as_the_cause() -> None:
    """The core cannot know whether members ever call step(); the warning and the fault say that they must."""
    job = begun()
    waits(job, candidate(3))
    [warning] = [a for a in tick(job, 51.0) if isinstance(a, Warn)]
    assert "when all of them call step() of their ElasticState" in warning.text
    assert warning.ranks == (0, 1, 2)
    [refusal] = refusals(tick(job, 621.0))
    assert "a program that never does takes in no others" in str(refusal)


def test_a_job_below_its_minimum_admits_nobody_and_says_so() -> None:
    """Its members cannot end their step. The warning and the fault say that, and not that they never call step()."""
    job = begun(elastic=pb.Elastic(min=2, max=5))
    lost(job, 1)
    lost(job, 2)
    waits(job, candidate(2, elastic=pb.Elastic(min=2, max=5)))
    [warning] = [a for a in tick(job, 51.0) if isinstance(a, Warn)]
    [refusal] = refusals(tick(job, 621.0))
    for text in (warning.text, str(refusal)):
        assert "1 of 3 ranks are left, and rounds need 2 (PSUM_ELASTIC)" in text
        assert "call step()" not in text


def test_those_who_wait_are_told_when_the_job_fails() -> None:
    """They get the job's fault."""
    job = begun()
    waits(job, candidate(3))
    fault = DisagreementError("ranks disagree", ranks=[0, 2])
    actions = job.leave_early(1, pb.Goodbye(fault=fault.to_message()), 22.0)
    assert [str(each) for each in refusals(actions)] == [str(job.failure)]
    assert refused(job, candidate(3)) is job.failure


def test_a_process_is_refused_if_there_is_no_memory_for_its_contributions() -> None:
    """Otherwise a round might lack memory later."""
    job = ElasticJob(hello(0, elastic=ELASTIC), LIMITS, budget=Budget(18))
    for rank in range(3):
        job.join(hello(rank, elastic=ELASTIC), f"peer {rank}", 0.0)
    declare(job, 0)
    refusal = refused(job, candidate(3))
    assert isinstance(refusal, ExhaustedError)
    assert "need 2 bytes more than are left of the aggregator's memory budget of 18 bytes" in str(refusal)
    lost(job, 1)
    waits(job, candidate(1))
