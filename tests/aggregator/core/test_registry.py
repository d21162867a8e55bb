"""Jobs begin with their first worker and end with their last; late ranks of a job are told from its next run."""

import pytest

from psum.aggregator.core.actions import Action, Report, Sum
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.registry import Registry
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import (
    DisagreementError,
    FaultError,
    InvalidError,
    TakenError,
    WorkerLostError,
)
from tests.aggregator.keys import declare, entry, key


def hello(rank: int = 0, *, num_workers: int = 2, age: float = 1000.0, job: str = "night") -> pb.Hello:
    return pb.Hello(
        protocol_version=1,
        job=job,
        rank=rank,
        num_workers=num_workers,
        partition_bytes=1024,
        planes=[pb.PLANE_INLINE],
        worker="host pid 1",
        incarnation=int(age * 1000) + rank,
        age_seconds=age,
    )


@pytest.fixture
def registry() -> Registry:
    return Registry(Limits(worker_timeout=30))


def join(registry: Registry, message: pb.Hello, now: float) -> FaultError | None:
    _, _, refusal = registry.join(message, "peer", now)
    return refusal


def test_a_job_ends_with_its_last_worker_and_can_be_seen_to_have_ended(registry: Registry) -> None:
    """The status lists a job in progress, then as ended with the ranks that had joined."""
    for rank in range(2):
        assert join(registry, hello(rank), 0.0) is None
    job = registry.jobs["night"]
    assert [j.name for j in registry.status(1.0, lambda name: True)[0]] == ["night"]
    for rank in range(2):
        job.leave(rank, now=2.0)
        job.lost(rank, 2.0)
        registry.settle(job, 2.0)
    assert registry.jobs == {}
    in_progress, [ended] = registry.status(5.0, lambda name: True)
    assert in_progress == []
    assert (ended.name, list(ended.joined), ended.ended_seconds, ended.failure) == ("night", [0, 1], 3.0, "")
    assert registry.status(5.0, lambda name: name == "other") == ([], [])


def test_a_leaving_worker_may_come_back_until_it_is_let_go(registry: Registry) -> None:
    """An aggregator was started again, and one rank says goodbye to it before another one has come back.

    Its connection breaks. It may still have a sum that only it can give to the other: so its job goes on, until it is
    let go, at the latest when it would have been.
    """
    for number in range(2):
        back = hello(0)
        back.resuming = True
        assert join(registry, back, float(number)) is None
        job = registry.jobs["night"]
        job.leave(0, now=number)
        job.lost(0, float(number))
        registry.settle(job, float(number))
    assert list(registry.tick(3.5)) == []
    assert registry.jobs["night"] is job
    list(registry.tick(4.5))
    assert registry.jobs == {}


def test_an_aggregator_that_was_started_again_hears_why_the_job_has_failed(registry: Registry) -> None:
    """A rank comes back only to say so, and ends. The others hear the true cause, and not that this rank is missing."""
    back = [hello(rank, num_workers=3) for rank in range(3)]
    for each in back:
        each.resuming = True
    assert join(registry, back[0], 0.0) is None
    assert join(registry, back[1], 0.1) is None
    job = registry.jobs["night"]
    fault = WorkerLostError("rank 2 was ended by SIGTERM", ranks=[2])
    report, _ = job.leave_early(1, pb.Goodbye(fault=fault.to_message()), now=0.2)
    assert isinstance(report, Report)
    assert (str(report.fault), report.ranks) == (str(fault), (0,))
    for rank in range(2):
        job.lost(rank, 0.3)
    registry.settle(job, 0.3)
    late = join(registry, back[2], 29.0)
    assert isinstance(late, WorkerLostError)
    assert (str(late), late.ranks) == (str(fault), (2,))


def test_a_late_rank_of_a_failed_job_is_told_why(registry: Registry) -> None:
    """A worker that was already running when its job failed is told of the failure, and does not wait."""
    assert join(registry, hello(0, num_workers=3), 0.0) is None
    assert isinstance(join(registry, hello(1, num_workers=4), 1.0), DisagreementError)
    registry.jobs["night"].lost(0, 1.0)
    late = join(registry, hello(2, num_workers=3, age=60), 9.0)
    assert isinstance(late, DisagreementError)


def test_a_new_run_of_a_failed_job_begins_afresh(registry: Registry) -> None:
    """Workers that were started after the failure belong to a new run."""
    assert join(registry, hello(0, num_workers=3), 0.0) is None
    join(registry, hello(1, num_workers=4), 1.0)
    registry.jobs["night"].lost(0, 1.0)
    assert join(registry, hello(0, age=2.0), 9.0) is None
    assert registry.jobs["night"].failure is None


def test_a_failed_job_is_forgotten_after_a_while(registry: Registry) -> None:
    """A late rank is told for as long as a round may wait; then the failed job is forgotten."""
    join(registry, hello(0, num_workers=3), 0.0)
    join(registry, hello(1, num_workers=4), 1.0)
    registry.jobs["night"].lost(0, 1.0)
    list(registry.tick(590.0))
    assert isinstance(join(registry, hello(2, num_workers=3), 590.0), DisagreementError)
    list(registry.tick(602.0))
    assert join(registry, hello(2, num_workers=3), 602.0) is None
    assert len(registry.ended) == 1


def test_whoever_knows_how_a_job_failed_begins_the_next_one(registry: Registry) -> None:
    """A late rank is told once. If the same process connects again, as a notebook does, it begins a new run."""
    join(registry, hello(0, num_workers=3), 0.0)
    refused = hello(1, num_workers=4)
    assert isinstance(join(registry, refused, 1.0), DisagreementError)
    registry.jobs["night"].lost(0, 1.0)
    late = hello(2, num_workers=3)
    # The same incarnation twice: the first answer may have been lost with its connection.
    assert all(isinstance(join(registry, late, 40.0), DisagreementError) for _ in range(2))
    late.incarnation += 1000
    refused.incarnation += 1000
    refused.num_workers = 3
    assert join(registry, late, 41.0) is None
    assert join(registry, refused, 41.0) is None
    assert sorted(registry.jobs["night"].workers) == [1, 2]


def leave(registry: Registry, rank: int, now: float) -> None:
    """A rank says goodbye, is released, and ends its stream."""
    job = registry.jobs["night"]
    job.leave(rank, now)
    job.lost(rank, now)
    registry.settle(job, now)


def use(job: Job, rank: int, now: float) -> list[Action]:
    """A rank declares a key of one element, and contributes to its first round."""
    return [*job.declare(rank, key(elements=1), now), *job.contribute(rank, entry(length=1), memoryview(b"1"), now)]


def test_a_rank_that_comes_when_another_has_left_is_told_at_its_first_contribution(registry: Registry) -> None:
    """All workers that had joined have left before it comes: its round would wait for them until the round timeout."""
    join(registry, hello(1, num_workers=3), 0.0)
    join(registry, hello(2, num_workers=3), 0.0)
    leave(registry, 1, 1.0)
    leave(registry, 2, 2.0)
    assert registry.jobs == {}
    list(registry.tick(300.0))
    assert join(registry, hello(0, num_workers=3), 300.0) is None
    job = registry.jobs["night"]
    [report] = use(job, 0, 300.0)
    assert isinstance(report, Report)
    assert isinstance(report.fault, WorkerLostError)
    assert report.fault.ranks == (1, 2)
    assert "rank 1 (host pid 1), rank 2 (host pid 1) have left job 'night'" in str(report.fault)
    leave(registry, 0, 301.0)
    assert registry.jobs == {}
    # All ranks have joined, so no late rank can come.
    assert join(registry, hello(0, num_workers=3), 302.0) is None
    assert sorted(registry.jobs["night"].workers) == [0]


def test_the_next_run_of_a_job_that_not_all_had_joined_begins_afresh(registry: Registry) -> None:
    """Its processes started after the end of the last run, or one of them took part in that with another client."""
    join(registry, hello(1), 0.0)
    leave(registry, 1, 1.0)
    assert join(registry, hello(0, age=3.0), 5.0) is None
    assert sorted(registry.jobs["night"].workers) == [0]
    assert use(registry.jobs["night"], 0, 5.0) == []
    leave(registry, 0, 6.0)
    again = hello(0)
    again.incarnation += 1000
    assert join(registry, again, 7.0) is None
    assert sorted(registry.jobs["night"].workers) == [0]
    assert join(registry, hello(1, age=1.0), 7.0) is None
    assert use(registry.jobs["night"], 0, 7.0) == []


def test_a_rank_that_had_left_may_come_again_to_the_one_that_came_late(registry: Registry) -> None:
    """For example when every rank first checks that it can connect: the second time all ranks join together."""
    join(registry, hello(1), 0.0)
    leave(registry, 1, 1.0)
    assert join(registry, hello(0), 2.0) is None
    again = hello(1)
    again.incarnation += 1000
    assert join(registry, again, 3.0) is None
    job = registry.jobs["night"]
    assert use(job, 0, 4.0) == []
    assert isinstance(use(job, 1, 4.0)[-1], Sum)


def test_a_late_rank_with_other_settings_is_told_what_differs(registry: Registry) -> None:
    """Even if the workers with the other settings have left already."""
    join(registry, hello(1, num_workers=3), 0.0)
    leave(registry, 1, 1.0)
    refusal = join(registry, hello(0, num_workers=2), 2.0)
    assert isinstance(refusal, DisagreementError)
    assert "rank 1 has 3, rank 0 has 2" in str(refusal)


def test_a_late_rank_with_other_settings_does_not_spoil_the_next_run(registry: Registry) -> None:
    """Processes that outlive a run, as notebooks do, may begin another one with corrected settings."""
    join(registry, hello(0, num_workers=2), 0.0)
    leave(registry, 0, 1.0)
    assert isinstance(join(registry, hello(2, num_workers=3), 100.0), DisagreementError)
    for rank in (0, 1, 2):
        again = hello(rank, num_workers=3)
        again.incarnation += 1000
        assert join(registry, again, 101.0 + rank) is None
    assert sorted(registry.jobs["night"].workers) == [0, 1, 2]


def test_a_late_rank_without_an_incarnation_is_told_once(registry: Registry) -> None:
    """It could be another process each time, so it is refused only once."""
    join(registry, hello(0, num_workers=3), 0.0)
    join(registry, hello(1, num_workers=4), 1.0)
    registry.jobs["night"].lost(0, 1.0)
    late = hello(2, num_workers=3)
    late.incarnation = 0
    assert isinstance(join(registry, late, 40.0), DisagreementError)
    assert join(registry, late, 41.0) is None


def test_what_is_remembered_of_jobs_that_not_all_had_joined_is_bounded(registry: Registry) -> None:
    """Jobs are remembered for a limited time, and only a limited number of them."""
    for number in range(200):
        join(registry, hello(1, job=f"job {number}"), 0.0)
        job = registry.jobs[f"job {number}"]
        job.leave(1, 1.0)
        job.lost(1, 1.0)
        registry.settle(job, 1.0)
    assert len(registry._ended_jobs) == 100
    list(registry.tick(600.0))
    assert len(registry._ended_jobs) == 100
    list(registry.tick(602.0))
    assert len(registry._ended_jobs) == 0


def test_a_job_whose_workers_all_vanished_gives_way_to_its_next_run(registry: Registry) -> None:
    """After kill -9 of a whole run, the next run does not wait for the worker timeout."""
    for rank in range(2):
        join(registry, hello(rank), 0.0)
    first = registry.jobs["night"]
    first.workers[0].contributed = True
    first.lost(0, 5.0)
    assert join(registry, hello(0, age=1.0), 9.0) is not None
    first.lost(1, 6.0)
    assert join(registry, hello(0, age=1.0), 9.0) is None
    assert registry.jobs["night"] is not first
    assert isinstance(first.failure, WorkerLostError)


def test_a_job_that_gives_way_is_released_when_its_end_was_told() -> None:
    """What follows from its end is carried out after the newcomer's hello, and needs what the shell has of the job."""
    released: list[Job] = []
    registry = Registry(Limits(worker_timeout=30), released.append)
    join(registry, hello(0), 0.0)
    first = registry.jobs["night"]
    first.lost(0, 5.0)
    _, [(about, report)], _ = registry.join(hello(0, age=1.0), "peer", 9.0)
    assert isinstance(report, Report)
    assert (about, released) == (first, [])
    list(registry.tick(9.25))
    assert released == [first]


def test_a_process_that_replaces_one_of_a_job_that_failed_begins_the_next_run(registry: Registry) -> None:
    """Though it was started before the end, while the others were still there."""
    for rank in range(2):
        assert join(registry, hello(rank), 0.0) is None
    job = registry.jobs["night"]
    job.workers[1].contributed = True
    job.lost(1, 5.0)
    replacement = hello(1, age=1.0)
    assert isinstance(join(registry, replacement, 7.0), TakenError)
    assert isinstance(job.failure, WorkerLostError)
    replacement.age_seconds = 3.0
    assert isinstance(join(registry, replacement, 9.0), TakenError)
    job.lost(0, 10.0)
    registry.settle(job, 10.0)
    replacement.age_seconds = 5.0
    assert join(registry, replacement, 11.0) is None
    assert registry.jobs["night"] is not job
    assert join(registry, hello(0, age=0.5), 11.0) is None


def test_jobs_side_by_side_do_not_know_of_each_other(registry: Registry) -> None:
    """The same rank may be taken in every job."""
    assert join(registry, hello(0), 0.0) is None
    assert join(registry, hello(0, job="day", num_workers=7), 0.0) is None
    assert len(registry.jobs) == 2


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"protocol_version": 9}, "version 9 of the protocol"),
        ({"job": ""}, "job's name"),
        ({"job": "a\nb"}, "job's name"),
        ({"rank": 2}, "rank 2 of 2 workers"),
        ({"num_workers": 0}, "of 0 workers"),
        ({"num_workers": 1 << 31}, "1 to 4096 workers"),
        ({"partition_bytes": 0}, "partition of 0 bytes"),
        ({"partition_bytes": 1 << 40}, "partition of"),
    ],
)
def test_a_hello_that_cannot_be_meant_is_refused(registry: Registry, change: dict[str, object], complaint: str) -> None:
    """It is refused with a reason, and creates no job."""
    message = hello()
    for name, value in change.items():
        setattr(message, name, value)
    refusal = join(registry, message, 0.0)
    assert isinstance(refusal, InvalidError)
    with pytest.raises(InvalidError, match=complaint):
        raise refusal
    assert registry.jobs == {}


def test_a_worker_that_offers_no_plane_that_is_there_is_refused(registry: Registry) -> None:
    """Every worker must offer the inline plane."""
    message = hello()
    message.planes[:] = [pb.PLANE_SHM]
    with pytest.raises(InvalidError, match="inline"):
        raise join(registry, message, 0.0) or AssertionError


def test_a_worker_that_comes_back_after_the_end_of_its_job_is_told_how_it_ended(registry: Registry) -> None:
    """A worker that was stopped for long can join neither its ended job nor the next run of that name."""
    stopped = hello(1, age=60)
    for message in (hello(0, age=60), stopped):
        assert join(registry, message, 0.0) is None
    registry.jobs["night"].lost(1, 1.0)
    assert len(list(registry.tick(32.0))) == 1
    registry.jobs["night"].lost(0, 33.0)
    assert [*registry.tick(33.0), *registry.tick(100.0)] == []
    assert registry.jobs == {}
    stopped.resuming = True
    stopped.age_seconds = 160
    for _ in range(2):
        refusal = join(registry, stopped, 100.0)
        assert isinstance(refusal, WorkerLostError)
        assert refusal.ranks == (1,)
        # The next run begins.
        join(registry, hello(0, age=1), 100.0)
    assert sorted(registry.jobs["night"].workers) == [0]


def test_a_new_process_of_a_rank_that_did_not_come_back_is_of_the_next_run(registry: Registry) -> None:
    """The aggregator was started again, so it does not know the old process; but all ranks had taken part by then."""
    back = hello(0)
    back.resuming = True
    assert join(registry, back, 0.0) is None
    job = registry.jobs["night"]
    assert declare(job, 0, 1) == []
    job.lost(0, 1.0)
    [(_, action)] = registry.tick(32.0)
    assert isinstance(action, Report)
    assert isinstance(job.failure, WorkerLostError)
    # It was started before the job failed.
    assert join(registry, hello(1, age=60), 33.0) is None
    assert registry.jobs["night"] is not job
    assert join(registry, hello(0, age=60), 33.0) is None


def test_more_failed_jobs_than_the_history_holds_keep_their_times(registry: Registry) -> None:
    """Failed jobs are remembered for late ranks, but appear in the history only once."""
    for number in range(40):
        assert join(registry, hello(job=f"job {number}"), float(number)) is None
        job = registry.jobs[f"job {number}"]
        job.fail(WorkerLostError("gone"), float(number))
        job.lost(0, float(number))
        registry.settle(job, float(number))
    before = list(registry.ended)
    assert list(registry.tick(40.0)) == []
    assert list(registry.ended) == before
    assert registry.status(40.0, lambda name: True)[0] == []


def test_a_worker_that_was_away_when_another_came_goes_on_with_it(registry: Registry) -> None:
    """A broken connection before the others were started makes the job look abandoned: its worker joins the new job."""
    first = hello(0, age=5)
    assert join(registry, first, 0.0) is None
    registry.jobs["night"].lost(0, 1.0)
    assert join(registry, hello(1, age=0.5), 2.0) is None
    first.resuming = True
    first.age_seconds = 7.5
    assert join(registry, first, 2.5) is None
    assert sorted(registry.jobs["night"].workers) == [0, 1]
