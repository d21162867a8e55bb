"""Processes that join an elastic job at a relay, as the owners of shards see them."""

from collections.abc import Sequence

import pytest

from psum.aggregator.core.actions import Action, Admit, Decide, TellCandidates
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.registry import Registry
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ExcludedError, FaultError, InvalidError, ProtocolError, TakenError
from tests.aggregator.core.owner import (
    LIMITS,
    add_up,
    begun,
    hello,
    join,
    join_learning,
    loss,
    push,
    relay,
    started,
    told,
    two_groups,
)
from tests.aggregator.keys import declare

#: The process that joins as rank 1, or as rank 5.
SPARE = 900


def waiting(*processes: tuple[int, int], age: float = 1.0) -> list[pb.Candidate]:
    return [pb.Candidate(rank=rank, incarnation=number, worker="spare", age_seconds=age) for rank, number in processes]


def admission(rank: int = 1, generation: int = 1, **rounds: int) -> pb.Admission:
    numbers = {int(name.removeprefix("key")): round for name, round in rounds.items()}
    return pb.Admission(
        rank=rank, generation=generation, incarnation=SPARE, ids=numbers.keys(), rounds=numbers.values()
    )


def reported(actions: Sequence[Action]) -> list[tuple[list[int], tuple[int, ...]]]:
    """The ranks of the candidates that are told of, with those who are told."""
    return [([each.rank for each in a.candidates], a.ranks) for a in actions if isinstance(a, TellCandidates)]


def let_in(actions: Sequence[Action]) -> list[tuple[int, int, int]]:
    """Relays that are told that a process is one of their ranks, with the rank and the generation."""
    return [
        (a.rank, a.decision.rank, a.decision.admission.generation)
        for a in actions
        if isinstance(a, Decide) and not a.decision.HasField("fault")
    ]


def refused(actions: Sequence[Action]) -> list[FaultError]:
    return [
        FaultError.from_message(a.decision.fault)
        for a in actions
        if isinstance(a, Decide) and a.decision.HasField("fault")
    ]


def with_a_gap() -> tuple[ElasticJob, int, int]:
    """A job of two relays, whose rank 1 is lost."""
    job, one, two = two_groups()
    job.learn_losses(one, [loss(1)], 1.0)
    return job, one, two


def test_who_waits_at_a_relay_is_told_to_all_members() -> None:
    """To the relay too, which compares what its aggregators report. It says anew who waits."""
    job, one, two = with_a_gap()
    assert reported(job.wait_at(one, waiting((1, SPARE)), 2.0)) == [([1], (one, two))]
    assert job.wait_at(one, waiting((1, SPARE)), 2.0) == []
    assert reported(job.wait_at(one, waiting((1, SPARE), (5, 7)), 2.0)) == [([1, 5], (one, two))]
    assert reported(job.wait_at(one, [], 2.0))[-1] == ([], (one, two))
    assert job.candidates() == []
    job.wait_at(two, waiting((1, SPARE)), 2.0)
    assert reported(job.lost(two, 3.0)) == [([], (one,))]


def test_a_process_is_one_of_a_relay_when_all_members_have_admitted_it() -> None:
    """The member is the same, with a rank more; rounds of the admission on count it."""
    job, one, two = with_a_gap()
    job.wait_at(one, waiting((1, SPARE)), 2.0)
    assert let_in(job.admit(one, admission(key7=1), 2.0)) == []
    assert job.members.roster.known == (0, 1, 2, 3)
    # A round before the admission does not wait for it.
    push(job, one, of=1, value=1)
    assert add_up(job, push(job, two, of=2, value=2))[:3] == (bytes([3] * 4), 3, (one, two))
    assert let_in(job.admit(two, admission(key7=1), 2.0)) == [(one, 1, 1)]
    assert job.members.roster.members == (one, two)
    assert job.members.roster.ranks(one) == (0, 1)
    assert job.workers[one].processes == {0: (100, 0), 1: (SPARE, 1)}
    push(job, one, 1, of=2, value=1)
    assert add_up(job, push(job, two, 1, of=2, value=2))[:3] == (bytes([3] * 4), 0, (one, two))
    job.check()


def test_no_round_of_the_admission_is_complete_before_the_process_is_let_in() -> None:
    """Also if all members contribute: the relay does so only with the process, so this is a relay that is wrong."""
    job, one, two = with_a_gap()
    job.wait_at(one, waiting((1, SPARE)), 2.0)
    job.admit(one, admission(key7=0), 2.0)
    push(job, one, of=1)
    assert push(job, two, of=2) == []
    # The newcomer is lost at its relay before it is let in.
    assert add_up(job, job.learn_losses(one, [loss(1, 1)], 3.0))[1] == 3


def test_a_new_rank_joins_at_a_relay() -> None:
    """Results of its group then count more ranks than the job has begun with."""
    job, one, two = two_groups()
    job.wait_at(two, waiting((5, SPARE)), 2.0)
    for member in (one, two):
        actions = job.admit(member, admission(5, 0, key7=0), 2.0)
    assert let_in(actions) == [(two, 5, 0)]
    assert job.members.roster.known == (0, 1, 2, 3, 5)
    push(job, one, of=2)
    assert add_up(job, push(job, two, of=3))[1] == 5


def test_the_first_process_of_a_group_waits_as_any_other_one() -> None:
    """Its relay has no stream yet. The relay becomes a member with it, under a number of its own."""
    registry = Registry(LIMITS)
    job, _, _ = registry.join(hello(0, num_workers=1), "peer", 0.0)
    assert isinstance(job, ElasticJob)
    said = relay(processes={1: (SPARE, 0)}, num_workers=1, joining=True)
    candidate = Candidate(said, "peer", 1.0)
    actions, refusal = registry.wait(candidate, 1.0)
    assert refusal is None
    assert reported([action for _, action in actions]) == [([1], (0,))]
    assert job.admit(0, admission(1, 0), 2.0)[-1:] == [Admit(candidate)]
    member = said.rank
    assert job.members.roster.ranks(member) == (1,)
    assert job.members.roster.members == (0, member)
    told_of = job.admission(member)
    assert told_of is not None
    assert (told_of.rank, told_of.incarnation) == (1, SPARE)
    # Its welcome did not reach it, and it asks again.
    again = Candidate(relay(processes={1: (SPARE, 0)}, num_workers=1, joining=True), "peer", 3.0)
    actions, refusal = registry.wait(again, 3.0)
    assert [action for _, action in actions][-1:] == [Admit(again)]
    assert job.members.roster.members == (0, again.hello.rank)
    job.check()
    _, refusal = registry.wait(Candidate(relay(4, 5, num_workers=1, joining=True), "peer", 3.0), 3.0)
    assert isinstance(refusal, InvalidError)


def test_a_process_that_cannot_join_is_refused_through_its_relay() -> None:
    """Its rank is taken by another one that waits, or it is lost already."""
    job, one, two = with_a_gap()
    job.wait_at(one, waiting((1, SPARE)), 2.0)
    [fault] = refused(job.wait_at(two, waiting((1, 901)), 2.0))
    assert isinstance(fault, TakenError)
    # Rank 1 had process 101.
    [fault] = refused(job.wait_at(two, waiting((1, 101)), 2.0))
    assert isinstance(fault, ExcludedError)
    assert [each.rank for each in job.candidates()] == [1]
    for candidates in (waiting((9, 5)), waiting((1, 0))):
        with pytest.raises(ProtocolError, match="ranks 0-1 of job 'night' tells"):
            job.wait_at(one, candidates, 2.0)
    job, [_, worker] = started(relay(0, 1, 2), hello(3))
    with pytest.raises(ProtocolError, match="rank 3 of job 'night' tells that 1 processes wait"):
        job.wait_at(worker, waiting((5, SPARE)), 2.0)


def test_a_process_that_waits_for_too_long_is_refused_through_its_relay() -> None:
    """The program never comes to a boundary."""
    job, one, two = with_a_gap()
    job.wait_at(one, waiting((1, SPARE)), 2.0)
    for member in (one, two):
        job.workers[member].last_heard = 603.0
    [fault] = refused(job.tick(603.0))
    assert "the members have not admitted it" in str(fault)


# Failures meanwhile.


def test_a_process_that_ends_before_it_is_let_in_is_lost() -> None:
    """Its relay has noticed. All others go on."""
    job, one, two = with_a_gap()
    job.wait_at(one, waiting((1, SPARE)), 2.0)
    job.admit(one, admission(key7=0), 2.0)
    actions = job.learn_losses(one, [loss(1, 1)], 3.0)
    assert told(actions) == [([1], (two,))]
    assert [type(fault) for fault in refused(actions)] == [ExcludedError]
    assert job.members.roster.known == (0, 2, 3)


def test_a_relay_decides_again_on_each_new_stream() -> None:
    """It has not let the process in, as another owner has not decided, and says that it still waits."""
    job, one, two = with_a_gap()
    job.wait_at(one, waiting((1, SPARE)), 2.0)
    for member in (one, two):
        job.admit(member, admission(key7=0), 2.0)
    assert job.members.roster.ranks(one) == (0, 1)
    job.lost(one, 3.0, closed=True)
    again = relay(0, resuming=True, admissions=[admission(key7=0)], losses=[loss(1)])
    actions, refusal = job.join(again, "peer", 3.5)
    assert refusal is None
    assert told(actions) == []
    assert again.rank == one
    assert job.members.roster.ranks(one) == (0,)
    assert job.members.roster.known == (0, 1, 2, 3)
    assert let_in(job.wait_at(one, waiting((1, SPARE)), 3.5)) == [(one, 1, 1)]
    assert job.members.roster.ranks(one) == (0, 1)
    # Once it is let in, the relay's hello names it.
    job.lost(one, 4.0, closed=True)
    again = relay(0, processes={1: (SPARE, 1)}, resuming=True)
    assert job.join(again, "peer", 4.5) == ([], None)
    assert job.members.roster.ranks(one) == (0, 1)
    # From then on it is lost if the relay does without it.
    job.lost(one, 5.0, closed=True)
    actions, _ = job.join(relay(0, resuming=True), "peer", 5.5)
    assert told(actions) == [([1], (one, two))]


def test_a_process_that_does_not_come_back_to_its_relay_is_lost() -> None:
    """The relay was started again, and the process has ended meanwhile."""
    job, one, two = with_a_gap()
    job.wait_at(one, waiting((1, SPARE)), 2.0)
    for member in (one, two):
        job.admit(member, admission(key7=0), 2.0)
    job.lost(one, 3.0, closed=True)
    job.join(relay(0, resuming=True), "peer", 4.0)
    job.wait_at(one, [], 4.0)
    for tenth in range(40, 90):
        job.workers[one].last_heard = job.workers[two].last_heard = tenth / 10
        assert told(job.tick(tenth / 10)) == []
    job.workers[one].last_heard = job.workers[two].last_heard = 9.1
    assert told(job.tick(9.1)) == [([1], (one, two))]


def test_an_admitted_process_has_as_long_as_its_relay_to_come_back() -> None:
    """Its relay is being started again."""
    job, one, two = with_a_gap()
    job.wait_at(one, waiting((1, SPARE)), 2.0)
    job.admit(one, admission(key7=0), 2.0)
    job.lost(one, 3.0, closed=True)
    for second in range(3, 32):
        job.workers[two].last_heard = float(second)
        assert told(job.tick(float(second))) == []


def test_an_owner_that_was_started_again_decides_when_all_have_said_it() -> None:
    """Members repeat the admission in their hellos. One that does not know it yet says it later."""
    known, lost = [admission(key7=3)], [loss(1)]
    first = relay(0, resuming=True, admissions=known, losses=lost)
    job = ElasticJob(first, LIMITS)
    one = join_learning(job, first)
    assert let_in(job.wait_at(one, waiting((1, SPARE)), 1.0)) == []
    two = join_learning(job, relay(2, 3, resuming=True, losses=lost))
    declare(job, one, 3)
    declare(job, two, 3)
    assert let_in(job.admit(two, admission(key7=3), 2.0)) == [(one, 1, 1)]
    push(job, one, 3, of=2)
    assert add_up(job, push(job, two, 3, of=2))[1] == 0


def test_a_process_is_admitted_in_a_rank_of_a_relay_elsewhere_and_back_again() -> None:
    """First at another relay, then, after that one has lost it, at the first."""
    job, one, two = two_groups()
    job.learn_losses(one, [loss(1)], 1.0)
    job.wait_at(two, waiting((1, SPARE)), 2.0)
    for member in (one, two):
        actions = job.admit(member, admission(1, 1, key7=0), 2.0)
    assert let_in(actions) == [(two, 1, 1)]
    assert (job.members.roster.ranks(one), job.members.roster.ranks(two)) == ((0,), (1, 2, 3))
    push(job, one, of=1)
    assert add_up(job, push(job, two, of=3))[1] == 0
    job.learn_losses(two, [loss(1, 1)], 3.0)
    job.wait_at(one, waiting((1, 901)), 4.0)
    back = pb.Admission(rank=1, generation=2, incarnation=901, ids=[7], rounds=[1])
    for member in (one, two):
        actions = job.admit(member, back, 4.0)
    assert let_in(actions) == [(one, 1, 2)]
    push(job, two, 1, of=2)
    assert add_up(job, push(job, one, 1, of=2))[1] == 0


def test_a_worker_joins_in_the_place_of_a_group_that_is_lost() -> None:
    """All ranks of a relay are admitted elsewhere. What the relay had contributed stays in its round."""
    job, [one, two] = begun(relay(0), relay(1, 2, 3))
    push(job, one, of=1, value=1)
    job.learn_losses(two, [loss(0)], 1.0)
    job.admit(two, pb.Admission(rank=0, generation=1, incarnation=800, ids=[7], rounds=[1]), 2.0)
    join(job, hello(0, incarnation=800, generation=1, resuming=True), 2.0)
    assert one not in job.workers
    assert job.members.roster.members == (0, two)
    assert add_up(job, push(job, two, of=3, value=2))[:2] == (bytes([3] * 4), 0)
    declare(job, 0, 1)
    push(job, 0, 1)
    assert add_up(job, push(job, two, 1, of=3))[:3] == (bytes([2] * 4), 0, (0, two))
