"""A process joins a running job at a relay that has no group: all its workers were lost, or it never had any."""

from typing import Any

import pytest

from psum.aggregator.core.actions import Admit, ConnectUplinks, PartUplinks, Refuse, ReopenUplinks
from psum.aggregator.core.candidates import Candidate
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ExcludedError, UnreachableError, WorkerLostError
from tests.aggregator.relay.group import Group, pushed
from tests.aggregator.relay.pure import key


def wait(group: Group, rank: int, incarnation: int = 999) -> Candidate:
    return group.relay.wait(group.hello(rank, joining=True, incarnation=incarnation))


def welcome(group: Group, owner: int, **rounds: Any) -> None:
    """An owner lets the relay in, with rounds of some keys."""
    admission = pb.Admission(rank=0, generation=1, incarnation=999, ids=rounds["ids"], rounds=rounds["rounds"])
    group.job.uplink.welcomed(pb.Welcome(admission=admission))
    group.job.uplink.let_in(owner)
    group.relay.runner.perform(group.job, group.job.heard(group.relay.now))


@pytest.fixture
def group() -> Group:
    """A relay with two owners, whose workers are lost. A process waits at it, and has begun the group anew."""
    group = Group(owners=2)
    group.declare(key(0, 1))
    group.lose(0, 1)
    assert group.relay.groups.jobs == {}
    group.relay.told.clear()
    return group


def test_a_process_waits_for_others_of_its_group_first(group: Group) -> None:
    """The relay may have been started again, and its workers come back at once. Then the process joins with them."""
    wait(group, 0)
    group.relay.tick(1.5)
    assert group.relay.groups.jobs == {}
    group.relay.tick(1.0)
    assert ConnectUplinks() in group.relay.told


def test_the_first_process_of_a_group_is_let_in_by_every_owner(group: Group) -> None:
    """For the owners the relay is a candidate. The process is welcomed with the rounds of all owners."""
    candidate = wait(group, 0)
    group.relay.tick(2.5)
    said = group.job.hello(0, False)
    assert (said.joining, list(said.ranks), list(said.incarnations), said.incarnation) == (True, [0], [999], 999)
    welcome(group, 0, ids=[7], rounds=[3])
    assert group.relay.decided == []
    welcome(group, 1, ids=[8], rounds=[5])
    assert group.relay.decided == [Admit(candidate)]
    group.workers = {0: group.relay.let_in(candidate)}
    admission = group.job.admission(0)
    assert admission is not None
    assert dict(zip(admission.ids, admission.rounds, strict=True)) == {7: 3, 8: 5}
    group.declare(key(0, 1, round=3), 0)
    group.push(0, round=3)
    assert pushed(group.sent(0)) == [(3, bytes([1] * 4), 1)]
    said = group.job.hello(0, True)
    assert (said.joining, said.resuming, list(said.ranks), list(said.generations)) == (False, True, [0], [1])


def test_others_that_wait_join_after_it(group: Group) -> None:
    """The owners are told of them when the relay is a member."""
    wait(group, 0)
    wait(group, 1)
    group.relay.tick(2.5)
    welcome(group, 0, ids=[], rounds=[])
    welcome(group, 1, ids=[], rounds=[])
    [(message, _)] = group.sent(0)
    assert [each.rank for each in message.candidates.candidates] == [1]


def test_a_founder_that_ends_leaves_the_others_waiting(group: Group) -> None:
    """The relay parts from the owners, and begins again with the next process."""
    candidate = wait(group, 0)
    wait(group, 1)
    group.relay.tick(2.5)
    job = group.job
    group.relay.withdraw(candidate)
    with pytest.raises(WorkerLostError, match="ended before its relay let it in"):
        # An owner that was not reachable before.
        job.hello(0, False)
    [part] = [action for action in group.relay.told if isinstance(action, PartUplinks)]
    assert list(part.goodbye.fault.ranks) == [0]
    assert part.goodbye.fault.code == pb.FAULT_CODE_WORKER_LOST
    group.relay.tick(0.25)
    group.relay.tick(0.25)
    assert list(group.job.hello(0, False).ranks) == [1]


def test_a_founder_is_told_why_owners_refuse_it(group: Group) -> None:
    """An owner cannot be reached, for example."""
    candidate = wait(group, 0)
    group.relay.tick(2.5)
    failure = UnreachableError("no route")
    group.relay.runner.perform(group.job, group.job.unreachable(failure, group.relay.now))
    assert group.relay.decided == [Refuse(candidate, failure)]
    group.relay.tick(0.25)
    assert group.relay.groups.jobs == {}


def test_members_that_come_back_late_make_it_a_candidate_as_others(group: Group) -> None:
    """The relay had been started again, and they needed longer than usual."""
    group.restart()
    wait(group, 0)
    group.relay.tick(2.5)
    group.relay.told.clear()
    lost = pb.Loss(rank=0, text="gone", in_group=True)
    group.workers = {1: group.join(1, resuming=True, losses=[lost])}
    assert ReopenUplinks() in group.relay.told
    said = group.job.hello(0, False)
    assert (said.joining, list(said.ranks)) == (False, [1])


def test_a_process_that_was_lost_with_its_group_is_excluded(group: Group) -> None:
    """It had been stopped, and comes back to a relay that has no group any more."""
    refusal = group.refusal(1, resuming=True)
    assert isinstance(refusal, ExcludedError)
    assert "rank 1 of elastic job 'night' was excluded" in str(refusal)
