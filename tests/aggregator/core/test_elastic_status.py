"""What operators see of the members of an elastic job."""

from psum.aggregator.core.actions import TellLosses
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.job_status import job_status
from psum.aggregator.core.limits import Limits
from psum.aggregator.processes.merged_elastic import merged_elastic
from psum.v1 import aggregator_pb2 as pb
from psum.wire import PROTOCOL_VERSION, report_of
from psum.wire.errors import WorkerLostError
from tests.aggregator.core.elastic import tick

LIMITS = Limits(elastic_timeout=5, elastic_closed_timeout=1)


def hello(rank: int, number: int = 0) -> pb.Hello:
    return pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        job="night",
        rank=rank,
        num_workers=4,
        incarnation=100 + 10 * number + rank,
        partition_bytes=1024,
        aggregators=["a:1"],
        worker=f"h{rank} pid {7 + number}",
        elastic=pb.Elastic(min=2, max=8),
        joining=number > 0,
    )


def started() -> ElasticJob:
    """A job of four ranks, of which all have joined."""
    job = ElasticJob(hello(0), LIMITS)
    for rank in range(4):
        assert job.join(hello(rank), f"peer {rank}", float(rank)) == ([], None)
    return job


def lost(job: ElasticJob, rank: int, generation: int, now: float) -> None:
    """A rank is lost elsewhere, as rank 0 tells."""
    job.learn_losses(0, [pb.Loss(rank=rank, generation=generation, text="it vanished there")], now)


def test_a_job_whose_members_stay_has_no_changes() -> None:
    """Each worker has the time since it joined."""
    status = job_status(started(), 10.0)
    assert (status.elastic.min, status.elastic.max, status.elastic.members) == (2, 8, 4)
    assert [worker.joined_seconds for worker in status.workers] == [10, 9, 8, 7]
    [job] = report_of(pb.GetStatusResponse(jobs=[status]))["jobs"]
    assert (job["elastic"]["losses"], job["elastic"]["changed_seconds"]) == (0, None)


def test_losses_and_departures_have_their_times_and_reasons() -> None:
    """The latest comes first. Metrics count losses by reason."""
    job = started()
    job.lost(1, 10.0, closed=True)
    tick(job, 15.5)
    tick(job, 20.0)
    job.lost(2, 20.0)
    tick(job, 25.5)
    job.leave(3, 30.0)
    status = job_status(job, 31.0)
    elastic = status.elastic
    assert (elastic.members, elastic.losses, elastic.joins, elastic.departures) == (1, 2, 0, 1)
    assert (list(elastic.lost), elastic.changed_seconds) == ([1, 2], 1.0)
    changes = [(event.change, event.rank, event.seconds_ago) for event in elastic.events]
    assert changes == [
        (pb.MEMBERSHIP_CHANGE_LEFT, 3, 1.0),
        (pb.MEMBERSHIP_CHANGE_LOST, 2, 5.75),
        (pb.MEMBERSHIP_CHANGE_LOST, 1, 15.75),
    ]
    assert "h2 pid 7 (peer 2) vanished" in elastic.events[1].text
    assert [worker.lost for worker in status.workers] == [False, True, True, False]
    assert job.counters.losses == {"closed": 1, "silent": 1}
    [shown] = report_of(pb.GetStatusResponse(jobs=[status]))["jobs"]
    assert [worker["state"] for worker in shown["workers"]] == ["connected", "lost", "lost", "left"]
    assert shown["not_joined"] == []


def test_losses_are_counted_by_how_they_were_noticed() -> None:
    """A loss that another aggregator has decided is one too."""
    job = started()
    job.learn_losses(0, [pb.Loss(rank=1, text="it vanished there", seconds_ago=3)], 10.0)
    fault = WorkerLostError("out of memory", ranks=[2])
    job.leave_early(2, pb.Goodbye(fault=fault.to_message()), 11.0)
    assert job.counters.losses == {"told": 1, "ended early": 1}
    [_, told] = job_status(job, 12.0).elastic.events
    assert (told.rank, told.text, told.seconds_ago) == (1, "it vanished there", 5.0)


def test_who_waits_to_join_is_shown_and_then_its_admission() -> None:
    """A newcomer is not told of the loss of the process before it, nor are later ones: they would take it for lost."""
    job = started()
    lost(job, 1, 0, 10.0)
    assert job.wait(Candidate(hello(1, 1), "peer 9", 11.0), 11.0)[1] is None
    [waits] = job_status(job, 14.0).elastic.candidates
    assert (waits.rank, waits.worker, waits.peer, waits.waiting_seconds) == (1, "h1 pid 8", "peer 9", 3.0)
    assert [(loss.rank, loss.generation) for loss in job.losses(14.0)] == [(1, 0)]
    for rank in (0, 2, 3):
        job.admit(rank, pb.Admission(rank=1, generation=1, incarnation=111), 15.0)
    status = job_status(job, 16.0)
    assert (status.elastic.members, status.elastic.joins, status.elastic.changed_seconds) == (4, 1, 1.0)
    assert (list(status.elastic.lost), list(status.elastic.candidates)) == ([], [])
    assert [event.change for event in status.elastic.events] == [
        pb.MEMBERSHIP_CHANGE_ADMITTED,
        pb.MEMBERSHIP_CHANGE_WAITS,
        pb.MEMBERSHIP_CHANGE_LOST,
    ]
    assert [worker.generation for worker in status.workers] == [0, 1, 0, 0]
    assert job.losses(16.0) == []
    lost(job, 1, 1, 17.0)
    assert [(loss.rank, loss.generation) for loss in job.losses(18.0)] == [(1, 1)]


def test_an_aggregator_that_was_started_again_tells_of_no_earlier_processes() -> None:
    """A member comes back that was admitted. Nobody is told of the loss of the process before it.

    A process that is joining would take it for the loss of this one, which may be about to give it its state.
    """
    resuming = hello(2, 1)
    resuming.joining, resuming.resuming, resuming.generation = False, True, 3
    first = hello(0)
    first.resuming = True
    job = ElasticJob(first, LIMITS)
    assert job.join(first, "peer 0", 0.0) == ([], None)
    actions, refusal = job.join(resuming, "peer 2", 1.0)
    assert refusal is None
    assert not [action for action in actions if isinstance(action, TellLosses)]
    status = job_status(job, 2.0).elastic
    assert (status.losses, job.losses(2.0), job.members.generation(2)) == (0, [], 3)


def test_processes_of_one_aggregator_show_one_history() -> None:
    """All know of the same changes, except a process that was started again meanwhile. The fewest members count."""
    lost = pb.MembershipEvent(change=pb.MEMBERSHIP_CHANGE_LOST, rank=1, text="gone", seconds_ago=9)
    admitted = pb.MembershipEvent(change=pb.MEMBERSHIP_CHANGE_ADMITTED, rank=1, generation=1, seconds_ago=2)
    late = pb.MembershipEvent(change=pb.MEMBERSHIP_CHANGE_LOST, rank=1, text="gone", seconds_ago=8.9)
    waits = [pb.CandidateStatus(rank=4, waiting_seconds=seconds) for seconds in (3, 1)]
    merged = merged_elastic(
        [
            pb.ElasticStatus(
                members=4, losses=1, joins=1, events=[admitted, lost], candidates=waits[1:], changed_seconds=2
            ),
            pb.ElasticStatus(members=3, losses=1, lost=[1], events=[late], candidates=waits[:1], changed_seconds=8.9),
            pb.ElasticStatus(members=4),
        ]
    )
    assert (merged.members, merged.losses, merged.joins, merged.changed_seconds) == (3, 1, 1, 2)
    assert list(merged.events) == [admitted, lost]
    assert list(merged.candidates) == waits[:1]
    assert list(merged.lost) == [1]
