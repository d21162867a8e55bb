"""Processes join an elastic job: they wait, members admit them, and from a step boundary on rounds wait for them."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from psum.aggregator.core.actions import (
    Action,
    Admit,
    Detach,
    EndStreams,
    Refuse,
    Release,
    Report,
    Sum,
    TellCandidates,
    Warn,
)
from psum.aggregator.core.budget import Budget
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.membership_log import EventKind
from psum.aggregator.core.registry import Registry
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import (
    DisagreementError,
    ExcludedError,
    ExhaustedError,
    FaultError,
    InvalidError,
    ProtocolError,
    TakenError,
    WorkerLostError,
)
from tests.aggregator.core.test_elastic_job import (
    LIMITS,
    add_up,
    declare,
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

#: The incarnation of processes that join.
NEW = 900

KEY = 7

ELASTIC = pb.Elastic(min=1, max=5)


def begun(ranks: Iterable[int] = range(3), round: int = 0, **change: Any) -> ElasticJob:
    """A job for up to five ranks, three of which have declared a sum."""
    job = started(ranks, **{"elastic": ELASTIC} | change)
    for rank in ranks:
        declare(job, rank, round)
    return job


def candidate(rank: int, now: float = 20.0, **change: Any) -> Candidate:
    fields: dict[str, Any] = {"incarnation": NEW + rank, "worker": f"new{rank} pid 8", "elastic": ELASTIC}
    return Candidate(hello(rank, joining=True, **fields | change), f"peer of new {rank}", now)


def waits(job: ElasticJob, process: Candidate) -> list[Action]:
    actions, refusal = job.wait(process, process.since)
    assert refusal is None
    job.check()
    return actions


def refused(job: ElasticJob, process: Candidate) -> FaultError:
    _, refusal = job.wait(process, process.since)
    assert refusal is not None
    job.check()
    return refusal


def admission(rank: int, generation: int, round: int = 0, incarnation: int | None = None) -> pb.Admission:
    number = NEW + rank if incarnation is None else incarnation
    return pb.Admission(rank=rank, generation=generation, incarnation=number, ids=[KEY], rounds=[round])


def admit(job: ElasticJob, by: int, what: pb.Admission, now: float = 21.0) -> list[Action]:
    actions = job.admit(by, what, now)
    job.check()
    return actions


def lost(job: ElasticJob, rank: int, generation: int = 0, by: int = 0, now: float = 3.0) -> list[Action]:
    """A rank is lost elsewhere, as another one tells."""
    actions = job.learn_losses(by, [pb.Loss(rank=rank, generation=generation, text="it vanished elsewhere")], now)
    job.check()
    return actions


def joined(job: ElasticJob, rank: int, generation: int, round: int = 0) -> None:
    """A process joins with the help of all members."""
    waits(job, candidate(rank))
    members = job.members.roster.members
    actions = [action for by in members for action in admit(job, by, admission(rank, generation, round))]
    assert [action.candidate.hello.rank for action in actions if isinstance(action, Admit)] == [rank]


def listed(actions: Sequence[Action]) -> list[tuple[list[int], tuple[int, ...]]]:
    """The ranks of candidates that are told of, with those who are told."""
    return [([each.rank for each in a.candidates], a.ranks) for a in actions if isinstance(a, TellCandidates)]


def admitted(actions: Sequence[Action]) -> list[int]:
    return [action.candidate.hello.rank for action in actions if isinstance(action, Admit)]


def refusals(actions: Iterable[Action]) -> list[FaultError]:
    return [action.fault for action in actions if isinstance(action, Refuse)]


# Waiting.


def test_members_are_told_who_waits() -> None:
    """All of them when a process comes or goes, and each one after its welcome."""
    job = begun()
    lost(job, 1)
    first, second = candidate(4), candidate(1)
    assert listed(waits(job, first)) == [([4], (0, 2))]
    assert listed(waits(job, second)) == [([1, 4], (0, 2))]
    assert [(each.rank, each.incarnation, each.worker) for each in job.candidates()] == [
        (1, NEW + 1, "new1 pid 8"),
        (4, NEW + 4, "new4 pid 8"),
    ]
    assert listed(job.withdraw(first, 21.0)) == [([1], (0, 2))]
    assert job.withdraw(first, 21.0) == []


def test_a_process_that_waits_is_no_member() -> None:
    """Rounds neither wait for it nor count it."""
    job = begun()
    waits(job, candidate(3))
    push(job, 0)
    push(job, 1)
    [action] = push(job, 2)
    assert add_up(job, action).contributors == 0


def test_the_same_process_may_ask_again_and_another_one_may_not() -> None:
    """A broken stream may not have been noticed yet. Two processes with one rank are a mistake, or the first one is
    about to end, for which the second one may wait."""
    job = begun()
    first = candidate(3)
    waits(job, first)
    again = candidate(3)
    [refusal] = refusals(waits(job, again))
    assert isinstance(refusal, TakenError)
    assert job.withdraw(first, 21.0) == []
    assert job.joins.candidates.of(3) is again
    refusal = refused(job, candidate(3, incarnation=5, worker="other pid 9"))
    assert isinstance(refusal, TakenError)
    assert "new3 pid 8 (peer of new 3) waits already to join elastic job 'night' as rank 3; refused other pid 9" in str(
        refusal
    )


def test_a_process_with_other_settings_is_refused_and_the_job_goes_on() -> None:
    """The fault shows both sides, also while the job waits for ranks."""
    for ranks in (range(3), range(2)):
        job = begun(ranks)
        refusal = refused(job, candidate(3, partition_bytes=77))
        assert isinstance(refusal, DisagreementError)
        assert "the partition size (PSUM_PARTITION_BYTES): rank 0 has 1024, rank 3 has 77" in str(refusal)
        refusal = refused(job, candidate(3, elastic=pb.Elastic(min=1, max=4)))
        assert "rank 0 has 1:5, rank 3 has 1:4" in str(refusal)
        refusal = refused(job, candidate(3, num_workers=4))
        assert "the number of workers (PSUM_NUM_WORKERS): rank 0 has 3, rank 3 has 4" in str(refusal)
        refusal = refused(job, candidate(3, aggregators=["a:1"]))
        assert "PSUM_AGGREGATORS" in str(refusal)
        assert job.failure is None


def test_a_process_that_comes_for_a_vanished_one_makes_that_one_lost() -> None:
    """It was started after the other one had vanished, so nobody waits for that one."""
    job = begun()
    push(job, 1)
    job.lost(1, 19.0)
    actions = waits(job, candidate(1, age_seconds=0.5))
    assert told(actions) == [([1], (0, 2))]
    assert listed(actions) == [([1], (0, 2))]


def test_a_process_for_a_rank_that_is_there_waits_and_is_refused_in_the_end() -> None:
    """The members do not admit it while the rank is held. The fault says by whom."""
    job = begun()
    waits(job, candidate(1))
    [warning] = [a for a in tick(job, 51.0) if isinstance(a, Warn)]
    assert "new1 pid 8 (peer of new 1) has waited 31 s to join elastic job 'night' as rank 1" in warning.text
    assert tick(job, 52.0) == []
    actions = tick(job, 621.0)
    [refusal] = refusals(actions)
    assert isinstance(refusal, WorkerLostError)
    assert "its rank is that of h1 pid 7 (peer 1), which is still there" in str(refusal)
    assert listed(actions) == [([], (0, 1, 2))]


def test_a_program_that_admits_nobody_is_named_as_the_cause() -> None:
    """The core cannot know whether members ever call step(); the warning and the fault say that they must."""
    job = begun()
    waits(job, candidate(3))
    [warning] = [a for a in tick(job, 51.0) if isinstance(a, Warn)]
    assert "when all of them call step() of their ElasticState" in warning.text
    assert warning.ranks == (0, 1, 2)
    [refusal] = refusals(tick(job, 621.0))
    assert "a program that never does takes in no others" in str(refusal)


def test_those_who_wait_are_told_when_the_job_fails() -> None:
    """They get the job's fault."""
    job = begun()
    waits(job, candidate(3))
    fault = DisagreementError("ranks disagree", ranks=[0, 2])
    actions = job.leave_early(1, pb.Goodbye(fault=fault.to_message()), 22.0)
    assert [str(each) for each in refusals(actions)] == [str(job.failure)]
    assert refused(job, candidate(3)) is job.failure


def test_a_process_is_refused_if_there_is_no_memory_for_its_contributions() -> None:
    """Otherwise a round might lack memory later."""
    job = ElasticJob(hello(0, elastic=ELASTIC), LIMITS, budget=Budget(18))
    for rank in range(3):
        job.join(hello(rank, elastic=ELASTIC), f"peer {rank}", 0.0)
    declare(job, 0)
    refusal = refused(job, candidate(3))
    assert isinstance(refusal, ExhaustedError)
    assert "need 2 bytes more than are left of the aggregator's memory budget of 18 bytes" in str(refusal)
    lost(job, 1)
    waits(job, candidate(1))


# The admission.


def test_a_newcomer_is_expected_at_once_and_welcomed_when_all_members_have_admitted_it() -> None:
    """No round can be complete without it after the first admission. Its welcome shows that all have what came
    before."""
    job = begun()
    waits(job, candidate(3))
    assert listed(admit(job, 1, admission(3, 0))) == [([], (0, 1, 2))]
    push(job, 1)
    assert admitted(admit(job, 0, admission(3, 0))) == []
    assert push(job, 0) == []
    assert admitted(admit(job, 2, admission(3, 0))) == [3]
    assert push(job, 2) == []
    message = job.admission(3)
    assert message is not None
    assert (message.rank, message.generation, message.incarnation) == (3, 0, NEW + 3)
    assert dict(zip(message.ids, message.rounds, strict=True)) == {KEY: 0}
    declare(job, 3)
    [action] = push(job, 3)
    assert isinstance(action, Sum)
    assert [bytes(each)[0] for each in action.contributions] == [1, 2, 4, 8]
    result = add_up(job, action)
    assert (result.contributors, result.ranks) == (4, (0, 1, 2, 3))


def test_a_count_of_0_means_as_many_as_the_job_began_with() -> None:
    """Whoever they are. Results are scaled by the number, which may be larger than the nominal one."""
    job = begun()
    joined(job, 3, 0)
    declare(job, 3)
    lost(job, 0, by=1)
    for rank in (1, 2):
        assert push(job, rank) == []
    [action] = push(job, 3)
    assert add_up(job, action).contributors == 0


def test_the_next_process_of_a_lost_rank_contributes_as_its_successor() -> None:
    """Old losses and old messages do not concern it, and the old process is not let in."""
    job = begun()
    lost(job, 1)
    joined(job, 1, 1)
    assert lost(job, 1) == []
    assert job.members.roster.members == (0, 1, 2)
    _, refusal = job.join(hello(1, resuming=True, elastic=ELASTIC), "peer", 22.0)
    assert isinstance(refusal, ExcludedError)
    assert "belongs to process 1 of this rank, which was admitted" in str(refusal)
    declare(job, 1)
    push(job, 0)
    push(job, 1)
    [action] = push(job, 2)
    assert add_up(job, action).contributors == 0
    assert told(lost(job, 1, generation=1)) == [([1], (2,))]
    assert [(each.rank, each.generation) for each in job.losses(5.0)] == [(1, 1)]


def test_an_admission_replaces_a_process_that_is_not_known_to_be_lost() -> None:
    """The member has heard of the loss elsewhere, and its admission comes first."""
    job = begun()
    push(job, 0)
    waits(job, candidate(1))
    actions = admit(job, 0, admission(1, 1))
    [fault] = faults(actions)
    assert isinstance(fault, ExcludedError)
    assert "the members have admitted another process, number 1 of this rank" in str(fault)
    assert told(actions) == [([1], (0, 2))]
    kinds = [type(action) for action in actions]
    assert kinds.index(Report) < kinds.index(Detach)
    assert admitted(admit(job, 2, admission(1, 1))) == [1]


def test_what_the_process_before_had_contributed_still_counts() -> None:
    """The round was open when it was lost. The newcomer begins with the next one."""
    job = begun()
    push(job, 1)
    push(job, 0)
    lost(job, 1)
    [action] = push(job, 2)
    result = add_up(job, action)
    assert (result.contributors, result.result) == (0, bytes([7] * 4))
    joined(job, 1, 1, round=1)
    declare(job, 1, 1)
    for rank in (0, 2):
        assert push(job, rank, 1) == []
    [action] = push(job, 1, 1)
    assert add_up(job, action).contributors == 0


def test_rounds_before_the_admission_do_not_wait_for_the_newcomer() -> None:
    """One member had the result, and admitted the process. It is lost, and the others make the round again."""
    job = started([0], resuming=True, elastic=ELASTIC)
    job.join(hello(1, resuming=True, elastic=ELASTIC, losses=[loss(2)]), "peer", 0.0)
    declare(job, 0, 6)
    waits(job, candidate(2))
    admit(job, 0, admission(2, 1, round=6))
    actions = lost(job, 0, by=1)
    assert actions[-1] == EndStreams((1,))
    declare(job, 1, 5)
    [action] = push(job, 1, 5)
    assert add_up(job, action).contributors == 1
    assert push(job, 1, 6) == []
    assert admitted(admit(job, 1, admission(2, 1, round=6))) == [2]
    declare(job, 2, 6)
    [action] = push(job, 2, 6)
    assert add_up(job, action).contributors == 2


def test_a_round_before_the_admission_ends_when_its_last_member_is_lost() -> None:
    """It waits for nobody then; the newcomer is none of those that it waits for."""
    job = begun()
    waits(job, candidate(3))
    push(job, 0)
    admit(job, 1, admission(3, 0, round=1))
    push(job, 1)
    [action] = sums(silence(job, 2))
    assert add_up(job, action).contributors == 2
    assert push(job, 0, 1) == []
    assert push(job, 1, 1) == []


def test_admissions_that_contradict_each_other_are_refused() -> None:
    """They change nothing."""
    job = begun()
    lost(job, 1)
    admit(job, 0, admission(1, 1))
    with pytest.raises(ProtocolError, match="as number 1 of rank 1, and others admitted"):
        job.admit(2, admission(1, 1, incarnation=5), 21.0)
    with pytest.raises(ProtocolError, match="whose process 0 began with the job"):
        job.admit(2, admission(0, 0), 21.0)
    with pytest.raises(ProtocolError, match="an admission of rank 5 of at most 5"):
        job.admit(2, admission(5, 0), 21.0)
    with pytest.raises(ProtocolError, match="1 keys and 0 rounds"):
        job.admit(2, pb.Admission(rank=3, incarnation=5, ids=[KEY]), 21.0)
    assert job.admit(2, admission(1, 0, incarnation=5), 21.0) == []
    with pytest.raises(ProtocolError, match="not elastic"):
        Job(hello(0), LIMITS).admit(0, admission(1, 1), 21.0)


def test_an_admission_of_a_process_that_is_lost_meanwhile_changes_nothing() -> None:
    """Losses and admissions may arrive in any order."""
    job = begun()
    lost(job, 1, generation=1)
    assert admit(job, 0, admission(1, 1)) == []
    assert job.members.roster.members == (0, 2)
    waits(job, candidate(1, incarnation=5))
    assert listed(admit(job, 0, admission(1, 2, incarnation=5))) == [([], (0, 2))]


def test_nothing_is_taken_from_a_lost_member() -> None:
    """Not even an admission."""
    job = begun()
    lost(job, 1)
    assert job.admit(1, admission(3, 0), 21.0) == []
    assert 3 not in job.members.roster


def test_a_newcomer_that_does_not_come_is_lost() -> None:
    """It has the worker timeout if it was never here, and the shorter time if its stream has ended."""
    job = begun()
    admit(job, 0, admission(3, 0), 21.0)
    assert tick(job, 25.9) == []
    actions = tick(job, 26.1)
    assert told(actions) == [([3], (0, 1, 2))]
    assert "was admitted and did not become a member in time" in job.losses(27.0)[0].text
    process = candidate(4, 27.0)
    waits(job, process)
    admit(job, 0, admission(4, 0), 28.0)
    assert tick(job, 60.0) == []
    job.withdraw(process, 61.0)
    assert tick(job, 61.9) == []
    assert told(tick(job, 62.1)) == [([4], (0, 1, 2))]


def test_a_newcomer_that_is_lost_while_it_waits_is_told_so() -> None:
    """Another aggregator had lost it."""
    job = begun()
    waits(job, candidate(3))
    admit(job, 0, admission(3, 0))
    actions = lost(job, 3)
    [refusal] = refusals(actions)
    assert isinstance(refusal, ExcludedError)
    assert told(actions) == [([3], (1, 2))]
    assert isinstance(refused(job, candidate(3)), ExcludedError)


def test_a_process_that_was_a_member_cannot_join_again() -> None:
    """It must be a new process, which has another incarnation."""
    job = begun()
    lost(job, 1)
    refusal = refused(job, candidate(1, incarnation=101))
    assert isinstance(refusal, ExcludedError)
    assert "start a new process in its place" in str(refusal)


def test_a_newcomer_whose_welcome_was_lost_is_welcomed_again() -> None:
    """It asks to join again, and has not become a member twice."""
    job = begun()
    joined(job, 3, 0)
    job.lost(3, 22.0, closed=True)
    assert admitted(waits(job, candidate(3, 22.5))) == [3]
    assert tick(job, 60.0) == []
    assert job.members.roster.members == (0, 1, 2, 3)


def test_a_rank_that_has_left_may_have_another_process() -> None:
    """Its number is counted as that of a lost one."""
    job = begun()
    job.leave(1, 20.0)
    process = candidate(1)
    waits(job, process)
    actions = admit(job, 0, admission(1, 1))
    assert [action for action in actions if isinstance(action, Release | Detach)] == [Release(1), Detach(1)]
    assert told(actions) == []
    assert admitted(admit(job, 2, admission(1, 1))) == [1]
    assert job.departures() == []
    assert not job.over
    # Those who had heard of the departure tell it to the next aggregator process.
    job = started([0], resuming=True, elastic=ELASTIC)
    gone = [pb.Departure(ranks=[1], incarnation=101)]
    again = hello(2, resuming=True, elastic=ELASTIC, departures=gone, admissions=[admission(1, 1)])
    assert job.join(again, "peer", 1.0)[1] is None
    assert job.members.roster.known == (0, 1, 2)
    assert not job.members.departed


@pytest.mark.parametrize("rank", [1, 3])
def test_a_restarted_aggregator_does_not_wait_for_newcomers_that_have_left(rank: int) -> None:
    """Members tell of the admission and of the departure, in one hello or in two."""
    told_of_both = {
        "departures": [pb.Departure(ranks=[rank], incarnation=NEW + rank)],
        "admissions": [admission(rank, 1)],
    }
    for first, second in ((told_of_both, {}), ({"admissions": [admission(rank, 1)]}, told_of_both)):
        hellos = [hello(each, resuming=True, elastic=ELASTIC, **says) for each, says in ((0, first), (2, second))]
        job = ElasticJob(hellos[0], LIMITS)
        for each in hellos:
            assert job.join(each, "peer", 0.0)[1] is None
        lost(job, 1)
        assert job.members.roster.known == (0, 2)
        assert told(tick(job, 60.0)) == []
        for member in (0, 2):
            declare(job, member, 8)
        push(job, 0, 8)
        [action] = push(job, 2, 8)
        assert add_up(job, action).contributors == 2


def test_memory_is_reserved_for_a_newcomer() -> None:
    """Each round may hold its contribution too."""
    job = begun()
    before = job.keys[KEY].reserved_bytes
    joined(job, 3, 0)
    assert job.keys[KEY].reserved_bytes == before + 4


def test_a_candidate_of_an_admitted_rank_with_another_incarnation_goes_on_waiting() -> None:
    """The members have admitted another process of its rank."""
    job = begun()
    waits(job, candidate(3))
    actions = admit(job, 0, admission(3, 0, incarnation=5))
    assert refusals(actions) == []
    assert [each.rank for each in job.candidates()] == [3]


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


# The registry.


def room(**limits: Any) -> Registry:
    return Registry(Limits(round_timeout=60, **limits))


def test_a_process_waits_for_the_first_member_of_its_job() -> None:
    """As after a restart of the aggregator. It is checked when the member is here."""
    registry = room()
    good, bad = candidate(3), candidate(4, partition_bytes=77)
    for each in (good, bad):
        assert registry.wait(each, 20.0) == ([], None)
    assert not registry.jobs
    job, actions, refusal = registry.join(hello(0, resuming=True, elastic=ELASTIC), "peer", 21.0)
    assert refusal is None
    assert isinstance(job, ElasticJob)
    done = [action for _, action in actions]
    assert listed(done) == [([3], (0,))]
    assert [type(each) for each in refusals(done)] == [DisagreementError]
    assert list(registry.refusals(500.0)) == []


def test_a_process_that_waits_for_a_job_without_members_is_refused_after_the_round_timeout() -> None:
    """The fault says that nobody has come, and how a job begins."""
    registry = room()
    registry.wait(candidate(3), 20.0)
    assert list(registry.refusals(79.0)) == []
    [refusal] = refusals(registry.refusals(81.0))
    assert isinstance(refusal, WorkerLostError)
    assert "no member of this job has come to this aggregator. Start the job's first workers without" in str(refusal)
    assert list(registry.refusals(82.0)) == []


def test_a_process_that_goes_away_waits_no_more() -> None:
    """Neither in a job nor for one."""
    registry = room()
    process = candidate(3)
    registry.wait(process, 20.0)
    assert registry.withdraw(process, 21.0) == []
    assert list(registry.refusals(500.0)) == []
    registry.join(hello(0, elastic=ELASTIC), "peer", 21.0)
    registry.wait(process, 22.0)
    assert listed([action for _, action in registry.withdraw(process, 23.0)]) == [([], (0,))]


def test_two_processes_for_one_rank_of_a_job_without_members() -> None:
    """As in a job: the same process replaces itself, another one is refused."""
    registry = room()
    registry.wait(candidate(3), 20.0)
    assert registry.wait(candidate(3), 20.0) == ([], None)
    assert [type(each) for each in refusals(registry.refusals(21.0))] == [TakenError]
    assert isinstance(registry.wait(candidate(3, incarnation=5), 20.0)[1], TakenError)


def test_those_who_wait_are_told_when_the_job_has_ended() -> None:
    """All members have left."""
    registry = room()
    job, _, _ = registry.join(hello(0, num_workers=1, elastic=ELASTIC), "peer", 1.0)
    assert job is not None
    registry.wait(candidate(3, num_workers=1), 20.0)
    job.leave(0, 21.0)
    job.lost(0, 21.0)
    registry.settle(job, 21.0)
    [refusal] = refusals(registry.refusals(21.0))
    assert isinstance(refusal, WorkerLostError)
    assert "elastic job 'night' has ended while new3 pid 8" in str(refusal)


def test_nobody_joins_a_job_that_is_not_elastic() -> None:
    """The text says which setting differs, whoever comes first."""
    registry = room()
    registry.join(hello(0, elastic=None), "peer", 1.0)
    _, refusal = registry.wait(candidate(1), 20.0)
    assert "PSUM_ELASTIC" in str(refusal)
    assert isinstance(refusal, DisagreementError)
    assert registry.withdraw(candidate(1), 20.0) == []
    registry = room()
    registry.wait(candidate(1), 20.0)
    _, actions, _ = registry.join(hello(0, elastic=None), "peer", 21.0)
    assert [type(each) for each in refusals(action for _, action in actions)] == [DisagreementError]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"elastic": None}, "not elastic"),
        ({"rank": 5}, "rank 5 of 5 workers"),
        ({"incarnation": 0}, "must have an incarnation"),
        ({"elastic": pb.Elastic(min=0, max=5)}, "an elastic job of 0 to 5 ranks"),
        ({"ranks": [1, 2], "incarnations": [5, 6], "generations": [0, 0]}, "expected one rank at first"),
    ],
)
def test_a_process_whose_hello_makes_no_sense_may_not_wait(change: dict[str, Any], text: str) -> None:
    """It is refused at once."""
    process = candidate(1, **change) if "rank" not in change else candidate(**change)
    _, refusal = room().wait(process, 20.0)
    assert isinstance(refusal, InvalidError)
    assert text in str(refusal)


def test_ranks_up_to_the_maximum_may_come_back() -> None:
    """A worker of a rank that the job did not begin with says hello as any other."""
    job, _, refusal = room().join(hello(4, incarnation=9, resuming=True, elastic=ELASTIC), "peer", 1.0)
    assert refusal is None
    assert job is not None
    assert job.members.roster.known == (0, 1, 2, 4)


# What operators see.


def test_the_log_has_what_happened_to_members() -> None:
    """In order, with generations, times and reasons."""
    job = begun()
    silence(job, 1)
    waits(job, candidate(1, 20.0))
    admit(job, 0, admission(1, 1), 21.0)
    admit(job, 2, admission(1, 1), 22.0)
    gone = candidate(3, 23.0)
    waits(job, gone)
    job.withdraw(gone, 24.0)
    job.leave(2, 25.0)
    job.leave(2, 26.0)
    events = [(event.at, event.kind, event.rank, event.generation) for event in job.log]
    assert events == [
        *((0.0, EventKind.JOINED, rank, 0) for rank in range(3)),
        (pytest.approx(15.1), EventKind.LOST, 1, 0),
        (20.0, EventKind.WAITS, 1, 1),
        (21.0, EventKind.ADMITTED, 1, 1),
        (22.0, EventKind.JOINED, 1, 1),
        (23.0, EventKind.WAITS, 3, 0),
        (24.0, EventKind.WITHDRAWN, 3, 0),
        (25.0, EventKind.LEFT, 2, 0),
    ]
    assert job.log.counts[EventKind.JOINED] == 4
    assert "h1 pid 7 (peer 1) vanished 5.1 s ago" in next(e.text for e in job.log if e.kind is EventKind.LOST)


def test_the_log_is_bounded() -> None:
    """It keeps the latest events, and counts all."""
    job = begun()
    for number in range(400):
        process = candidate(3, float(number))
        waits(job, process)
        job.withdraw(process, float(number))
    assert len(job.log) == 256
    assert job.log.counts[EventKind.WAITS] == 400
    assert list(job.log)[-1].at == 399.0
