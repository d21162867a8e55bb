"""Members admit processes to an elastic job, and from a step boundary on rounds wait for them."""

import pytest

from psum.aggregator.core.actions import Detach, EndStreams, Release, Report, Sum
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.job import Job
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ExcludedError, InvalidError, ProtocolError
from tests.aggregator.core.elastic import LIMITS, add_up, faults, hello, loss, push, silence, started, sums, tick, told
from tests.aggregator.core.joining import (
    ELASTIC,
    KEY,
    NEW,
    admission,
    admit,
    admitted,
    begun,
    candidate,
    joined,
    listed,
    lost,
    refusals,
    refused,
    waits,
)
from tests.aggregator.keys import declare


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


def test_a_newcomer_hears_who_was_admitted_before_it() -> None:
    """It repeats that to an aggregator that is started again before it has the state. That one then loses nobody by the
    number of an earlier process, which would change nothing for others."""
    job = begun()
    lost(job, 1)
    joined(job, 1, 1)
    joined(job, 3, 0, round=2)
    others = job.other_admissions(3)
    assert others == [pb.Admission(rank=1, generation=1, incarnation=NEW + 1)]
    assert job.other_admissions(1) == [pb.Admission(rank=3, incarnation=NEW + 3)]
    assert job.other_admissions(0) == []
    again = hello(3, resuming=True, elastic=ELASTIC, incarnation=NEW + 3, admissions=others)
    job = ElasticJob(again, LIMITS)
    assert job.join(again, "peer", 0.0) == ([], None)
    job.check()
    assert tick(job, 9.9) == []
    tick(job, 10.1)
    assert {each.rank: each.generation for each in job.losses(11.0)} == {0: 0, 1: 1, 2: 0}


def test_a_candidate_that_dies_before_its_admission_is_lost_as_one_that_dies_after_it() -> None:
    """Members agree on a candidate one step before they admit it. If its stream has ended meanwhile, nobody waits for
    the time of a process that was never here. Another process that comes in its place does not profit from that."""
    job = begun()
    process = candidate(3)
    waits(job, process)
    assert listed(job.withdraw(process, 20.5)) == [([], (0, 1, 2))]
    admit(job, 0, admission(3, 0), 21.0)
    assert tick(job, 21.4) == []
    assert told(tick(job, 21.6)) == [([3], (0, 1, 2))]
    # It has opened another stream before or after the admission, and waits for it.
    for opened in (20.7, 21.2):
        job = begun()
        process = candidate(3)
        waits(job, process)
        job.withdraw(process, 20.5)
        for at in sorted((opened, 21.0)):
            if at == opened:
                waits(job, candidate(3, opened))
            else:
                admit(job, 0, admission(3, 0), at)
        assert told(tick(job, 60.0)) == []
    # The members have admitted an earlier process than the one whose stream has ended.
    job = begun()
    process = candidate(3)
    waits(job, process)
    job.withdraw(process, 20.5)
    admit(job, 0, admission(3, 0, incarnation=5), 21.0)
    assert told(tick(job, 25.9)) == []
    assert told(tick(job, 26.1)) == [([3], (0, 1, 2))]


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


def test_a_newcomer_that_declares_a_failed_key_again_does_not_make_others_lost() -> None:
    """The aggregator has forgotten the rounds of such a key. That is no sign that it was started again."""
    job = begun()
    for rank in range(3):
        actions = push(job, rank)
    add_up(job, actions[0])
    joined(job, 3, 0, round=1)
    declare(job, 3, 1)
    job.rounds.fail_key(job.keys[KEY], InvalidError("it was aborted", key=KEY))
    job.lost(3, 22.0, closed=True)
    assert job.join(hello(3, resuming=True, incarnation=NEW + 3, elastic=ELASTIC), "peer", 22.1)[1] is None
    assert told(declare(job, 3, 1)) == []
    # Nor is a key of some ranks, which is forgotten with an admission.
    assert told(declare(job, 3, 2, broadcast=True, ranks=(0, 3), id=8)) == []
    assert job.members.roster.members == (0, 1, 2, 3)


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
