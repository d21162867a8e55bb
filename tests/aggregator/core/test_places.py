"""Each rank has one process: which one takes its place, how long that is kept, and who hears of its end."""

import pytest

from psum.aggregator.core.actions import Release, Report, Warn
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.membership import REPLACED_SECONDS
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import DisagreementError, TakenError, WorkerLostError
from tests.aggregator.core.two_workers import checked_job, declare, hello
from tests.aggregator.keys import FOUR, entry

job = pytest.fixture(checked_job)


@pytest.mark.parametrize(
    ("change", "both_sides"),
    [
        ({"num_workers": 3}, r"PSUM_NUM_WORKERS\): rank 0 has 2, rank 1 has 3"),
        ({"partition_bytes": 2048}, r"PSUM_PARTITION_BYTES\): rank 0 has 1024, rank 1 has 2048"),
        ({"aggregators": ["a:1", "b:1"]}, r"PSUM_AGGREGATORS\): rank 0 has \['a:1'\], rank 1 has \['a:1', 'b:1'\]"),
        (
            {"aggregator_index": 1},
            "one and the same aggregator: rank 0 of job 'night' came by the first, rank 1",
        ),
    ],
)
def test_ranks_that_disagree_on_settings_all_hear_of_it(change: dict[str, object], both_sides: str) -> None:
    """While ranks are missing, a worker that disagrees is one of them: the job fails for all, showing both sides."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    job.join(hello(0), "peer:0", now=0.0)
    actions, refusal = job.join(hello(1, change), "peer:1", now=1.0)
    assert isinstance(refusal, DisagreementError)
    assert actions == [Report(refusal, (0,))]
    with pytest.raises(DisagreementError, match=both_sides):
        raise refusal
    assert job.join(hello(1), "peer:1", now=2.0) == ([], refusal)


def test_a_stranger_does_not_end_a_complete_job(job: Job) -> None:
    """Once all ranks have joined, a worker that disagrees is refused, and no rank is told."""
    actions, refusal = job.join(hello(0, {"num_workers": 5}), "peer:9", now=1.0)
    assert isinstance(refusal, DisagreementError)
    assert actions == []
    assert job.failure is None


def test_a_rank_is_taken_once(job: Job) -> None:
    """The second worker is refused with the name of the first; the first goes on."""
    actions, refusal = job.join(hello(1, {"worker": "other pid 9", "incarnation": 9}), "peer:9", now=2.0)
    assert isinstance(refusal, TakenError)
    assert actions == []
    assert "rank 1 of job 'night' is taken by host pid 101 (peer:1), connected 2.0 s ago" in str(refusal)
    assert "refused other pid 9 (peer:9)" in str(refusal)


def test_a_worker_that_vanished_before_it_took_part_may_be_replaced(job: Job) -> None:
    """A restarted process takes over its rank only if the first process has contributed to no round."""
    job.lost(1, now=1.0)
    assert job.join(hello(1, {"worker": "host pid 9", "incarnation": 9}), "peer:9", now=2.0) == ([], None)
    declare(job)
    job.contribute(1, entry(), FOUR, now=3.0)
    job.lost(1, now=4.0)
    late = hello(1, {"worker": "host pid 10", "incarnation": 10, "age_seconds": 60})
    actions, refusal = job.join(late, "peer:10", now=5.0)
    assert actions == []
    assert isinstance(refusal, TakenError)
    assert "taken by host pid 9 (peer:9), which vanished 1.0 s ago" in str(refusal)


@pytest.mark.parametrize(("closed", "contributed", "kept"), [(True, True, 5), (False, True, 30), (True, False, 30)])
def test_a_worker_whose_connection_was_closed_is_kept_a_place_for_less_long(
    closed: bool, contributed: bool, kept: float
) -> None:
    """One that is silent may be out of reach; for one that had taken part in nothing, another one may yet come."""
    job = Job(hello(0), Limits(worker_timeout=30, closed_timeout=5, round_timeout=600, warn_after=600))
    for rank in range(2):
        job.join(hello(rank), f"peer:{rank}", now=0.0)
    declare(job)
    if contributed:
        job.contribute(1, entry(), FOUR, now=1.0)
    job.lost(1, 2.0, closed=closed)
    assert job.tick(2.0 + kept) == []
    [report] = job.tick(2.1 + kept)
    assert isinstance(report, Report)
    assert f"within the worker timeout of {kept} s" in str(report.fault)


@pytest.mark.parametrize(
    ("age", "now"), [(0.5, 5.0), (60.0, 4.0 + REPLACED_SECONDS)], ids=["started since", "nobody has come back"]
)
def test_a_worker_that_vanished_is_not_waited_for_where_another_process_has_its_rank(
    job: Job, age: float, now: float
) -> None:
    """Its peers hear of it at once, and the new process of the next run, which begins when they have gone."""
    declare(job)
    job.contribute(1, entry(), FOUR, now=3.0)
    job.lost(1, now=4.0)
    late = hello(1, {"worker": "host pid 10", "incarnation": 10, "age_seconds": age})
    [report], refusal = job.join(late, "peer:10", now)
    assert isinstance(refusal, TakenError)
    assert isinstance(report, Report)
    assert isinstance(report.fault, WorkerLostError)
    assert (report.fault.ranks, report.ranks) == ((1,), (0,))
    assert "host pid 101 (peer:1), vanished" in str(report.fault)
    assert "another process, host pid 10 (peer:10), has come in its place" in str(report.fault)
    actions, refusal = job.join(late, "peer:10", now + 1)
    assert actions == []
    assert isinstance(refusal, TakenError)
    assert "has failed and is still ending; still connected: rank 0 (host pid 100" in str(refusal)
    # The one before, which a broken network kept away, is told what has become of the job.
    assert job.join(hello(1, {"resuming": True}), "peer:1", now + 1)[1] is report.fault
    job.lost(0, now + 2)
    assert job.over


def test_one_that_comes_back_does_not_end_the_job_of_the_process_that_has_its_rank(job: Job) -> None:
    """It is refused itself, and told that it was replaced."""
    job.lost(1, now=1.0)
    job.join(hello(1, {"incarnation": 9}), "peer:9", now=2.0)
    declare(job)
    job.contribute(1, entry(), FOUR, now=3.0)
    job.lost(1, now=4.0)
    actions, refusal = job.join(hello(1, {"incarnation": 1, "resuming": True}), "peer:1", now=60.0)
    assert actions == []
    assert isinstance(refusal, TakenError)
    assert "It was replaced while it could not be reached" in str(refusal)


def test_a_worker_that_vanished_fails_the_job_after_its_timeout(job: Job) -> None:
    """Its peers are told which rank it was and when it was last heard; all memory is released."""
    declare(job)
    job.contribute(0, entry(), FOUR, now=1.0)
    job.lost(1, now=2.0)
    job.tick(31.0)
    assert job.failure is None
    [action] = job.tick(33.0)
    assert isinstance(action, Report)
    assert isinstance(action.fault, WorkerLostError)
    assert (action.fault.key, action.fault.ranks, action.ranks) == (None, (1,), (0,))
    assert "rank 1 of job 'night', host pid 101 (peer:1), vanished 31.0 s ago" in str(action.fault)
    assert job.held_bytes == 0
    assert not job.over
    job.lost(0, now=34.0)
    assert job.over


def goodbye(*, replaceable: bool = False) -> pb.Goodbye:
    fault = WorkerLostError("rank 1 was ended by SIGTERM", ranks=[1, 9]).to_message()
    return pb.Goodbye(fault=fault, replaceable=replaceable)


def test_a_worker_that_ends_before_its_work_is_done_fails_the_job_at_once(job: Job) -> None:
    """Its peers hear why, though they need nothing of it now; it is let go itself."""
    declare(job)
    job.contribute(1, entry(), FOUR, now=1.0)
    report, release = job.leave_early(1, goodbye(replaceable=True), now=2.0)
    assert isinstance(report, Report)
    assert isinstance(report.fault, WorkerLostError)
    assert (str(report.fault), report.fault.ranks, report.ranks) == ("rank 1 was ended by SIGTERM", (1,), (0,))
    assert release == Release(1)
    assert job.leave_early(1, goodbye(), now=2.0) == []
    job.lost(1, 2.0)
    assert not job.over
    job.lost(0, 2.0)
    assert job.over


def test_a_worker_that_ends_before_it_took_part_in_anything_can_be_replaced(job: Job) -> None:
    """The others are warned. If it has not taken part here only, it says so, and the job fails here too."""
    warning, release = job.leave_early(1, goodbye(replaceable=True), now=2.0)
    assert isinstance(warning, Warn)
    assert warning.ranks == (0,)
    assert "rank 1 was ended by SIGTERM" in warning.text
    assert "is kept for another process, for 30 s" in warning.text
    assert release == Release(1)
    job.lost(1, 2.0)
    assert job.join(hello(1, {"incarnation": 7}), "peer:7", 3.0) == ([], None)
    report, _ = job.leave_early(1, goodbye(), now=4.0)
    assert isinstance(report, Report)
    job.lost(1, 4.0)
