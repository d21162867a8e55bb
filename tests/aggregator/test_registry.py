"""Jobs begin with their first worker, end with their last, and a failed one is told from its next run."""

import pytest

from psum.aggregator import Settings
from psum.aggregator._registry import Registry
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import DisagreementError, FaultError, InvalidError, WorkerLostError


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
    return Registry(Settings(worker_timeout=30))


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


def test_a_late_rank_of_a_failed_job_is_told_why(registry: Registry) -> None:
    """A worker that was already running when its job failed hears of the failure instead of waiting for ever."""
    assert join(registry, hello(0, num_workers=3), 0.0) is None
    assert isinstance(join(registry, hello(1, num_workers=4), 1.0), DisagreementError)
    registry.jobs["night"].lost(0, 1.0)
    late = join(registry, hello(2, num_workers=3, age=60), 9.0)
    assert isinstance(late, DisagreementError)


def test_a_new_run_of_a_failed_job_begins_afresh(registry: Registry) -> None:
    """Workers that were started after the failure are another run."""
    assert join(registry, hello(0, num_workers=3), 0.0) is None
    join(registry, hello(1, num_workers=4), 1.0)
    registry.jobs["night"].lost(0, 1.0)
    assert join(registry, hello(0, age=2.0), 9.0) is None
    assert registry.jobs["night"].failure is None


def test_a_failed_job_is_forgotten_after_a_while(registry: Registry) -> None:
    """What is remembered of failed jobs does not pile up."""
    join(registry, hello(0, num_workers=3), 0.0)
    join(registry, hello(1, num_workers=4), 1.0)
    registry.jobs["night"].lost(0, 1.0)
    list(registry.tick(20.0))
    assert "night" in registry.jobs
    list(registry.tick(40.0))
    assert registry.jobs == {}
    assert len(registry.ended) == 1


def test_a_job_whose_workers_all_vanished_gives_way_to_its_next_run(registry: Registry) -> None:
    """After kill -9 of a whole run, the next one need not wait for the worker timeout."""
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
    """It is answered in words, and makes no job."""
    message = hello()
    for name, value in change.items():
        setattr(message, name, value)
    refusal = join(registry, message, 0.0)
    assert isinstance(refusal, InvalidError)
    with pytest.raises(InvalidError, match=complaint):
        raise refusal
    assert registry.jobs == {}


def test_a_worker_that_offers_no_plane_that_is_there_is_refused(registry: Registry) -> None:
    """The inline plane is what everybody has."""
    message = hello()
    message.planes[:] = [pb.PLANE_SHM]
    with pytest.raises(InvalidError, match="inline"):
        raise join(registry, message, 0.0) or AssertionError


def test_a_worker_that_comes_back_after_the_end_of_its_job_is_told_how_it_ended(registry: Registry) -> None:
    """One that was stopped for long is neither let in anew, nor into the next run of that name."""
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


def test_more_failed_jobs_than_the_history_holds_keep_their_times(registry: Registry) -> None:
    """Failed jobs are remembered for their late ranks; that must not put them into the history again and again."""
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
    """A cut before the others were started makes the job look abandoned: the first worker comes into the new one."""
    first = hello(0, age=5)
    assert join(registry, first, 0.0) is None
    registry.jobs["night"].lost(0, 1.0)
    assert join(registry, hello(1, age=0.5), 2.0) is None
    first.resuming = True
    first.age_seconds = 7.5
    assert join(registry, first, 2.5) is None
    assert sorted(registry.jobs["night"].workers) == [0, 1]
