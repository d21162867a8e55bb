"""At an owner: a relay that vanishes is waited for as long as one of its workers says that it lives."""

from collections.abc import Iterable

import pytest

from psum.aggregator.core.elastic_job import ElasticJob
from psum.v1 import aggregator_pb2 as pb
from tests.aggregator.core.elastic import beat
from tests.aggregator.core.owner import hello, push, relay, started, told, two_groups


def vouch(job: ElasticJob, *ranks: int, now: float, incarnation: int | None = None) -> list[pb.Standing.ValueType]:
    """Some ranks say past their relays that they live."""
    return [job.members.vouch(rank, incarnation or 100 + rank, now) for rank in ranks]


def lost_at(job: ElasticJob, start: float, stop: float, alive: Iterable[int] = ()) -> float | None:
    """When somebody is lost; None: nobody is. Some ranks say each second that they live."""
    for quarter in range(1, round(4 * (stop - start)) + 1):
        now = start + quarter / 4
        beat(job, now)
        if quarter % 4 == 0:
            vouch(job, *alive, now=now)
        if told(job.tick(now)):
            return now
    return None


def begun() -> tuple[ElasticJob, int, int]:
    """Two groups of two that have contributed, and whose workers have been heard."""
    job, one, two = two_groups()
    push(job, one, of=2)
    assert vouch(job, 0, 1, 2, 3, now=1.0) == [pb.STANDING_PRESENT] * 4
    assert lost_at(job, 0.0, 10.0) is None
    return job, one, two


def test_a_relay_and_all_of_its_workers_are_lost_soon() -> None:
    """None of the workers says that it lives."""
    job, one, _two = begun()
    job.lost(one, 10.0, closed=True)
    assert lost_at(job, 10.0, 60.0) == 15.25
    assert job.members.is_lost(one)
    assert job.members.roster.known == (2, 3)


def test_a_silent_relay_has_twice_as_long() -> None:
    """Its host may be gone, or the relay alone is stopped: its workers notice that some seconds later."""
    job, one, two = begun()
    for now in (each / 4 for each in range(41, 200)):
        job.workers[two].last_heard = now
        if told(job.tick(now)):
            break
    assert (now, job.members.is_lost(one)) == (20.25, True)


def test_the_place_of_a_relay_is_kept_while_one_of_its_workers_lives() -> None:
    """The others of its group may have ended: the relay says so when it is back."""
    job, one, _two = begun()
    job.lost(one, 10.0, closed=True)
    assert lost_at(job, 10.0, 30.0, alive=[1]) is None
    assert vouch(job, 1, now=30.0) == [pb.STANDING_AWAITED]
    _, refusal = job.join(relay(0, 1, resuming=True), "peer", 30.0)
    assert refusal is None
    assert vouch(job, 1, now=30.5) == [pb.STANDING_PRESENT]
    assert lost_at(job, 30.0, 60.0) is None


def test_when_the_last_worker_ends_the_relay_is_lost_soon_after() -> None:
    """The time begins with what was heard last."""
    job, one, _two = begun()
    job.lost(one, 10.0, closed=True)
    assert lost_at(job, 10.0, 18.0, alive=[0, 1]) is None
    assert lost_at(job, 18.0, 60.0) == 23.25


def test_a_relay_that_does_not_come_back_is_lost_although_its_workers_live() -> None:
    """They wait for it for as long."""
    job, one, _two = begun()
    job.lost(one, 10.0, closed=True)
    assert lost_at(job, 10.0, 60.0, alive=[0, 1]) == 40.25


def test_the_silence_of_a_worker_that_was_never_heard_means_nothing() -> None:
    """The network may forbid it to talk to an owner. So the place is kept for long."""
    job, one, _two = two_groups()
    vouch(job, 1, 2, 3, now=1.0)
    assert lost_at(job, 0.0, 10.0) is None
    job.lost(one, 10.0, closed=True)
    assert lost_at(job, 10.0, 60.0) == 40.25


def test_the_silence_of_a_worker_that_was_heard_long_ago_means_nothing() -> None:
    """One that can be heard tells once a minute that it lives. The network may have changed since."""
    job, one, _two = begun()
    assert lost_at(job, 10.0, 182.0, alive=[0, 2, 3]) is None
    job.lost(one, 182.0, closed=True)
    assert lost_at(job, 182.0, 300.0) == 212.25


def test_what_another_process_of_the_rank_said_does_not_count() -> None:
    """It may have been on another host."""
    job, [one, _two] = started(relay(0, 1), relay(2, 3))
    assert vouch(job, 0, incarnation=7, now=1.0) == [pb.STANDING_UNSPECIFIED]
    vouch(job, 1, now=1.0)
    job.lost(one, 2.0, closed=True)
    assert lost_at(job, 2.0, 60.0) == 32.25


@pytest.mark.parametrize("rank", [2, 5, 1 << 20])
def test_only_processes_behind_relays_have_a_standing(rank: int) -> None:
    """A worker without a relay has a stream of its own."""
    job, _ = started(relay(0, 1), hello(2))
    assert vouch(job, rank, now=1.0) == [pb.STANDING_UNSPECIFIED]


def test_a_lost_process_has_no_standing() -> None:
    """It hears that it is excluded from its relay."""
    job, one, _ = begun()
    job.learn_losses(one, [pb.Loss(rank=1, text="it vanished")], 10.0)
    assert vouch(job, 0, 1, now=10.0) == [pb.STANDING_PRESENT, pb.STANDING_UNSPECIFIED]


def test_a_rank_that_was_lost_before_is_not_waited_for() -> None:
    """Only those that are left can say that they live."""
    job, [one, _two] = started(relay(0, 1), relay(2, 3))
    vouch(job, 1, now=1.0)
    job.learn_losses(one, [pb.Loss(rank=0, text="it vanished")], 2.0)
    job.lost(one, 2.0, closed=True)
    assert lost_at(job, 2.0, 60.0) == 7.25


def test_without_a_view_nobody_is_lost() -> None:
    """The network between the hosts is cut: no member reaches all aggregators."""
    job, one, two = begun()
    job.lost(one, 10.0, closed=True)
    job.reaches(two, 11.0, all_of_them=False)
    assert lost_at(job, 10.0, 100.0) is None


def test_a_pause_of_the_owner_is_no_silence_of_workers() -> None:
    """What they have said meanwhile has not been read."""
    job, one, _two = begun()
    job.lost(one, 10.0, closed=True)
    assert lost_at(job, 10.0, 12.0, alive=[0, 1]) is None
    assert told(job.tick(50.0)) == []
    assert lost_at(job, 50.0, 54.0) is None
    assert lost_at(job, 54.0, 60.0) == 55.25
