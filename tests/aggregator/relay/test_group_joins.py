"""Joins through a relay, without owners: what it tells them, and when it lets a process in."""

import pytest

from psum.aggregator.core.actions import ConnectUplinks, PartUplinks, Refuse
from psum.aggregator.core.candidates import Candidate
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ExcludedError, ExhaustedError
from tests.aggregator.relay.group import Group, losses, pushed
from tests.aggregator.relay.pure import key

#: The process that asks to join.
NEWCOMER = 999


@pytest.fixture
def group() -> Group:
    """A group whose rank 1 is lost, in the second round of its key."""
    group = Group()
    begin(group)
    return group


def begin(group: Group) -> None:
    group.declare(key(0, id=7))
    group.push(0, 1)
    group.lose(1)
    for owner in range(group.owners):
        group.sent(owner)
    group.result(b"abcd")
    group.workers[0].received()


def wait(group: Group, rank: int = 1) -> Candidate:
    return group.relay.wait(group.hello(rank, joining=True, incarnation=NEWCOMER))


def report(group: Group, *ranks: int, owner: int = 0) -> None:
    """An owner reports who waits there."""
    candidates = [pb.Candidate(rank=rank, incarnation=NEWCOMER) for rank in ranks]
    group.answer(owner, candidates=pb.Candidates(candidates=candidates))


def admit(group: Group, *by: int, rank: int = 1, generation: int = 1) -> None:
    """Workers say that they admit the process, to the second round of the key."""
    for each in by:
        admission = pb.Admission(rank=rank, generation=generation, incarnation=NEWCOMER, ids=[7], rounds=[1])
        group.say(each, admit=pb.Admit(admission=admission))


def decide(group: Group, owner: int = 0, rank: int = 1, generation: int = 1) -> None:
    """An owner decides that the process is one of the group."""
    admission = pb.Admission(rank=rank, generation=generation, incarnation=NEWCOMER, ids=[7], rounds=[1])
    group.answer(owner, decision=pb.Decision(rank=rank, incarnation=NEWCOMER, admission=admission))


def listed(group: Group, rank: int = 0) -> list[list[tuple[int, bool]]]:
    """The lists of candidates that a worker is sent: rank, and whether it waits at the relay."""
    return [
        [(each.rank, each.in_group) for each in message.candidates.candidates]
        for message, _ in group.workers[rank].received()
        if message.HasField("candidates")
    ]


def test_the_owners_are_told_who_waits(group: Group) -> None:
    """The workers are not, before the owners report it: they name whom all their aggregators report."""
    candidate = wait(group)
    [(message, _)] = group.sent()
    [told] = message.candidates.candidates
    assert (told.rank, told.incarnation, told.worker) == (1, NEWCOMER, candidate.hello.worker)
    assert listed(group) == []
    report(group, 1)
    assert listed(group) == [[(1, True)]]


def test_only_those_are_named_that_all_owners_report() -> None:
    """A candidate is named when it is connected, through its relay, to every owner."""
    group = Group(owners=2)
    begin(group)
    report(group, 3, owner=0)
    assert listed(group) == []
    report(group, 3, 5, owner=1)
    assert listed(group) == [[(3, False)]]


def test_workers_that_were_away_hear_who_waits(group: Group) -> None:
    """An owner had another stream meanwhile. They came back before it reported again, so their welcome named nobody."""
    wait(group)
    report(group, 1)
    assert listed(group) == [[(1, True)]]
    group.end(0)
    group.job.uplink.reconnected(0)
    group.relay.runner.perform(group.job, group.job.heard(group.relay.now))
    group.workers[0] = group.join(0, resuming=True)
    assert list(group.job.candidates()) == []
    report(group, 1)
    assert listed(group) == [[(1, True)]]


def test_a_candidate_that_goes_away_is_withdrawn(group: Group) -> None:
    """Its stream has ended: the owners hear that nobody waits."""
    candidate = wait(group)
    group.sent()
    group.relay.withdraw(candidate)
    [(message, _)] = group.sent()
    assert list(message.candidates.candidates) == []


def test_a_process_joins_through_the_relay(group: Group) -> None:
    """The owners hear of its admission before the next contribution, and the relay lets it in when they have decided.
    From its first round on, the sum of the group waits for it."""
    candidate = wait(group)
    group.sent()
    report(group, 1)
    admit(group, 0)
    group.push(0, round=1)
    messages = group.sent()
    assert [message.WhichOneof("kind") for message, _ in messages] == ["admit"]
    told = messages[0][0].admit.admission
    assert (told.rank, told.generation, list(told.ids), list(told.rounds)) == (1, 1, [7], [1])
    assert group.relay.decided == []
    decide(group)
    group.workers[1] = group.relay.let_in(candidate)
    assert group.kinds() == ["candidates"]
    group.declare(key(0, id=7, round=1), 1)
    group.push(1, round=1)
    assert pushed(group.sent()) == [(1, bytes([3] * 4), 2)]
    said = group.job.hello(0, True)
    assert (list(said.ranks), list(said.incarnations), list(said.generations)) == ([0, 1], [100, NEWCOMER], [0, 1])


def test_rounds_before_the_admission_do_not_wait_for_the_newcomer(group: Group) -> None:
    """A round that the newcomer takes no part in ends without it."""
    wait(group)
    group.push(0, round=1)
    group.sent()
    admission = pb.Admission(rank=1, generation=1, incarnation=NEWCOMER, ids=[7], rounds=[3])
    group.say(0, admit=pb.Admit(admission=admission))
    group.result(b"efgh", round=1)
    group.push(0, round=2)
    assert pushed(group.sent()) == [(2, bytes([1] * 4), 1)]


def test_an_admission_is_told_when_the_whole_group_has_said_it() -> None:
    """Before that, some rank may lack a result of the rounds before."""
    group = Group(ranks=(0, 1, 2), size=3)
    group.declare(key(0, id=7))
    report(group, 5)
    admit(group, 0, rank=5, generation=0)
    admit(group, 1, rank=5, generation=0)
    assert "admit" not in group.kinds()
    admit(group, 2, rank=5, generation=0)
    assert group.kinds() == ["admit"]


def test_a_rank_that_is_lost_does_not_hold_back_an_admission() -> None:
    """It was the last one that had not said it."""
    group = Group()
    group.declare(key(0, id=7))
    admit(group, 0, rank=5, generation=0)
    assert "admit" not in group.kinds()
    group.lose(1)
    assert [kind for kind in group.kinds() if kind in ("admit", "losses")] == ["losses", "admit"]


def test_a_process_that_joins_elsewhere_is_none_of_the_group(group: Group) -> None:
    """Also if its rank was of this group before. Rounds here do not wait for it."""
    report(group, 1)
    admit(group, 0)
    group.push(0, round=1)
    assert [kind for kind in group.kinds() if kind in ("admit", "push")] == ["admit", "push"]
    assert list(group.job.hello(0, True).ranks) == [0]


def test_a_group_that_ends_does_not_name_a_rank_that_was_admitted_elsewhere(group: Group) -> None:
    """Its present process goes on."""
    group.say(0, admit=pb.Admit(admission=pb.Admission(rank=1, generation=1, incarnation=NEWCOMER)))
    group.lose(0)
    [parted] = [action for action in group.relay.told if isinstance(action, PartUplinks)]
    assert list(parted.goodbye.fault.ranks) == [0]


def test_an_owner_refuses_a_process(group: Group) -> None:
    """It is told why, and nobody waits any more."""
    candidate = wait(group)
    group.sent()
    fault = ExhaustedError("not enough memory", ranks=[1])
    group.answer(decision=pb.Decision(rank=1, incarnation=NEWCOMER, fault=fault.to_message()))
    [refusal] = group.relay.decided
    assert isinstance(refusal, Refuse)
    assert (refusal.candidate, str(refusal.fault)) == (candidate, "not enough memory")
    assert group.kinds() == ["candidates"]


def test_every_owner_decides() -> None:
    """An owner that has another stream decides again: it may be another process. Another owner may decide while the
    relay's hello is under way, which does not name the process."""
    group = Group(owners=2)
    begin(group)
    candidate = wait(group)
    admit(group, 0)
    decide(group, owner=0)
    assert list(group.job.hello(0, True).ranks) == [0]
    decide(group, owner=1)
    assert group.relay.decided == []
    group.job.uplink.reconnected(0)
    assert "candidates" in group.kinds(0)
    decide(group, owner=0)
    group.relay.let_in(candidate)
    assert list(group.job.hello(0, True).ranks) == [0, 1]


def test_a_newcomer_whose_stream_ends_is_lost(group: Group) -> None:
    """It was admitted, and ended before it was let in."""
    candidate = wait(group)
    admit(group, 0)
    group.sent()
    group.relay.withdraw(candidate)
    group.push(0, round=1)
    group.pass_time(1.5)
    messages = group.sent()
    assert losses(messages) == [1]
    assert pushed(messages) == [(1, bytes([1] * 4), 1)]


def test_a_relay_that_was_started_again_lets_a_newcomer_in() -> None:
    """It was killed when its worker had admitted the process, which waits at the next one. The owners let the group in
    without the newcomer, and decide about it then."""
    group = Group(ranks=[])
    known = pb.Admission(rank=1, generation=1, incarnation=NEWCOMER, ids=[7], rounds=[1], in_group=True)
    lost = pb.Loss(rank=1, text="gone", in_group=True)
    group.workers[0] = group.join(0, resuming=True, losses=[lost], admissions=[known])
    assert ConnectUplinks() not in group.relay.told
    candidate = wait(group)
    group.connect()
    assert list(group.job.hello(0, False).ranks) == [0]
    group.declare(key(0, id=7, round=1), 0)
    group.push(0, round=1)
    messages = group.sent()
    assert [[each.rank for each in m.candidates.candidates] for m, _ in messages if m.HasField("candidates")] == [[1]]
    assert pushed(messages) == []
    decide(group)
    group.workers[1] = group.relay.let_in(candidate)
    group.declare(key(0, id=7, round=1), 1)
    group.push(1, round=1)
    assert pushed(group.sent()) == [(1, bytes([3] * 4), 2)]


def test_a_relay_that_was_started_again_waits_for_a_rank_that_had_joined() -> None:
    """The newcomer was let in by the process before, and comes back as any other rank."""
    group = Group(ranks=[])
    known = pb.Admission(rank=1, generation=1, incarnation=NEWCOMER, in_group=True)
    lost = pb.Loss(rank=1, text="gone", in_group=True)
    group.workers[0] = group.join(0, resuming=True, losses=[lost], admissions=[known])
    assert ConnectUplinks() not in group.relay.told
    group.workers[1] = group.join(1, resuming=True, incarnation=NEWCOMER, generation=1)
    group.connect()
    assert list(group.job.hello(0, False).ranks) == [0, 1]


@pytest.mark.parametrize("in_group", [False, True])
def test_a_rank_that_had_left_and_was_admitted_again_counts_as_one_that_the_group_has_begun_with(
    in_group: bool,
) -> None:
    """A relay that was started again waits for no other one: rank 0 tells of the departure, and of the admission."""
    group = Group(ranks=[])
    known = pb.Admission(rank=1, generation=1, incarnation=NEWCOMER, in_group=in_group)
    left = pb.Departure(ranks=[1], incarnation=101)
    if in_group:
        group.workers[1] = group.join(1, resuming=True, incarnation=NEWCOMER, generation=1)
        assert ConnectUplinks() not in group.relay.told
    group.workers[0] = group.join(0, resuming=True, admissions=[known], departures=[left])
    group.connect()
    assert list(group.job.hello(0, False).ranks) == ([0, 1] if in_group else [0])


def test_a_newcomer_that_had_left_before_another_one_is_none_that_the_group_has_begun_with() -> None:
    """The group may have begun with another rank, which the relay has to wait for."""
    group = Group(ranks=[])
    known = pb.Admission(rank=1, generation=2, incarnation=NEWCOMER, in_group=True)
    left = pb.Departure(ranks=[1], incarnation=101)
    group.workers[1] = group.join(1, resuming=True, incarnation=NEWCOMER, generation=2)
    group.workers[0] = group.join(0, resuming=True, admissions=[known], departures=[left])
    assert ConnectUplinks() not in group.relay.told
    group.pass_time(6)
    group.connect()


def test_an_admission_is_not_told_before_all_ranks_of_the_group_are_known() -> None:
    """The first worker that comes back tells whom it has admitted, and after that of another rank of the group, which
    has not admitted the process and may lack sums of the rounds before."""
    group = Group(ranks=[], size=1)
    newcomer = pb.Admission(rank=0, generation=1, incarnation=NEWCOMER, ids=[7], rounds=[1], in_group=True)
    other = pb.Admission(rank=5, generation=0, incarnation=105, in_group=True)
    group.workers[1] = group.join(1, resuming=True, admissions=[newcomer, other])
    group.workers[5] = group.join(5, resuming=True, admissions=[other])
    wait(group, 0)
    group.connect()
    assert [each.rank for each in group.job.hello(0, False).admissions] == [5]
    assert _admitted(group) == [5]
    group.say(5, admit=pb.Admit(admission=newcomer))
    assert _admitted(group) == [0]


@pytest.mark.parametrize("comes_back", [True, False])
def test_an_admission_is_not_told_before_all_ranks_of_the_group_are_back(comes_back: bool) -> None:
    """The relay was started again. A rank that is not back may have not admitted the process, and lack sums."""
    group = Group(ranks=[], size=3)
    newcomer = pb.Admission(rank=2, generation=1, incarnation=NEWCOMER, ids=[7], rounds=[1], in_group=True)
    lost = pb.Loss(rank=2, text="gone", in_group=True)
    group.workers[1] = group.join(1, resuming=True, losses=[lost], admissions=[newcomer])
    wait(group, 2)
    assert group.job.uplink.next_message(0) is None
    if comes_back:
        group.workers[0] = group.join(0, resuming=True, losses=[lost])
        group.connect()
        assert list(group.job.hello(0, False).admissions) == []
        assert _admitted(group) == []
        admit(group, 0, rank=2)
    else:
        group.pass_time(6)
        group.connect()
        assert [each.rank for each in group.job.hello(0, False).admissions] == [2]
    assert _admitted(group) == [2]


def _admitted(group: Group) -> list[int]:
    """The ranks of the admissions that an owner is told of."""
    return [message.admit.admission.rank for message, _ in group.sent() if message.HasField("admit")]


@pytest.mark.parametrize("others_lost", [False, True])
def test_all_that_a_worker_says_of_its_group_is_learned_before_the_owners_are_told(others_lost: bool) -> None:
    """Rank 0 has left, and rank 5 has joined. The first worker that comes back tells of both, and of losses elsewhere.

    Owners would take a hello without rank 5 for the truth, and lose it.
    """
    group = Group(ranks=[])
    known = pb.Admission(rank=5, generation=0, incarnation=NEWCOMER, in_group=True)
    left = pb.Departure(ranks=[0], incarnation=100)
    elsewhere = [pb.Loss(rank=3, text="gone")] if others_lost else []
    said = {"admissions": [known], "departures": [left], "losses": elsewhere}
    group.workers[1] = group.join(1, resuming=True, **said)
    assert ConnectUplinks() not in group.relay.told
    group.workers[5] = group.join(5, resuming=True, incarnation=NEWCOMER)
    group.connect()
    assert list(group.job.hello(0, False).ranks) == [1, 5]


def test_a_rank_that_had_joined_is_the_first_one_that_comes_back() -> None:
    """It knows of its own admission, and the relay has no other rank yet."""
    group = Group(ranks=[])
    group.workers[1] = group.join(1, resuming=True, incarnation=NEWCOMER, generation=1)
    lost = pb.Loss(rank=1, text="gone", in_group=True)
    known = pb.Admission(rank=1, generation=1, incarnation=NEWCOMER, in_group=True)
    group.workers[0] = group.join(0, resuming=True, losses=[lost], admissions=[known])
    group.connect()
    assert list(group.job.hello(0, False).generations) == [0, 1]


def test_a_newcomer_that_does_not_come_back_is_lost() -> None:
    """It was killed together with the relay."""
    group = Group(ranks=[])
    known = pb.Admission(rank=1, generation=1, incarnation=NEWCOMER, in_group=True)
    lost = pb.Loss(rank=1, text="gone", in_group=True)
    group.workers[0] = group.join(0, resuming=True, losses=[lost], admissions=[known])
    group.pass_time(6)
    group.connect()
    said = group.job.hello(0, False)
    assert list(said.ranks) == [0]
    assert [(each.rank, each.generation) for each in said.losses] == [(1, 1)]


def test_a_newcomer_that_comes_back_first_does_not_stand_for_a_rank_of_the_beginning() -> None:
    """The group had begun with ranks 0 and 1. Rank 1 was lost, and rank 5 has joined. The relay waits for rank 0."""
    group = Group(ranks=[])
    lost = pb.Loss(rank=1, text="gone", in_group=True)
    group.workers[5] = group.join(5, resuming=True, incarnation=NEWCOMER, losses=[lost])
    assert ConnectUplinks() not in group.relay.told
    group.workers[0] = group.join(0, resuming=True)
    group.connect()
    assert list(group.job.hello(0, False).ranks) == [0, 5]


def test_a_process_that_comes_back_when_the_relay_has_gone_on_is_excluded() -> None:
    """It would take part in rounds that were forwarded without it. The owners are told."""
    group = Group(ranks=[])
    group.workers[0] = group.join(0, resuming=True)
    group.pass_time(6)
    group.connect()
    assert isinstance(group.refusal(1, resuming=True), ExcludedError)
    assert losses(group.sent()) == [1]


def test_what_was_admitted_before_a_newcomer_came_is_said_on_each_new_stream(group: Group) -> None:
    """The newcomer itself has not admitted those. An owner that was started again must hear of them."""
    elsewhere = pb.Admission(rank=3, generation=1, incarnation=33, ids=[7], rounds=[1])
    group.say(0, admit=pb.Admit(admission=elsewhere))
    candidate = wait(group)
    report(group, 1)
    admit(group, 0)
    decide(group)
    group.workers[1] = group.relay.let_in(candidate)
    said = group.job.hello(0, True)
    assert list(said.ranks) == [0, 1]
    assert sorted((each.rank, each.incarnation) for each in said.admissions) == [(1, NEWCOMER), (3, 33)]


@pytest.mark.parametrize("order", [(0, 2, 1), (2, 0, 1), (2, 1, 0)])
def test_a_group_that_has_grown_is_waited_for_when_the_relay_is_started_again(order: tuple[int, ...]) -> None:
    """It has begun with two ranks, and a newcomer counts as none of those, also if it is lost by now."""
    group = Group(ranks=[])
    known = pb.Admission(rank=2, generation=0, incarnation=102, in_group=True)
    for rank in order[:-1]:
        group.workers[rank] = group.join(rank, resuming=True, num_workers=2, admissions=[known])
        assert ConnectUplinks() not in group.relay.told
    group.workers[order[-1]] = group.join(order[-1], resuming=True, num_workers=2, admissions=[known])
    group.connect()
    assert list(group.job.hello(0, False).ranks) == [0, 1, 2]
    group.lose(2)
    # For the next process of the relay it is none of those to wait for.
    assert [(each.rank, each.in_group) for each in group.job.losses(group.relay.now)] == [(2, False)]
    group.lose(1)
    assert sorted((each.rank, each.in_group) for each in group.job.losses(group.relay.now)) == [(1, True), (2, False)]


def test_a_rank_that_leaves_a_newcomer_behind_is_told_to_the_owners() -> None:
    """The relay was started again. The newcomer has not used a key yet, and declares it only then."""
    group = Group(ranks=[], size=1)
    known = pb.Admission(rank=5, generation=0, incarnation=NEWCOMER, in_group=True)
    group.workers[0] = group.join(0, resuming=True, admissions=[known])
    group.workers[5] = group.join(5, resuming=True, incarnation=NEWCOMER)
    group.connect()
    group.declare(key(0, id=7, round=3), 0)
    assert "declare" not in group.kinds()
    group.say(0, goodbye=pb.Goodbye())
    [(message, _)] = group.sent()
    assert list(message.goodbye.ranks) == [0]


def test_a_newcomer_that_had_left_is_told_to_the_owners() -> None:
    """The relay was started again. A worker tells of the departure, and an owner may not have heard of it."""
    group = Group(ranks=[], size=1)
    known = pb.Admission(rank=5, generation=0, incarnation=NEWCOMER, in_group=True)
    left = pb.Departure(ranks=[5], incarnation=NEWCOMER)
    group.workers[0] = group.join(0, resuming=True, admissions=[known], departures=[left])
    group.connect()
    said = group.job.hello(0, False)
    assert list(said.ranks) == [0]
    assert [(list(each.ranks), each.incarnation) for each in said.departures] == [([5], NEWCOMER)]


def test_owners_are_not_told_that_a_round_waits_for_a_process_that_is_not_let_in(group: Group) -> None:
    """For them it is none of the group, which could not wait for it."""
    wait(group)
    admit(group, 0)
    group.push(0, round=1)
    group.pass_time(2)
    assert "lacking" not in group.all_kinds()
