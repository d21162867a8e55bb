"""Processes join an elastic job through relays: relays and owners together, without I/O."""

import pytest

from psum.aggregator.core.candidates import Candidate
from psum.aggregator.service.registries import Registries
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ExcludedError
from tests.aggregator.relay.elastic_hosts import NEWCOMER, Hosts, total
from tests.aggregator.relay.pure import key


@pytest.fixture
def hosts() -> Hosts:
    """Rank 3 is lost, in the second round of the key, with two owners that have a shard each."""
    hosts = Hosts(owners=2)
    hosts.declare(key(0, 1))
    for shard in (0, 1):
        hosts.push(0, 1, 2, 3, shard=shard)
    hosts.kill(3)
    for rank in (0, 1, 2):
        hosts.workers[rank].received()
    return hosts


def push_all(hosts: Hosts, *ranks: int, round: int) -> None:
    for shard in (0, 1):
        hosts.push(*ranks, round=round, shard=shard)


def test_all_members_hear_who_waits_at_a_relay(hosts: Hosts) -> None:
    """Those of other groups hear it from their relays, and those of its own group from the owners too."""
    hosts.wait(3)
    assert [hosts.candidates(rank)[-1] for rank in (0, 1, 2)] == [[3]] * 3


def test_a_killed_worker_is_replaced_through_its_relay(hosts: Hosts) -> None:
    """It is let in when all members have admitted it, and contributes through the relay from its first round on."""
    candidate = hosts.wait(3)
    hosts.admit(3, by=[0, 2])
    assert hosts.relays[1].decided == []
    hosts.admit(3, by=[1])
    hosts.workers[3] = hosts.relays[1].let_in(candidate)
    hosts.declare(key(0, 1, round=1), 3)
    push_all(hosts, 0, 1, 2, round=1)
    assert hosts.results(0) == []
    push_all(hosts, 3, round=1)
    assert [hosts.results(rank) for rank in range(4)] == [[(total(0, 1, 2, 3), 0)] * 2] * 4
    assert hosts.lost() == [[], []]


def test_a_rank_that_the_job_did_not_have_joins_at_another_relay(hosts: Hosts) -> None:
    """Rank 5 joins at the first host, and the sums count four ranks again."""
    candidate = hosts.wait(5, host=0)
    hosts.admit(5, generation=0)
    hosts.workers[5] = hosts.relays[0].let_in(candidate)
    relay, peer = hosts.relays[0], hosts.workers[5]
    relay.say(peer, declare=pb.Declare(keys=[key(0, 1, round=1)]))
    push_all(hosts, 0, 1, 2, round=1)
    assert hosts.results(2) == []


def test_a_rank_moves_to_another_host(hosts: Hosts) -> None:
    """The process that takes the place of rank 3 is at the first relay. The second one goes on with rank 2."""
    candidate = hosts.wait(3, host=0)
    hosts.admit(3)
    hosts.relays[0].let_in(candidate)
    assert list(hosts.job(0).hello(0, True).ranks) == [0, 1, 3]
    assert list(hosts.job(1).hello(0, True).ranks) == [2]
    hosts.settle()


def test_a_newcomer_is_killed_before_it_is_let_in(hosts: Hosts) -> None:
    """The relay loses it, and the others go on."""
    candidate = hosts.wait(3)
    hosts.admit(3, by=[0, 1])
    hosts.relays[1].withdraw(candidate)
    hosts.admit(3, by=[2])
    push_all(hosts, 0, 1, 2, round=1)
    hosts.pass_time(7)
    assert hosts.results(0) == [(total(0, 1, 2), 3)] * 2
    assert hosts.lost() == [[3], [3]]


def test_a_newcomer_is_killed_while_the_owners_decide(hosts: Hosts) -> None:
    """The decisions that it is one of the group come when it is gone. The relay loses it."""
    candidate = hosts.wait(3)
    hosts.admit(3, by=[0, 1])
    known = pb.Admission(rank=3, generation=1, incarnation=NEWCOMER, ids=[7], rounds=[1])
    hosts.relay(2).say(hosts.workers[2], admit=pb.Admit(admission=known))
    for index, (owner, peer) in enumerate(hosts.uplinks[1].pairs()):
        while (message := hosts.job(1).uplink.next_message(index)) is not None:
            owner.handle(peer, message)
    hosts.relays[1].withdraw(candidate)
    hosts.settle()
    push_all(hosts, 0, 1, 2, round=1)
    hosts.pass_time(2)
    assert hosts.results(0) == [(total(0, 1, 2), 3)] * 2
    assert hosts.lost() == [[3], [3]]


def test_a_relay_is_killed_while_a_process_joins(hosts: Hosts) -> None:
    """Some members have admitted it. It waits at the next process of the relay, and the others admit it too."""
    hosts.wait(3)
    hosts.admit(3, by=[2])
    known = pb.Admission(rank=3, generation=1, incarnation=NEWCOMER, ids=[7], rounds=[1], in_group=True)
    hosts.kill_relay(1)
    lost = pb.Loss(rank=3, text="gone", in_group=True)
    hosts.begin_group(1, [2], resuming=True, losses=[lost], admissions=[known])
    candidate = hosts.wait(3)
    hosts.declare(key(0, 1, round=1), 2)
    hosts.admit(3, by=[0, 1])
    hosts.workers[3] = hosts.relays[1].let_in(candidate)
    hosts.declare(key(0, 1, round=1), 3)
    push_all(hosts, 0, 1, 2, 3, round=1)
    assert [hosts.results(rank) for rank in range(4)] == [[(total(0, 1, 2, 3), 0)] * 2] * 4


def test_an_owner_is_killed_while_a_process_joins(hosts: Hosts) -> None:
    """The relay says again who waits, and all that their workers have admitted it."""
    candidate = hosts.wait(3)
    hosts.admit(3, by=[0, 1])
    hosts.restart_owner(0)
    hosts.admit(3, by=[2])
    hosts.workers[3] = hosts.relays[1].let_in(candidate)
    hosts.declare(key(0, 1, round=1), 3)
    push_all(hosts, 0, 1, 2, 3, round=1)
    assert [hosts.results(rank) for rank in range(4)] == [[(total(0, 1, 2, 3), 0)] * 2] * 4


def test_an_owner_is_killed_after_a_process_has_joined(hosts: Hosts) -> None:
    """The relay names it in its hello."""
    candidate = hosts.wait(3)
    hosts.admit(3)
    hosts.workers[3] = hosts.relays[1].let_in(candidate)
    hosts.declare(key(0, 1, round=1), 3)
    hosts.settle()
    hosts.restart_owner(1)
    push_all(hosts, 0, 1, 2, 3, round=1)
    assert [hosts.results(rank) for rank in range(4)] == [[(total(0, 1, 2, 3), 0)] * 2] * 4
    hosts.pass_time(7)
    assert hosts.lost() == [[], []]


def test_owners_and_a_relay_are_killed_after_a_process_has_joined(hosts: Hosts) -> None:
    """The other relay tells the owners of the admission. The process counts as a member that comes back, although its
    relay needs longer than a newcomer has to come."""
    candidate = hosts.wait(3)
    hosts.admit(3)
    hosts.relays[1].let_in(candidate)
    hosts.kill_relay(1)
    for index in range(2):
        hosts.restart_owner(index)
    hosts.pass_time(8)
    lost = pb.Loss(rank=3, text="gone", in_group=True)
    known = pb.Admission(rank=3, generation=1, incarnation=NEWCOMER, in_group=True)
    hosts.begin_group(1, [2], resuming=True, losses=[lost], admissions=[known])
    hosts.begin_group(1, [3], resuming=True, generation=1, incarnation=NEWCOMER)
    hosts.settle()
    hosts.declare(key(0, 1, round=1), 0, 1, 2, 3)
    push_all(hosts, 0, 1, 2, 3, round=1)
    assert [hosts.results(rank) for rank in range(4)] == [[(total(0, 1, 2, 3), 0)] * 2] * 4


def joins_in_its_first_round(hosts: Hosts, candidate: Candidate) -> None:
    """The process of rank 3 is let in, and contributes with ranks 0 and 1. Nobody has to wait, and it is not lost."""
    hosts.workers[3] = hosts.relays[1].let_in(candidate)
    hosts.declare(key(0, 1, round=1), 3)
    push_all(hosts, 0, 1, 3, round=1)
    assert [hosts.results(rank) for rank in (0, 1, 3)] == [[(total(0, 1, 3), 3)] * 2] * 3
    hosts.pass_time(7)
    assert hosts.lost() == [[2], [2]]


def test_the_last_worker_of_a_relay_is_killed_while_a_process_joins(hosts: Hosts) -> None:
    """The others have admitted it. The relay parts from the owners, and begins its group anew with this process."""
    candidate = hosts.wait(3)
    hosts.admit(3, by=[0, 1])
    hosts.kill(2, seconds=2.0)
    joins_in_its_first_round(hosts, candidate)


def test_the_last_worker_of_a_relay_is_killed_before_a_process_is_admitted(hosts: Hosts) -> None:
    """The members had agreed on it. They admit it after the relay has parted from the owners."""
    candidate = hosts.wait(3)
    hosts.kill(2, seconds=1.25)
    hosts.admit(3, by=[0, 1])
    hosts.pass_time(1.0)
    joins_in_its_first_round(hosts, candidate)


def test_the_last_worker_of_a_relay_has_admitted_a_process_and_is_killed(hosts: Hosts) -> None:
    """The others have not. So the relay expects the process, and does not wait for it in a group without members."""
    candidate = hosts.wait(3)
    hosts.admit(3, by=[2])
    hosts.kill(2, seconds=2.0)
    hosts.admit(3, by=[0, 1])
    joins_in_its_first_round(hosts, candidate)


def test_the_last_worker_of_a_relay_is_killed_while_the_owners_decide(hosts: Hosts) -> None:
    """One of them has decided that the process is one of the group. It waits for it to come again."""
    candidate = hosts.wait(3)
    hosts.admit(3, by=[0, 1])
    known = pb.Admission(rank=3, generation=1, incarnation=NEWCOMER, ids=[7], rounds=[1])
    hosts.relay(2).say(hosts.workers[2], admit=pb.Admit(admission=known))
    while (message := hosts.job(1).uplink.next_message(0)) is not None:
        hosts.owners[0].handle(hosts.uplinks[1].pairs()[0][1], message)
    hosts.kill(2, seconds=2.0)
    joins_in_its_first_round(hosts, candidate)


def test_two_processes_wait_when_the_last_worker_of_their_relay_is_killed(hosts: Hosts) -> None:
    """The group begins anew with the one that has waited longest, which the others have admitted. Its relay then tells
    of the other one."""
    candidate = hosts.wait(3)
    hosts.kill(2, seconds=0.25)
    hosts.wait(2, incarnation=NEWCOMER + 1)
    hosts.admit(3, by=[0, 1])
    hosts.pass_time(2.0)
    joins_in_its_first_round(hosts, candidate)
    assert [[each.rank for each in owner.fleet.jobs["night"].candidates()] for owner in hosts.owners] == [[2], [2]]


def test_a_process_that_ends_with_the_last_worker_of_its_relay_is_lost(hosts: Hosts) -> None:
    """It was admitted, and waited at the relay. The others go on as soon as without any worker that is killed."""
    candidate = hosts.wait(3)
    hosts.admit(3, by=[0, 1])
    hosts.kill(2, seconds=1.25)
    hosts.relays[1].withdraw(candidate)
    push_all(hosts, 0, 1, round=1)
    assert hosts.results(0) == []
    hosts.pass_time(1.5)
    assert [hosts.results(rank) for rank in (0, 1)] == [[(total(0, 1), 2)] * 2] * 2
    assert hosts.lost() == [[2, 3], [2, 3]]


def test_a_process_of_a_lost_group_is_told_that_the_job_goes_on(hosts: Hosts) -> None:
    """A new process comes as at the job's beginning to a relay whose workers are all lost. If an owner is in the same
    aggregator, the process hears that it can join, and says hello again."""
    hosts.kill(2)
    registries = Registries(hosts.owners[0].fleet, pytest.fail)
    refusal = registries.goes_on_without(hosts.hello(2, incarnation=NEWCOMER), "peer", 10.0)
    assert isinstance(refusal, ExcludedError)
    assert registries.goes_on_without(hosts.hello(0), "peer", 10.0) is None
    assert registries.goes_on_without(hosts.hello(2, job="other"), "peer", 10.0) is None
