"""Relays and owners that were started again: the group is the same member, and no sum is lost."""

import pytest

from psum.aggregator.core.actions import ReopenUplinks
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, to_columns, to_rows
from psum.wire.errors import WorkerLostError
from tests.aggregator.relay.hosts import SUM, Hosts, two_hosts
from tests.aggregator.relay.pure import Process, Uplinks, hello, key, push

hosts = pytest.fixture(two_hosts)


def test_a_key_is_declared_when_all_ranks_have_declared_it(hosts: Hosts) -> None:
    """Only then is the group's round known: it is that of the rank that is ahead."""
    hosts.restart_owner()
    hosts.restart_relay(0, declared=False)
    hosts.declare(key(0, round=3), [0])
    [fleet] = hosts.owners[0].fleet.jobs.values()
    assert fleet.keys == {}
    hosts.declare(key(0, round=4), [1])
    assert fleet.keys[7].shards[0].round == 4


def test_a_relay_that_was_started_again_is_the_same_member(hosts: Hosts) -> None:
    """Its workers send again what has no result; the sum is made from the same contributions."""
    hosts.declare(key(0))
    hosts.push(ranks=[0, 1])
    hosts.restart_relay(0, 0, 0)
    hosts.push(ranks=[0, 1])
    hosts.push(ranks=[2, 3])
    assert [worker.results() for worker in hosts.workers] == [[SUM]] * 4


def test_a_result_that_a_killed_relay_had_is_answered_again(hosts: Hosts) -> None:
    """The relay was killed with the result that its workers lack; the owner has it still."""
    hosts.declare(key(0))
    hosts.push()
    hosts.restart_relay(0, 0, 0)
    hosts.push(ranks=[0, 1])
    assert [worker.results() for worker in hosts.workers[:2]] == [[SUM]] * 2


def test_a_rank_gives_back_what_another_one_lacks(hosts: Hosts) -> None:
    """The relay was killed when one of its ranks had the result; it asks that rank."""
    hosts.declare(key(0))
    hosts.push()
    hosts.restart_relay(0, 1, 0)
    hosts.push(ranks=[1])
    assert hosts.workers[0].kinds() == ["want"]
    columns = to_columns([ShardRound(7, 0, 0, length=4)])
    hosts.relay(0).say(hosts.workers[0], restore=pb.Restore(shards=columns), payload=SUM)
    assert hosts.workers[1].results() == [SUM]


def without_result(hosts: Hosts) -> Uplinks:
    """All ranks contribute, and the result does not reach the second relay, whose uplinks are returned."""
    hosts.declare(key(0))
    hosts.push(ranks=[0, 1])
    late = hosts.uplinks.pop()
    hosts.relays[1].say(hosts.workers[2], **push(bytes([100] * 4)))
    hosts.relays[1].say(hosts.workers[3], **push(bytes([1000 % 251] * 4)))
    owner, peer = late.pairs()[0]
    while (message := late.job.uplink.next_message(0)) is not None:
        owner.handle(peer, message)
    hosts.settle()
    return late


def test_the_relay_gives_back_a_sum_to_an_owner_that_was_started_again(hosts: Hosts) -> None:
    """The owner was killed when one relay had its result and the other had not."""
    late = without_result(hosts)
    assert [worker.results() for worker in hosts.workers] == [[SUM], [SUM], [], []]
    hosts.uplinks.append(late)
    hosts.restart_owner()
    assert [worker.results() for worker in hosts.workers] == [[], [], [SUM], [SUM]]


def test_relay_and_owner_killed_together_ask_a_rank(hosts: Hosts) -> None:
    """The relay that would give back the sum was killed too; a rank of its group has it."""
    late = without_result(hosts)
    late.peers[0] = None
    hosts.uplinks.append(late)
    hosts.owners[0] = Process(200)
    hosts.restart_relay(0, 1, 1)
    late.replace(0, hosts.owners[0])
    hosts.settle()
    asked = [worker for worker in hosts.workers[:2] if "want" in worker.kinds()]
    assert len(asked) == 1
    columns = to_columns([ShardRound(7, 0, 0, length=4)])
    hosts.relay(0).say(asked[0], restore=pb.Restore(shards=columns), payload=SUM)
    hosts.settle()
    assert [worker.results() for worker in hosts.workers[2:]] == [[SUM], [SUM]]


def test_another_rank_is_asked_if_the_last_one_that_had_the_sum_has_left(hosts: Hosts) -> None:
    """The relay was started again, and then a rank left while another one that has the sum stays. The owner is started
    again after that."""
    late = without_result(hosts)
    hosts.restart_relay(0, 1, 1)
    relay, [stays, leaves] = hosts.relay(0), hosts.workers[:2]
    relay.say(leaves, goodbye=pb.Goodbye())
    [number] = [message.sync.number for message, _ in stays.received() if message.HasField("sync")]
    relay.say(stays, synced=pb.Synced(number=number))
    relay.tick(0.1)
    assert "farewell" in leaves.kinds()
    relay.runner.perform(leaves.job, leaves.job.lost(leaves.rank, relay.now, closed=True))
    hosts.uplinks.append(late)
    hosts.restart_owner()
    assert "want" in stays.kinds()
    relay.say(stays, restore=pb.Restore(shards=to_columns([ShardRound(7, 0, 0, length=4)])), payload=SUM)
    hosts.settle()
    assert [worker.results() for worker in hosts.workers[2:]] == [[SUM], [SUM]]


@pytest.mark.parametrize("elastic", [None, pb.Elastic(min=1, max=4)], ids=["fixed", "elastic"])
def test_a_sum_that_came_back_before_the_whole_group_is_kept_for_an_owner(elastic: pb.Elastic | None) -> None:
    """Relay and owner were started again. One rank gives its sum back to another one before the third rank is here, and
    so before the owner hears of the key. The owner's own workers need that sum too: nobody in the group might begin the
    next round before they have it."""
    owner, relay = Process(100), Process(1)
    far = owner.join(hello(3, group=0, elastic=elastic, resuming=True))
    owner.say(far, declare=pb.Declare(keys=[key(0)]))
    owner.say(far, **push(bytes([8] * 4)))
    has, lacks = [relay.join(hello(rank, group=3, elastic=elastic, resuming=True)) for rank in (0, 1)]
    uplinks = Uplinks(relay, has.job, [owner])
    relay.say(lacks, declare=pb.Declare(keys=[key(0)]))
    relay.say(has, declare=pb.Declare(keys=[key(0, round=1)]))
    relay.say(lacks, **push(bytes([2] * 4)))
    assert "want" in has.kinds()
    row = ShardRound(7, 0, 0, length=4, contributors=3 if elastic else 0)
    relay.say(has, restore=pb.Restore(shards=to_columns([row])), payload=SUM)
    assert lacks.results() == [SUM]
    uplinks.job.check()
    late = relay.join(hello(2, group=3, elastic=elastic, resuming=True))
    uplinks.run()
    relay.say(late, declare=pb.Declare(keys=[key(0, round=1)]))
    uplinks.run()
    [(response, payload)] = [each for each in far.received() if each[0].HasField("result")]
    [result] = to_rows(response.result.shards)
    assert (result.round, bytes(payload), result.contributors) == (0, SUM, row.contributors)
    uplinks.job.check()


def test_a_sum_that_came_back_before_the_whole_group_is_let_go_if_a_rank_is_further() -> None:
    """Such ranks show that the sum is not the last one. The owner gets that of the round before its own."""
    owner, relay = Process(100), Process(1)
    first, second = [relay.join(hello(rank, group=3, resuming=True)) for rank in (0, 1)]
    uplinks = Uplinks(relay, first.job, [owner])
    relay.say(first, declare=pb.Declare(keys=[key(0, round=1)]))
    relay.say(first, restore=pb.Restore(shards=to_columns([ShardRound(7, 0, 0, length=4)])), payload=b"old!")
    relay.say(second, declare=pb.Declare(keys=[key(0, round=2)]))
    late = relay.join(hello(2, group=3, resuming=True))
    relay.say(late, declare=pb.Declare(keys=[key(0, round=2)]))
    uplinks.run()
    far = owner.join(hello(3, group=0, resuming=True))
    owner.say(far, declare=pb.Declare(keys=[key(0, round=1)]))
    owner.say(far, **push(bytes([8] * 4), round=1))
    uplinks.run()
    assert far.results() == []
    assert "want" in late.kinds()


def test_an_owner_that_was_started_again_is_told_of_a_key_that_had_failed(hosts: Hosts) -> None:
    """The owner is killed before all groups have heard of the failure. Those who have tell the next process."""
    hosts.declare(key(0))
    owner, peer = hosts.uplinks[1].pairs()[0]
    owner.runner.perform(peer.job, peer.job.lost(peer.rank, 0.0))
    hosts.uplinks[1].peers[0] = None
    owner.connections.pop((id(peer.job), peer.rank))
    fault = WorkerLostError("rank 3 has left", key=7, round=0, ranks=[3])
    owner.runner.perform(peer.job, peer.job.rounds.fail_key(peer.job.keys[7], fault))
    hosts.settle()
    assert [worker.faults() for worker in hosts.workers] == [[fault.to_message()]] * 2 + [[]] * 2
    hosts.restart_owner()
    assert [worker.faults() for worker in hosts.workers] == [[]] * 2 + [[fault.to_message()]] * 2


def test_nothing_is_sent_before_every_owner_has_let_the_group_in() -> None:
    """A relay, an owner and a worker are killed, and the worker is replaced. The other owner has a contribution of the
    old process, and refuses the group. The new owner has got nothing of the new process by then."""
    hosts = Hosts(owners=2)
    hosts.declare(key(0, 1))
    hosts.push(shard=0)
    [owner, peer], _ = hosts.uplinks[0].pairs()
    owner.runner.perform(peer.job, peer.job.lost(peer.rank, 0.0))
    relay, new = Process(1000), Process(200)
    relay.now = owner.now = 10.0
    workers = [relay.join(hello(0, owners=2, resuming=True)), relay.join(hello(1, owners=2, incarnation=999))]
    for rank, worker in enumerate(workers):
        relay.say(worker, declare=pb.Declare(keys=[key(0, 1)]))
        relay.say(worker, **push(bytes([rank] * 4), shard=1))
    uplinks = Uplinks(relay, workers[0].job, [owner, new])
    uplinks.connect(1)
    assert uplinks.job.uplink.next_message(1) is None
    _, _, refusal = owner.fleet.join(uplinks.job.hello(0, False), "peer", 10.0)
    assert refusal is not None
    assert "ranks 0-1" in str(refusal)
    assert owner.fleet.jobs["night"].failure is not None


def test_the_owners_hear_of_a_newcomer_also_if_others_have_come_back(hosts: Hosts) -> None:
    """A relay was started again. Then a worker that had come back ends, and another process takes its rank. The owner
    refuses the group, because it has a contribution of the old process."""
    hosts.declare(key(0))
    hosts.push(ranks=[0, 1])
    hosts.restart_relay(0, declared=False)
    relay, uplinks = hosts.relays[0], hosts.uplinks[0]
    relay.runner.perform(uplinks.job, uplinks.job.lost(1, relay.now))
    hosts.workers[1] = relay.join(hello(1, incarnation=999))
    assert uplinks.take_told() == [ReopenUplinks()]
    assert uplinks.job.uplink.next_message(0) is None
    [(owner, peer)] = uplinks.pairs()
    owner.runner.perform(peer.job, peer.job.lost(peer.rank, 0.0))
    _, _, refusal = owner.fleet.join(uplinks.job.hello(0, False), "peer", 10.0)
    assert refusal is not None


def test_a_sum_that_only_a_dead_relay_had_is_made_again_through_two_levels() -> None:
    """The owner was told that the rack has it. The rack tells that it has lost it, and all ranks contribute again."""
    owner, rack = Process(100), Process(1)
    ranks = [0, 1], [2, 3]
    members = [hello(each[0], group=4, ranks=each, num_workers=5, resuming=True) for each in ranks]
    near, other = [rack.join(member) for member in members]
    uplinks = Uplinks(rack, near.job, [owner])
    far = owner.join(hello(4, group=0, num_workers=5, resuming=True))
    # The owner and the rack's relay were started again. Only the relay of ranks 0 and 1 has received the sum.
    for process, peer, round in ((rack, near, 1), (rack, other, 0), (owner, far, 0)):
        uplinks.run()
        process.say(peer, declare=pb.Declare(keys=[key(0, round=round)]))
    owner.say(far, **push(b"\1\0\0\0"))
    rack.say(other, **push(b"\0\1\0\0"))
    uplinks.run()
    assert set(near.kinds()) == {"want"}
    # Then it is killed. Its next process has what its workers have.
    rack.runner.perform(near.job, near.job.lost(near.rank, rack.now))
    near = rack.join(members[0])
    rack.say(near, declare=pb.Declare(keys=[key(0)]))
    uplinks.run()
    uplinks.job.check()
    assert other.connection.closing
    assert far.connection.closing
    other = rack.join(members[1])
    far = owner.join(hello(4, group=0, num_workers=5, resuming=True))
    for process, peer, value in ((rack, other, b"\0\1\0\0"), (owner, far, b"\1\0\0\0"), (rack, near, b"\0\0\1\0")):
        process.say(peer, declare=pb.Declare(keys=[key(0)]))
        process.say(peer, **push(value))
        uplinks.run()
    assert [peer.results() for peer in (near, other, far)] == [[b"\1\1\1\0"]] * 3
    uplinks.job.check()
