"""Which processes may come back to an aggregator that was started again, and who is waited for."""

import pytest

from psum.aggregator.core.actions import Report
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.membership import REPLACED_SECONDS
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import DisagreementError, TakenError, WorkerLostError
from tests.aggregator.core.restarted import hello, push, returned
from tests.aggregator.keys import declare

job = pytest.fixture(returned)


def begun(now: float) -> Job:
    """A job on an aggregator that was started again: only rank 0 has come back, and it has a sum."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    assert job.join(hello(0), "peer", now) == ([], None)
    declare(job, 0, 1)
    return job


def replacement(age: float = 60.0) -> pb.Hello:
    """The hello of a new process of rank 2, which was started so many seconds ago."""
    message = hello(2, incarnation=9, resuming=False)
    message.worker, message.age_seconds = "host pid 9", age
    return message


@pytest.mark.parametrize(
    ("age", "now"), [(0.5, 11.0), (60.0, 10.0 + REPLACED_SECONDS)], ids=["started since", "nobody has come back"]
)
def test_a_worker_that_vanished_while_the_aggregator_was_away_is_not_waited_for(age: float, now: float) -> None:
    """Where another process has its rank, the peers hear of it at once. The new process waits for the next run."""
    job = begun(10.0)
    [report], refusal = job.join(replacement(age), "peer:9", now)
    assert isinstance(refusal, TakenError)
    assert isinstance(report, Report)
    assert isinstance(report.fault, WorkerLostError)
    assert (report.fault.key, report.fault.ranks, report.ranks) == (None, (2,), (0,))
    assert "rank 2 of job 'night' has not come back to this aggregator, which was started again" in str(report.fault)
    assert "Another process, host pid 9 (peer:9), has come in its place" in str(report.fault)
    actions, refusal = job.join(replacement(age + 1), "peer:9", now + 1)
    assert actions == []
    assert isinstance(refusal, TakenError)
    assert "in which rank 2 was another process, has failed and is still ending; still connected" in str(refusal)
    # The one before, which could not reach the aggregator, is told what has become of the job.
    assert job.join(hello(2), "peer:2", now + 1)[1] is report.fault


def test_a_worker_that_is_slow_to_come_back_does_so_while_another_process_has_its_rank() -> None:
    """A process that was started before the aggregator may have the rank by mistake."""
    job = begun(10.0)
    actions, refusal = job.join(replacement(), "peer:9", 10.0 + REPLACED_SECONDS - 0.1)
    assert actions == []
    assert isinstance(refusal, TakenError)
    assert "rank 2 of job 'night' has taken part in it as another process" in str(refusal)
    assert job.join(hello(2), "peer:2", 11.0) == ([], None)
    assert isinstance(job.join(replacement(), "peer:9", 60.0)[1], TakenError)
    assert job.failure is None


def test_a_worker_that_vanished_after_it_came_back_is_not_waited_for() -> None:
    """It has pushed nothing to this aggregator, but has taken part in the job."""
    job = begun(0.0)
    assert job.join(hello(2), "peer:2", 1.0) == ([], None)
    job.lost(2, 5.0)
    assert job.join(replacement(), "peer:9", 5.1)[0] == []
    [report], refusal = job.join(replacement(0.5), "peer:9", 6.0)
    assert isinstance(refusal, TakenError)
    assert isinstance(report, Report)
    assert isinstance(report.fault, WorkerLostError)
    assert "vanished 1.0 s ago, and another process" in str(report.fault)


def test_a_worker_that_was_started_again_and_came_first_is_not_mixed_into_old_rounds() -> None:
    """One round of the others is enough proof, because all ranks have contributed to it."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    job.join(hello(2, resuming=False), "peer", 0.0)
    declare(job, 2, 0)
    push(job, 2, 0)
    job.join(hello(0), "peer", 1.0)
    [action] = declare(job, 0, 1)
    assert isinstance(action, Report)
    assert isinstance(action.fault, DisagreementError)
    assert (action.fault.key, action.fault.ranks, action.ranks) == (None, (2,), (2, 0))


def test_a_worker_that_is_late_may_join_an_aggregator_that_was_started_again() -> None:
    """No round can have ended without it, so no rank declares one."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    job.join(hello(0), "peer", 0.0)
    job.join(hello(1), "peer", 0.0)
    declare(job, 0, 0)
    assert job.join(hello(2, resuming=False), "peer", 1.0) == ([], None)
    assert declare(job, 2, 0) == []
    assert declare(job, 1, 0) == []


def test_a_worker_that_does_not_come_back_fails_the_job(job: Job) -> None:
    """After a restart the missing rank is not known from before; it has worker_timeout to return."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    job.join(hello(0), "peer", 0.0)
    job.join(hello(2), "peer", 1.0)
    assert job.tick(29.0) == []
    [action] = job.tick(31.0)
    assert isinstance(action, Report)
    assert isinstance(action.fault, WorkerLostError)
    assert action.fault.ranks == (1,)


def test_ranks_that_have_not_joined_yet_are_not_missed() -> None:
    """When a job begins, its workers may join late."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    job.join(hello(0, resuming=False), "peer", 0.0)
    assert job.tick(1000.0) == []


def test_the_same_process_may_come_back_before_its_old_connection_is_known_to_be_broken(job: Job) -> None:
    """One side may notice a broken connection first; the worker keeps its rank."""
    declare(job, 0, 0)
    push(job, 0, 0)
    assert job.join(hello(0), "new peer", 5.0) == ([], None)
    assert job.workers[0].peer == "new peer"
    assert push(job, 0, 0) == []
    assert job.workers[0].connected


def test_a_rank_may_be_new_where_no_round_has_ended() -> None:
    """An aggregator that was started again while the workers joined: some come back, others come for the first time."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    for rank in range(3):
        job.join(hello(rank, resuming=rank == 0), "peer", 0.0)
        assert declare(job, rank, 0) == []
