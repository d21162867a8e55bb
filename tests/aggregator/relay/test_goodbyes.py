"""Ranks of a relay's group that leave: when they are released, and what owners hear of them."""

import pytest

from psum.aggregator.core.departures import RELEASE_SECONDS
from psum.aggregator.relay.core.lacking_ranks import LACKING_SECONDS
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from tests.aggregator.relay.hosts import SUM, Hosts, two_hosts
from tests.aggregator.relay.pure import Process, Uplinks, hello, key, push

hosts = pytest.fixture(two_hosts)


def test_the_last_ranks_are_released_after_the_owner_s_farewell(hosts: Hosts) -> None:
    """Ranks that leave last stay until the owner needs their sums no more."""
    hosts.declare(key(0))
    hosts.push()
    for rank in (0, 1):
        hosts.relay(rank).say(hosts.workers[rank], goodbye=pb.Goodbye())
    hosts.uplinks[0].run()
    # The other relay has not confirmed that its ranks have the sum.
    assert "farewell" not in hosts.workers[0].kinds() + hosts.workers[1].kinds()
    hosts.settle()
    syncs = [
        message.sync.number for worker in hosts.workers[2:] for message, _ in worker.received() if message.sync.number
    ]
    assert len(syncs) == 2
    for rank in (2, 3):
        hosts.relay(rank).say(hosts.workers[rank], synced=pb.Synced(number=syncs[0]))
    hosts.settle()
    assert hosts.workers[0].kinds() == hosts.workers[1].kinds() == ["farewell"]


def test_the_last_ranks_do_not_wait_for_ever(hosts: Hosts) -> None:
    """If the owner does not answer, they are released after some seconds."""
    hosts.declare(key(0))
    hosts.push()
    hosts.uplinks.clear()
    for rank in (0, 1):
        hosts.relay(rank).say(hosts.workers[rank], goodbye=pb.Goodbye())
    hosts.tick(RELEASE_SECONDS + 0.1)
    assert "farewell" in hosts.workers[0].kinds()
    assert "farewell" in hosts.workers[1].kinds()


def test_a_rank_that_leaves_is_named_by_the_owner(hosts: Hosts) -> None:
    """A rank leaves while others of its group stay: a later round of another group fails with its name."""
    hosts.declare(key(0))
    hosts.push()
    hosts.relay(3).say(hosts.workers[3], goodbye=pb.Goodbye())
    hosts.settle()
    hosts.push(round=1, ranks=[0, 1])
    [fault] = hosts.workers[0].faults()
    assert list(fault.ranks) == [3]


def test_a_rank_that_leaves_while_a_thread_makes_the_sum_is_not_missing(hosts: Hosts) -> None:
    """The owner hears that the rank has left only after the sum with its contribution, so no key fails."""
    hosts.declare(key(0))
    relay, job = hosts.relay(0), hosts.job(0)
    hosts.push(ranks=[0, 2, 3])
    summing = job.contribute(1, ShardRound(7, 0, 0), memoryview(b"\x0a" * 4), relay.now)
    relay.say(hosts.workers[1], goodbye=pb.Goodbye())
    hosts.tick(LACKING_SECONDS)
    relay.runner.perform(job, summing)
    hosts.settle()
    assert hosts.workers[0].faults() == []
    assert hosts.workers[2].results() == [SUM]
    # From the next round on, it is.
    hosts.tick(0.0)
    hosts.push(round=1, ranks=[2, 3])
    assert [list(fault.ranks) for fault in hosts.workers[2].faults()] == [[1]]


def test_the_owner_hears_of_a_rank_that_left_while_a_round_waits_there(hosts: Hosts) -> None:
    """The group waits for another one at one key, and that one for the rank that has left at another key."""
    hosts.declare(key(0))
    hosts.declare(key(0, id=8))
    hosts.push(ranks=[0, 1])
    hosts.relay(1).say(hosts.workers[1], goodbye=pb.Goodbye())
    hosts.settle()
    for rank in (2, 3):
        hosts.relay(rank).say(hosts.workers[rank], **push(b"abcd", id=8))
    hosts.settle()
    assert [list(fault.ranks) for fault in hosts.workers[2].faults()] == [[1]]


def test_a_relay_passes_on_which_ranks_of_another_relay_have_left() -> None:
    """With two levels of relays, the owner names the rank of the lower level that has left."""
    owner, rack = Process(100), Process(1)
    near = rack.join(hello(0, group=2, ranks=[0, 1], num_workers=3))
    uplinks = Uplinks(rack, near.job, [owner])
    uplinks.run()
    other = owner.join(hello(2, group=0, num_workers=3))
    rack.say(near, declare=pb.Declare(keys=[key(0)]))
    owner.say(other, declare=pb.Declare(keys=[key(0)]))
    uplinks.run()
    rack.say(near, goodbye=pb.Goodbye(ranks=[1]))
    uplinks.run()
    owner.say(other, **push(b"abcd"))
    assert [list(fault.ranks) for fault in other.faults()] == [[1]]
