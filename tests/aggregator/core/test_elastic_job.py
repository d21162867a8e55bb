"""An elastic job goes on without lost ranks, and counts who has contributed to each result."""

from typing import Any

import pytest

from psum.aggregator.core.actions import Action, Deliver, Release, Sum, TellLosses, Warn
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.job import Job
from psum.aggregator.core.registry import Registry
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import (
    DisagreementError,
    ExcludedError,
    InvalidError,
    ProtocolError,
    RoundTimeoutError,
    TakenError,
    WorkerLostError,
)
from tests.aggregator.core.elastic import (
    LIMITS,
    add_up,
    begun,
    faults,
    hello,
    loss,
    push,
    silence,
    started,
    sums,
    tick,
    told,
)
from tests.aggregator.keys import declare


def test_a_round_that_misses_only_a_lost_rank_is_summed_without_it() -> None:
    """The others have contributed and wait; the loss completes the round, and the result counts two ranks."""
    job = begun()
    assert push(job, 2) == []
    assert push(job, 0) == []
    actions = silence(job, 1)
    assert told(actions) == [([1], (0, 2))]
    [warning] = [action for action in actions if isinstance(action, Warn)]
    assert warning.ranks == (0, 2)
    assert "rank 1 of job 'night' is lost" in warning.text
    assert "goes on with 2 of 3 ranks" in warning.text
    [action] = sums(actions)
    assert action.contributors == 2
    result = add_up(job, action)
    assert (result.result, result.contributors, result.ranks) == (bytes([5] * 4), 2, (0, 2))
    # Who is told first can tell others before the result that needs it.
    assert actions.index(action) > actions.index(next(a for a in actions if isinstance(a, TellLosses)))


def test_later_rounds_do_not_wait_for_a_lost_rank() -> None:
    """The last contribution of those who are left completes the round."""
    job = begun()
    assert sums(silence(job, 0)) == []
    assert push(job, 1) == []
    [action] = push(job, 2)
    assert add_up(job, action).contributors == 2


def test_what_a_rank_contributed_before_it_was_lost_counts() -> None:
    """It is in the sum, in rank order, and does not replace the contribution of another rank."""
    job = begun()
    assert push(job, 1) == []
    assert sums(silence(job, 1)) == []
    assert push(job, 2) == []
    [action] = push(job, 0)
    assert isinstance(action, Sum)
    assert [bytes(each)[0] for each in action.contributions] == [1, 2, 4]
    result = add_up(job, action)
    assert (result.result, result.contributors) == (bytes([7] * 4), 0)
    assert push(job, 0, 1) == []
    [action] = push(job, 2, 1)
    assert add_up(job, action).contributors == 2


def test_a_result_is_repeated_with_its_count() -> None:
    """A rank that did not receive a result gets the same bytes and the same count, also after a later loss."""
    job = begun()
    assert sums(silence(job, 1)) == []
    push(job, 0)
    [action] = push(job, 2)
    add_up(job, action)
    assert push(job, 0, 1) == []
    [again] = push(job, 2)
    assert isinstance(again, Deliver)
    assert (again.round, again.result, again.contributors, again.ranks) == (0, bytes([5] * 4), 2, (2,))


def test_nothing_more_counts_of_a_lost_rank() -> None:
    """What arrives late from a lost process is ignored, and its process is told why."""
    job = begun()
    push(job, 0)
    actions = job.learn_losses(0, [loss(1)], 3.0)
    [fault] = faults(actions)
    assert isinstance(fault, ExcludedError)
    assert fault.ranks == (1,)
    assert fault.key is None
    assert "excluded 2.0 s ago: it vanished elsewhere" in str(fault)
    assert push(job, 1) == []
    assert declare(job, 1) == []
    assert job.leave(1, 4.0) == []
    [action] = push(job, 2)
    assert add_up(job, action).result == bytes([5] * 4)


def test_a_closed_connection_is_noticed_sooner() -> None:
    """A worker that took part, and whose process has ended, is lost after the shorter time."""
    job = begun()
    push(job, 1)
    job.lost(1, 10.0, closed=True)
    assert tick(job, 10.9) == []
    assert told(tick(job, 11.1)) == [([1], (0, 2))]


def test_a_process_that_comes_back_in_time_goes_on() -> None:
    """A broken connection alone loses nobody."""
    job = begun()
    push(job, 1)
    job.lost(1, 10.0, closed=True)
    assert job.join(hello(1, resuming=True), "peer", 10.8) == ([], None)
    assert tick(job, 20.0) == []
    assert not job.members.losses


def test_a_lost_process_that_comes_back_is_refused() -> None:
    """It learns since when it is excluded, and why; the others notice nothing."""
    job = begun()
    silence(job, 1)
    actions, refusal = job.join(hello(1, resuming=True), "peer 1", 20.0)
    assert actions == []
    assert isinstance(refusal, ExcludedError)
    assert "rank 1 of elastic job 'night' was excluded 4.9 s ago: h1 pid 7 (peer 1) vanished" in str(refusal)
    assert "start a new process in its place" in str(refusal)
    assert job.failure is None


def test_a_new_process_for_a_lost_rank_that_does_not_ask_to_join_is_refused() -> None:
    """It is told that it is excluded, from which a client sees that it must ask to join."""
    job = begun()
    silence(job, 1)
    actions, refusal = job.join(hello(1, incarnation=9), "peer", 20.0)
    assert actions == []
    assert isinstance(refusal, ExcludedError)
    assert "was lost 4.9 s ago (h1 pid 7 (peer 1) vanished" in str(refusal)
    assert "It can join the job (PSUM_JOIN=1)" in str(refusal)


def test_a_process_that_comes_in_the_place_of_another_makes_it_lost() -> None:
    """Nobody waits for the old process any more, so the rank is lost at once, and the job does not fail."""
    job = begun()
    push(job, 1)
    job.lost(1, 10.0)
    actions, refusal = job.join(hello(1, incarnation=9, age_seconds=0.1), "peer", 11.0)
    assert isinstance(refusal, TakenError)
    assert actions == []
    assert told(tick(job, 11.1)) == [([1], (0, 2))]
    assert job.failure is None


def test_workers_tell_of_losses() -> None:
    """A loss that another aggregator has decided counts here at once, is passed on to those who may not know it, and
    only once."""
    job = begun()
    push(job, 0)
    push(job, 2)
    actions = job.learn_losses(0, [loss(1)], 3.0)
    assert told(actions) == [([1], (2,))]
    [action] = sums(actions)
    assert add_up(job, action).contributors == 2
    assert job.learn_losses(2, [loss(1)], 3.0) == []
    assert [(each.rank, each.text, each.seconds_ago) for each in job.losses(5.0)] == [(1, "it vanished elsewhere", 4.0)]


def test_aggregators_that_decide_differently_come_to_the_same() -> None:
    """Each has lost another rank; when each hears of the other's decision, both have lost both."""
    one, other = begun(), begun()
    one.learn_losses(0, [loss(1)], 3.0)
    other.learn_losses(0, [loss(2)], 3.0)
    one.learn_losses(0, [loss(2)], 4.0)
    other.learn_losses(0, [loss(1)], 4.0)
    assert one.members.roster.members == other.members.roster.members == (0,)
    assert one.failure is other.failure is None


def test_a_loss_that_makes_no_sense_is_refused() -> None:
    """Ranks outside of the job are none of its losses, and a job that is not elastic has none."""
    job = begun()
    with pytest.raises(ProtocolError, match="not in the job"):
        job.learn_losses(0, [loss(3)], 3.0)
    plain = Job(hello(0), LIMITS)
    with pytest.raises(ProtocolError, match="not elastic"):
        plain.learn_losses(0, [loss(1)], 3.0)


def test_below_the_minimum_rounds_wait_and_then_say_so() -> None:
    """With too few ranks no round is summed, and it fails after the round timeout with the numbers."""
    job = begun(elastic=pb.Elastic(min=2, max=3))
    actions = job.learn_losses(0, [loss(1), loss(2)], 3.0)
    assert "1 of 3 ranks are left, and rounds need 2" in str([a for a in actions if isinstance(a, Warn)][-1].text)
    assert push(job, 0, now=4.0) == []
    assert faults(tick(job, 600.0)) == []
    [fault] = faults(tick(job, 605.0))
    assert isinstance(fault, RoundTimeoutError)
    assert "1 of 3 ranks are left, and an elastic job that needs 2 (PSUM_ELASTIC) goes on with no fewer" in str(fault)
    assert "Ranks 1-2 are lost" in str(fault)
    assert fault.ranks == (1, 2)
    assert job.failure is None


def test_a_round_that_is_being_summed_ends_below_the_minimum() -> None:
    """Its contributions were all there. Only the next round waits."""
    job = begun(elastic=pb.Elastic(min=3, max=3))
    push(job, 0)
    push(job, 1)
    [action] = push(job, 2)
    job.learn_losses(0, [loss(1)], 3.0)
    job.check()
    assert add_up(job, action).contributors == 0
    push(job, 0, 1)
    assert push(job, 2, 1) == []


def test_when_all_are_lost_the_job_ends() -> None:
    """Nobody is left who could go on."""
    job = begun()
    actions = job.learn_losses(0, [loss(rank) for rank in range(3)], 3.0)
    fault = faults(actions)[-1]
    assert isinstance(fault, WorkerLostError)
    assert fault.ranks == (0, 1, 2)
    for rank in range(3):
        job.lost(rank, 3.0)
    assert job.over


def test_a_worker_that_ends_for_a_reason_of_its_own_is_lost_at_once() -> None:
    """It may go, and the others go on without waiting for a time-out. They learn its reason."""
    job = begun()
    push(job, 0)
    push(job, 1)
    fault = WorkerLostError("rank 2 was told to end", ranks=[2])
    actions = job.leave_early(2, pb.Goodbye(fault=fault.to_message()), 3.0)
    job.check()
    assert faults(actions) == []
    assert actions[-1] == Release(2)
    assert [action.contributors for action in sums(actions)] == [2]
    assert any("rank 2 was told to end" in a.text for a in actions if isinstance(a, Warn))


def test_a_failure_of_the_job_elsewhere_ends_it_here() -> None:
    """A goodbye with a fault that is not about its sender ends the job, as in any job."""
    job = begun()
    fault = DisagreementError("ranks disagree", ranks=[0, 2])
    job.leave_early(1, pb.Goodbye(fault=fault.to_message()), 3.0)
    assert isinstance(job.failure, DisagreementError)


def test_rounds_do_not_wait_for_ranks_that_have_left() -> None:
    """A rank that leaves in order completes the rounds that wait only for it, and later ones count one rank less."""
    job = begun()
    push(job, 0)
    push(job, 1)
    [last] = sums(job.leave(2, 3.0))
    assert add_up(job, last).contributors == 2
    push(job, 0, 1)
    [action] = push(job, 1, 1)
    assert add_up(job, action).contributors == 2


def test_too_few_ranks_because_others_have_left_is_an_error_at_once() -> None:
    """Nobody replaces those who have left in good order."""
    job = begun(elastic=pb.Elastic(min=3, max=3))
    push(job, 0)
    [fault] = faults(job.leave(2, 3.0))
    assert isinstance(fault, WorkerLostError)
    assert fault.ranks == (2,)


def test_a_job_is_over_when_the_others_have_left() -> None:
    """A lost rank keeps no job alive, and nobody who leaves waits for it."""
    job = begun()
    silence(job, 1)
    released: list[Action] = [*job.leave(0, 20.0), *job.synced(2, 0, 20.0), *tick(job, 20.1)]
    released += [*job.leave(2, 20.2), *tick(job, 20.3)]
    assert {action.rank for action in released if isinstance(action, Release)} == {0, 2}
    for rank in (0, 2):
        job.lost(rank, 21.0)
    assert job.over
    assert job.failure is None


def test_a_rank_that_never_joined_here_may_be_lost_elsewhere() -> None:
    """The job is complete without it."""
    job = started(range(2))
    declare(job, 0)
    declare(job, 1)
    push(job, 0)
    assert push(job, 1) == []
    [action] = sums(job.learn_losses(0, [loss(2)], 3.0))
    assert add_up(job, action).contributors == 2


def test_a_registry_makes_an_elastic_job_only_for_an_elastic_hello() -> None:
    """Other jobs are as they were."""
    for elastic, kind in ((pb.Elastic(min=1, max=3), ElasticJob), (None, Job)):
        job, _, refusal = Registry(LIMITS).join(hello(0, elastic=elastic), "peer", 0.0)
        assert refusal is None
        assert type(job) is kind


def test_ranks_agree_on_the_minimum() -> None:
    """The fault shows both sides."""
    job = started([0])
    _, refusal = job.join(hello(1, elastic=pb.Elastic(min=2, max=3)), "peer", 0.0)
    assert isinstance(refusal, DisagreementError)
    assert "rank 0 has 1:3, rank 1 has 2:3" in str(refusal)
    job = started([0])
    _, refusal = job.join(hello(1, elastic=None), "peer", 0.0)
    assert "rank 0 has 1:3, rank 1 has nothing" in str(refusal)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"elastic": pb.Elastic(min=0, max=3)}, "an elastic job of 0 to 3 ranks"),
        ({"elastic": pb.Elastic(min=4, max=3)}, "an elastic job of 4 to 3 ranks"),
        ({"elastic": pb.Elastic(min=1, max=2)}, "an elastic job of 1 to 2 ranks that begins with 3"),
        ({"elastic": pb.Elastic(min=1, max=5000)}, "at most 4096"),
        ({"ranks": [0, 1]}, "2 ranks of an elastic job, with 0 processes and 0 generations"),
        ({"ranks": [0, 1], "incarnations": [5, 0], "generations": [0, 0]}, "expected a process and a generation"),
        ({"losses": [pb.Loss(rank=3)]}, "none of 3"),
    ],
)
def test_a_hello_that_makes_no_sense_is_refused(change: dict[str, Any], text: str) -> None:
    """Each is refused with an error that says what was expected."""
    _, _, refusal = Registry(LIMITS).join(hello(0, **change), "peer", 0.0)
    assert isinstance(refusal, InvalidError)
    assert text in str(refusal)
