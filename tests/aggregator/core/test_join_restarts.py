"""Processes and aggregators that are started again, in an elastic job that others have joined."""

import pytest

from psum.aggregator.core.actions import EndStreams
from psum.aggregator.core.elastic_job import ElasticJob
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import DisagreementError, ExcludedError
from tests.aggregator.core.elastic import LIMITS, add_up, faults, hello, loss, push, started, tick, told
from tests.aggregator.core.joining import ELASTIC, NEW, admission, admit, admitted, begun, candidate, lost, waits
from tests.aggregator.keys import declare

# First hellos of processes that do not ask to join.


def test_a_first_hello_without_joining_is_refused_if_the_rank_takes_no_part() -> None:
    """A restarted pod has the same environment. The code EXCLUDED tells its client to ask to join."""
    job = begun()
    lost(job, 1)
    job.leave(2, 20.0)
    for rank, why in ((1, "was lost"), (2, "was left by another process"), (3, "was not among the 3 first ranks")):
        _, refusal = job.join(hello(rank, incarnation=5, elastic=ELASTIC), "peer", 21.0)
        assert isinstance(refusal, ExcludedError)
        assert why in str(refusal)
        assert "PSUM_JOIN=1" in str(refusal)
    assert job.failure is None


def test_a_new_process_with_other_settings_does_not_end_a_job_that_has_begun() -> None:
    """While a rank is lost or awaited, anybody may come."""
    job = begun(range(2), 5, resuming=True)
    _, refusal = job.join(hello(2, partition_bytes=77, elastic=ELASTIC), "peer", 1.0)
    assert isinstance(refusal, DisagreementError)
    assert job.failure is None
    job = begun(range(2))
    _, refusal = job.join(hello(2, partition_bytes=77, elastic=ELASTIC), "peer", 1.0)
    assert job.failure is refusal


# An aggregator that is started again.


def test_a_restarted_aggregator_learns_newcomers_from_members() -> None:
    """It waits for them, whether the join is complete or not."""
    job = started([0], resuming=True, elastic=ELASTIC)
    again = hello(1, resuming=True, elastic=ELASTIC, losses=[loss(2)], admissions=[admission(2, 1), admission(3, 0)])
    assert job.join(again, "peer", 0.0)[1] is None
    assert job.members.roster.known == (0, 1, 2, 3)
    # Those who come back by themselves wait for nobody's word.
    for rank, generation in ((2, 1), (3, 0)):
        newcomer = hello(rank, incarnation=NEW + rank, generation=generation, resuming=True, elastic=ELASTIC)
        assert job.join(newcomer, "peer", 1.0)[1] is None
    for rank in range(4):
        declare(job, rank, 8)
    for rank in range(3):
        assert push(job, rank, 8) == []
    [action] = push(job, 3, 8)
    assert add_up(job, action).contributors == 4


def test_an_earlier_admission_that_is_heard_late_does_not_hide_the_present_one() -> None:
    """A hello lists them by rank. The rounds are those of the one that is not complete."""
    job = started([0], resuming=True, elastic=ELASTIC)
    earlier = pb.Admission(rank=3, generation=0, incarnation=NEW + 3)
    waits(job, candidate(1, 1.0))
    again = hello(2, resuming=True, elastic=ELASTIC, losses=[loss(1)], admissions=[admission(1, 1, round=8), earlier])
    assert job.join(again, "peer", 1.0)[1] is None
    lost(job, 3)
    declare(job, 0, 7)
    declare(job, 2, 7)
    push(job, 0, 7)
    [action] = push(job, 2, 7)
    assert add_up(job, action).contributors == 2
    assert admitted(admit(job, 0, admission(1, 1, round=8))) == [1]
    message = job.admission(1)
    assert message is not None
    assert list(message.rounds) == [8]


def test_a_newcomer_may_be_the_first_to_come_back() -> None:
    """What it says of itself is its admission. Old processes of its rank are out."""
    newcomer = hello(1, incarnation=9, generation=2, resuming=True, elastic=ELASTIC)
    job = ElasticJob(newcomer, LIMITS)
    assert job.join(newcomer, "peer", 0.0)[1] is None
    assert job.members.generation(1) == 2
    _, refusal = job.join(hello(1, resuming=True, elastic=ELASTIC), "peer", 1.0)
    assert isinstance(refusal, ExcludedError)
    further = hello(4, incarnation=9, resuming=True, elastic=ELASTIC)
    assert job.join(further, "peer", 1.0)[1] is None
    assert job.members.roster.known == (0, 1, 2, 4)


def test_a_process_that_comes_first_and_was_lost_gives_way_to_its_successor() -> None:
    """What the stopped process had declared is forgotten."""
    job = begun([1], 3, resuming=True)
    actions, refusal = job.join(hello(0, resuming=True, elastic=ELASTIC, admissions=[admission(1, 1)]), "peer", 1.0)
    assert refusal is None
    assert [type(fault) for fault in faults(actions)] == [ExcludedError]
    assert any(isinstance(action, EndStreams) for action in actions)
    newcomer = hello(1, incarnation=NEW + 1, generation=1, resuming=True, elastic=ELASTIC)
    assert job.join(newcomer, "peer", 1.0)[1] is None
    for rank in (0, 1):
        assert declare(job, rank, 8) == []


def test_a_newcomer_does_not_count_as_one_that_began_anew() -> None:
    """Its rounds are those of the others, though it has not been here before."""
    job = started([0], resuming=True, elastic=ELASTIC)
    waits(job, candidate(1, 1.0))
    for rank in (0, 2):
        again = hello(rank, resuming=True, elastic=ELASTIC, losses=[loss(1)], admissions=[admission(1, 1, round=8)])
        actions, refusal = job.join(again, "peer", 1.0)
        assert refusal is None
    assert admitted(actions) == [1]
    assert declare(job, 1, 8) == []
    assert declare(job, 0, 8) == []
    assert job.members.roster.members == (0, 1, 2)


def test_an_aggregator_that_drains_loses_nobody_by_time() -> None:
    """Those whose streams break, and newcomers, wait for its next process."""
    job = begun()
    push(job, 1)
    job.drain()
    job.lost(1, 10.0, closed=True)
    admit(job, 0, admission(3, 0))
    assert told(tick(job, 100.0)) == []
    assert told(lost(job, 1)) == [([1], (2,))]


def told_of_all(count: int) -> ElasticJob:
    """An aggregator that was started again, to which so many of three ranks have come back, all of which had joined
    later. Each says so of all of them."""
    others = [admission(rank, 1) for rank in range(3)]
    hellos = [
        hello(rank, incarnation=NEW + rank, generation=1, resuming=True, elastic=ELASTIC, admissions=others)
        for rank in range(count)
    ]
    job = ElasticJob(hellos[0], LIMITS)
    for each in hellos:
        assert job.join(each, f"peer {each.rank}", 0.0)[1] is None
    return job


@pytest.mark.parametrize(("back", "seconds"), [(2, 5), (1, 10)])
def test_a_process_that_had_joined_later_has_as_long_to_come_back_as_any_other(back: int, seconds: float) -> None:
    """How long that is depends on how many are missed, and not on how many had yet to come when the first one came."""
    job = told_of_all(back)
    missed, here = list(range(back, 3)), tuple(range(back))
    assert told(tick(job, seconds - 0.1)) == []
    assert [loss.reason for loss in job.members.due(seconds + 0.1)] == ["not back"] * len(missed)
    assert told(tick(job, seconds + 0.1)) == [(missed, here)]


def test_a_process_that_had_joined_later_is_lost_only_with_a_view_for_as_long_as_any_other() -> None:
    """After a cut of the network it has as much time to come back as if the aggregator was started then."""
    job = told_of_all(2)
    for rank in range(2):
        job.reaches(rank, 1.0, all_of_them=False)
    assert told(tick(job, 30.0)) == []
    job.reaches(0, 40.0, all_of_them=True)
    assert told(tick(job, 44.9)) == []
    assert told(tick(job, 45.1)) == [([2], (0, 1))]
