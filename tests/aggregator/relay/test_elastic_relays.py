"""Relays and owners of an elastic job together, without I/O: losses, leaving, and processes that are started again."""

import pytest

from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, to_columns
from psum.wire.errors import FaultError
from tests.aggregator.relay.elastic_hosts import Hosts, total
from tests.aggregator.relay.pure import key, pull, push


@pytest.fixture
def hosts() -> Hosts:
    return Hosts()


def test_nothing_is_different_while_nobody_is_lost(hosts: Hosts) -> None:
    """All get the sum of all, which counts the nominal number of ranks."""
    hosts.declare(key(0))
    hosts.push(0, 1, 2, 3)
    assert [hosts.results(rank) for rank in range(4)] == [[(total(0, 1, 2, 3), 0)]] * 4


def test_a_worker_of_a_group_is_killed(hosts: Hosts) -> None:
    """The others get the sum without it, with the count, and are told before."""
    hosts.declare(key(0))
    hosts.push(0, 2, 3)
    hosts.kill(1)
    assert [hosts.results(rank) for rank in (0, 2, 3)] == [[(total(0, 2, 3), 3)]] * 3
    assert hosts.lost() == [[1]]
    hosts.push(0, 2, 3, round=1)
    assert [hosts.results(rank) for rank in (0, 2, 3)] == [[(total(0, 2, 3), 3)]] * 3


def test_workers_of_several_groups_are_killed(hosts: Hosts) -> None:
    """What a worker had contributed before counts, though its group had not sent it yet."""
    hosts.declare(key(0))
    hosts.push(0, 1, 2)
    hosts.kill(1, 2)
    hosts.push(3)
    assert [hosts.results(rank) for rank in (0, 3)] == [[(total(0, 1, 2, 3), 0)]] * 2
    assert hosts.lost() == [[1, 2]]
    hosts.push(0, 3, round=1)
    assert [hosts.results(rank) for rank in (0, 3)] == [[(total(0, 3), 2)]] * 2


def test_every_owner_hears_of_a_loss() -> None:
    """A relay tells all, as a worker does."""
    hosts = Hosts(owners=2)
    hosts.declare(key(0, 1))
    hosts.kill(1)
    assert hosts.lost() == [[1], [1]]
    hosts.push(0, 2, 3, shard=0)
    hosts.push(0, 2, 3, shard=1)
    assert hosts.results(2) == [(total(0, 2, 3), 3)] * 2


def test_all_workers_of_a_host_are_killed(hosts: Hosts) -> None:
    """The relay tells the owners, and parts. The others go on without the whole group."""
    hosts.declare(key(0))
    hosts.push(0, 1)
    hosts.kill(2, 3)
    assert hosts.lost() == [[2, 3]]
    assert [hosts.results(rank) for rank in (0, 1)] == [[(total(0, 1), 2)]] * 2
    assert hosts.relays[1].groups.jobs == {}


def test_the_workers_of_a_host_are_killed_one_after_the_other(hosts: Hosts) -> None:
    """The relay's goodbye names the last one, and the owners know of the first one already."""
    hosts.declare(key(0))
    hosts.kill(2)
    hosts.push(0, 1, 3)
    assert hosts.results(0) == [(total(0, 1, 3), 3)]
    hosts.kill(3)
    hosts.push(0, 1, round=1)
    assert hosts.results(0) == [(total(0, 1), 2)]


def test_a_relay_is_killed_and_started_again(hosts: Hosts) -> None:
    """Its workers come to the next process. Nobody is lost, and no bit changes."""
    hosts.declare(key(0))
    hosts.push(0, 1, 2)
    hosts.kill_relay(1)
    hosts.pass_time(3)
    hosts.begin_group(1, resuming=True)
    hosts.settle()
    hosts.declare(key(0), 2, 3)
    hosts.push(2, 3)
    assert [hosts.results(rank) for rank in range(4)] == [[(total(0, 1, 2, 3), 0)]] * 4
    assert hosts.lost() == [[]]


def test_a_relay_and_a_worker_are_killed(hosts: Hosts) -> None:
    """Nobody can say which rank it was but the owner, which misses it in the hello of the next relay process."""
    hosts.declare(key(0))
    hosts.push(0, 1)
    hosts.kill_relay(1)
    del hosts.workers[3]
    hosts.begin_group(1, [2], resuming=True)
    hosts.declare(key(0), 2)
    hosts.push(2)
    hosts.pass_time(4.5)
    assert hosts.lost() == [[]]
    hosts.pass_time(1.5)
    assert hosts.lost() == [[3]]
    assert [hosts.results(rank) for rank in (0, 2)] == [[(total(0, 1, 2), 3)]] * 2


def test_a_relay_is_killed_after_a_worker_was_lost(hosts: Hosts) -> None:
    """The worker that is left says so, and the next process does not wait for the lost one."""
    hosts.declare(key(0))
    hosts.kill(3)
    hosts.push(0, 1)
    [loss] = [loss for message, _ in hosts.workers[2].received() for loss in message.losses.losses]
    assert loss.in_group
    hosts.kill_relay(1)
    hosts.begin_group(1, [2], resuming=True, losses=[loss])
    hosts.settle()
    hosts.declare(key(0), 2)
    hosts.push(2)
    assert hosts.results(2) == [(total(0, 1, 2), 3)]


def test_a_relay_does_not_come_back(hosts: Hosts) -> None:
    """Its workers wait for it, so its place is kept for the worker timeout of other jobs. Then the others go on."""
    hosts.declare(key(0))
    hosts.push(0, 1)
    hosts.kill_relay(1)
    hosts.pass_time(29)
    assert hosts.lost() == [[]]
    hosts.pass_time(2)
    assert hosts.lost() == [[2, 3]]
    assert hosts.results(0) == [(total(0, 1), 2)]


def test_a_relay_that_comes_back_too_late_is_told_so(hosts: Hosts) -> None:
    """Its workers are excluded, all of them, and no job fails."""
    hosts.declare(key(0))
    hosts.kill_relay(1)
    hosts.pass_time(31)
    hosts.begin_group(1, resuming=True)
    with pytest.raises(AssertionError, match="excluded"):
        hosts.settle()
    refusal = hosts.owners[0].fleet.join(hosts.job(1).hello(0, True), "peer", hosts.owners[0].now)[2]
    assert isinstance(refusal, FaultError)
    hosts.relays[1].runner.perform(hosts.job(1), hosts.job(1).unreachable(refusal, hosts.relays[1].now))
    assert [fault.code for rank in (2, 3) for fault in hosts.workers[rank].faults()] == [pb.FAULT_CODE_EXCLUDED] * 2
    assert hosts.job(1).failure is None


def test_an_owner_is_started_again_after_a_loss(hosts: Hosts) -> None:
    """The relays tell it of the loss, and give back the last sum with its count."""
    hosts.declare(key(0))
    hosts.kill(3)
    hosts.push(0, 1)
    late = hosts.uplinks.pop(0)
    hosts.push(2)
    assert hosts.results(2) == [(total(0, 1, 2), 3)]
    hosts.uplinks[0] = late
    # The result has not reached the first host.
    late.peers[0].received()  # type: ignore[union-attr]
    hosts.restart_owner()
    assert hosts.lost() == [[3]]
    assert [hosts.results(rank) for rank in (0, 1)] == [[(total(0, 1, 2), 3)]] * 2


def test_the_root_of_a_broadcast_is_lost_before_it_has_sent_its_value(hosts: Hosts) -> None:
    """The owner asks another group for a value, and its relay asks one of its workers."""
    hosts.declare(key(0, broadcast=True))
    for rank in (1, 2, 3):
        hosts.relay(rank).say(hosts.workers[rank], **pull())
    hosts.kill(0)
    asked = []
    for rank in (1, 2, 3):
        for message, _ in hosts.workers[rank].received():
            if message.HasField("want"):
                asked.append(rank)
    [rank] = asked
    columns = to_columns([ShardRound(7, 0, 0, length=4)])
    hosts.relay(rank).say(hosts.workers[rank], payload=b"mine", restore=pb.Restore(shards=columns))
    hosts.settle()
    assert [hosts.results(rank) for rank in (1, 2, 3)] == [[(b"mine", 0)]] * 3


def test_a_root_sends_its_value_through_its_relay(hosts: Hosts) -> None:
    """Another rank of its group was lost."""
    hosts.declare(key(0, broadcast=True))
    hosts.kill(1)
    hosts.relay(0).say(hosts.workers[0], **push(b"root"))
    for rank in (2, 3):
        hosts.relay(rank).say(hosts.workers[rank], **pull())
    hosts.settle()
    assert [hosts.results(rank) for rank in (0, 2, 3)] == [[(b"", 0)], [(b"root", 0)], [(b"root", 0)]]


def test_a_worker_leaves_and_the_others_go_on(hosts: Hosts) -> None:
    """Later rounds need neither it nor, at last, its whole group."""
    hosts.declare(key(0))
    hosts.push(0, 1, 2, 3)
    assert hosts.results(0) == [(total(0, 1, 2, 3), 0)]
    hosts.relay(3).say(hosts.workers[3], goodbye=pb.Goodbye())
    hosts.settle()
    hosts.push(0, 1, 2, round=1)
    assert hosts.results(0) == [(total(0, 1, 2), 3)]
    hosts.relay(2).say(hosts.workers[2], goodbye=pb.Goodbye())
    hosts.settle()
    hosts.push(0, 1, round=2)
    assert hosts.results(0) == [(total(0, 1), 2)]
    assert hosts.lost() == [[]]


def test_an_owner_that_is_started_again_does_not_wait_for_ranks_that_have_left(hosts: Hosts) -> None:
    """Their relay names them in its hello."""
    hosts.declare(key(0))
    hosts.push(0, 1, 2, 3)
    hosts.relay(3).say(hosts.workers[3], goodbye=pb.Goodbye())
    hosts.settle()
    hosts.restart_owner()
    hosts.push(0, 1, 2, round=1)
    assert hosts.results(0)[-1] == (total(0, 1, 2), 3)
    assert hosts.lost() == [[]]


def test_a_key_of_some_ranks_crosses_groups(hosts: Hosts) -> None:
    """Ranks 1 and 2 share a broadcast, as a donor and a newcomer do. Nobody else takes part."""
    declared = key(0, broadcast=True)
    declared.ranks[:] = [1, 2]
    hosts.declare(declared, 1, 2)
    hosts.relay(2).say(hosts.workers[2], **pull())
    hosts.relay(1).say(hosts.workers[1], **push(b"gift"))
    hosts.settle()
    assert [hosts.results(rank) for rank in (1, 2)] == [[(b"", 0)], [(b"gift", 0)]]


def test_the_root_of_a_key_of_some_ranks_is_lost(hosts: Hosts) -> None:
    """Only its root has the value: the key fails for those that use it, and the job goes on."""
    declared = key(0, broadcast=True)
    declared.ranks[:] = [1, 2]
    hosts.declare(declared, 1, 2)
    hosts.relay(2).say(hosts.workers[2], **pull())
    hosts.kill(1)
    [fault] = hosts.workers[2].faults()
    assert (fault.code, fault.id) == (pb.FAULT_CODE_WORKER_LOST, 7)
    assert hosts.workers[0].faults() == []
