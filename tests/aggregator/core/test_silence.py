"""A connected worker of an elastic job is lost when it alone is silent."""

from typing import Final

import pytest

from psum.aggregator.core.actions import Action, Report, ReturnCredit, Sum, TellLosses
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.limits import Limits
from psum.v1 import aggregator_pb2 as pb
from psum.wire import PROTOCOL_VERSION, ShardRound
from psum.wire.errors import ExcludedError
from tests.aggregator.keys import key

TICK: Final = 0.25


@pytest.fixture
def job() -> ElasticJob:
    """A job of three ranks that have joined at time 0."""
    made: ElasticJob | None = None
    for rank in range(3):
        hello = pb.Hello(protocol_version=PROTOCOL_VERSION, job="night", rank=rank, num_workers=3, incarnation=rank + 1)
        hello.partition_bytes, hello.worker, hello.elastic.min, hello.elastic.max = 1024, f"h{rank} pid 7", 1, 3
        made = made or ElasticJob(hello, Limits(elastic_timeout=5, elastic_closed_timeout=1, warn_after=30))
        assert made.join(hello, f"peer {rank}", 0.0) == ([], None)
    assert made is not None
    return made


def run(job: ElasticJob, start: float, stop: float, *heard: int) -> tuple[list[Action], float]:
    """Ticks until something happens or a time comes. Of these ranks a message comes each second."""
    now = start
    while now < stop:
        now += TICK
        if now % 1 == 0:
            for rank in heard:
                job.workers[rank].last_heard = now
        actions: list[Action] = [action for action in job.tick(now) if not isinstance(action, ReturnCredit)]
        if actions:
            return actions, now
    return [], now


def lost(actions: list[Action]) -> list[int]:
    return [loss.rank for action in actions if isinstance(action, TellLosses) for loss in action.losses]


def test_a_silent_worker_is_lost_although_its_connection_is_open(job: ElasticJob) -> None:
    """It is lost after the time-out, its round is summed, and it is told so, in case it can hear that."""
    for rank in range(3):
        job.declare(rank, key(), 0.0)
    for rank in (0, 2):
        job.contribute(rank, ShardRound(id=7, length=4), memoryview(bytes(4)), 0.0)
    actions, now = run(job, 0.0, 60.0, 0, 2)
    assert 5 < now <= 5 + TICK
    assert lost(actions) == [1]
    [report] = [action for action in actions if isinstance(action, Report)]
    assert (type(report.fault), report.ranks) == (ExcludedError, (1,))
    assert "h1 pid 7 (peer 1) was silent for 5.2 s, although its connection to an aggregator is open" in str(
        report.fault
    )
    assert [len(action.contributions) for action in actions if isinstance(action, Sum)] == [2]


def test_workers_that_send_now_and_then_stay(job: ElasticJob) -> None:
    """They need not contribute."""
    assert run(job, 0.0, 60.0, 0, 1, 2)[0] == []


def test_the_silence_of_all_is_that_of_this_side(job: ElasticJob) -> None:
    """If nobody is heard, this side's network is cut. When it works again, each worker has the time to be heard."""
    assert run(job, 0.0, 60.0)[0] == []
    assert run(job, 60.0, 62.5, 0)[0] == []
    assert run(job, 62.5, 90.0, 0, 1, 2)[0] == []


def test_a_pause_of_the_aggregator_is_no_silence_of_its_workers(job: ElasticJob) -> None:
    """When it continues, what they have sent meanwhile has not been read yet."""
    run(job, 0.0, 2.0, 0, 1, 2)
    assert job.tick(100.0) == []
    actions, now = run(job, 100.0, 160.0, 0, 2)
    assert (lost(actions), 104 < now <= 105 + TICK) == ([1], True)


def test_a_pause_of_the_aggregator_does_not_count_for_a_worker_whose_stream_was_closed(job: ElasticJob) -> None:
    """It may have come back meanwhile. It has the rest of its time when the aggregator continues."""
    run(job, 0.0, 2.0, 0, 1, 2)
    job.workers[1].contributed = True
    job.lost(1, 2.0, closed=True)
    assert run(job, 2.0, 2.5, 0, 2)[0] == []
    assert job.tick(100.0) == []
    actions, now = run(job, 100.0, 160.0, 0, 2)
    assert (lost(actions), 100.5 < now <= 100.5 + 2 * TICK) == ([1], True)


def test_a_pause_of_the_aggregator_does_not_count_for_one_that_has_not_come_back(job: ElasticJob) -> None:
    """It was started again, and stopped before all were back."""
    again = ElasticJob(job.members.first, Limits(elastic_timeout=5, elastic_closed_timeout=1, warn_after=30))
    for rank in (0, 2):
        hello = pb.Hello()
        hello.CopyFrom(job.workers[rank].hello)
        hello.resuming = True
        assert again.join(hello, f"peer {rank}", 0.0) == ([], None)
    run(again, 0.0, 2.0, 0, 2)
    assert again.tick(100.0) == []
    actions, now = run(again, 100.0, 160.0, 0, 2)
    assert (lost(actions), 103 < now <= 103 + 2 * TICK) == ([1], True)


def test_a_silent_worker_stays_while_those_who_are_heard_do_not_reach_all_aggregators(job: ElasticJob) -> None:
    """Its network may be one half, and this aggregator's the other. What a silent worker has said earlier is old.

    When the network works again, it has two beats to be heard.
    """
    job.members.reaches(0, 0.0, all_of_them=False)
    job.members.reaches(2, 0.0, all_of_them=False)
    assert run(job, 0.0, 60.0, 0, 2)[0] == []
    job.members.reaches(2, 60.0, all_of_them=True)
    assert run(job, 60.0, 61.9, 0, 2)[0] == []
    assert lost(run(job, 61.9, 62.5, 0, 2)[0]) == [1]


def test_the_silence_before_a_stream_was_given_up_counts(job: ElasticJob) -> None:
    """A keepalive probe that finds a silent worker before the time-out does not give it more time."""
    run(job, 0.0, 3.0, 0, 2)
    job.lost(1, 3.0, closed=False)
    actions, now = run(job, 3.0, 60.0, 0, 2)
    assert (lost(actions), 5 < now <= 5 + TICK) == ([1], True)


@pytest.mark.parametrize(
    ("silence", "keepalive", "closed"),
    [(0.9, 10.0, True), (4.0, 10.0, True), (1.2, 1.0, True), (2.0, 1.0, False)],
)
def test_what_ends_between_two_signs_of_life_was_closed(
    job: ElasticJob, silence: float, keepalive: float, closed: bool
) -> None:
    """Probes take longer to find a silent worker: the keepalive, and as long again without an answer."""
    assert job.members.was_closed(job.workers[1], silence, keepalive) is closed


@pytest.mark.parametrize(
    ("contributed", "resuming", "seconds"), [(False, False, 5), (True, False, 1), (False, True, 1)]
)
def test_the_place_of_a_process_that_ended_is_kept_if_it_can_be_replaced(
    job: ElasticJob, contributed: bool, resuming: bool, seconds: float
) -> None:
    """A process that has taken part in nothing may be replaced by another one, which begins with the first round."""
    worker = job.workers[1]
    worker.contributed, worker.hello.resuming = contributed, resuming
    job.lost(1, 0.0, closed=True)
    actions, now = run(job, 0.0, 60.0, 0, 2)
    assert (lost(actions), seconds < now <= seconds + TICK) == ([1], True)


def test_a_worker_that_has_left_may_be_silent(job: ElasticJob) -> None:
    """It waits for its farewell, or has ended."""
    job.leave(1, 0.0)
    job.workers[1].left = True
    assert lost(run(job, 0.0, 20.0, 0, 2)[0]) == []
