"""The job of a relay's group: what it forwards, and whom it refuses."""

import pytest

from psum.aggregator.core.limits import Limits
from psum.aggregator.relay.core.host_job import HostJob
from psum.v1 import aggregator_pb2 as pb
from tests.aggregator.relay.hosts import SUM, Hosts, two_hosts
from tests.aggregator.relay.pure import Process, hello, key, pull, push

hosts = pytest.fixture(two_hosts)


def test_two_hosts_forward_one_sum_each(hosts: Hosts) -> None:
    """The owner has two members with one contribution each; all four workers get the sum of all."""
    hosts.declare(key(0))
    hosts.push()
    [fleet] = hosts.owners[0].fleet.jobs.values()
    assert fleet.workers.keys() == {0, 2}
    assert [worker.ranks for worker in fleet.workers.values()] == [(0, 1), (2, 3)]
    assert [worker.results() for worker in hosts.workers] == [[SUM]] * 4
    assert hosts.uplinks[0].job.held_bytes == 4


def test_shards_go_to_their_owners() -> None:
    """Each owner is told of its own shards only, and gets only their sums."""
    hosts = Hosts(owners=2)
    hosts.declare(key(1, 0))
    hosts.push(shard=0)
    hosts.push(shard=1)
    shards = [sorted(job.keys[7].shards) for owner in hosts.owners for job in owner.fleet.jobs.values()]
    assert shards == [[1], [0]]
    assert [worker.results() for worker in hosts.workers] == [[SUM, SUM]] * 4


def test_credit_is_returned_when_the_sum_is_forwarded(hosts: Hosts) -> None:
    """The members of a group that has contributed can send more, though the other group has not contributed yet."""
    hosts.declare(key(0))
    hosts.push(ranks=[0, 1])
    assert hosts.workers[0].kinds() == hosts.workers[1].kinds() == ["taken"]
    assert hosts.uplinks[0].job.held_bytes == 4


def test_a_broadcast_crosses_groups(hosts: Hosts) -> None:
    """The root's value reaches the other group, whose relay pulls it once; the root gets an empty result."""
    hosts.declare(key(0, broadcast=True))
    hosts.relay(0).say(hosts.workers[0], **push(b"root"))
    for rank in (1, 2, 3):
        hosts.relay(rank).say(hosts.workers[rank], **pull())
    hosts.settle()
    assert [worker.results() for worker in hosts.workers] == [[b""], [b"root"], [b"root"], [b"root"]]


def test_a_job_that_has_ended_keeps_no_sums(hosts: Hosts) -> None:
    """The memory of the last sums goes with the job, though the relay's process lives on."""
    hosts.declare(key(0))
    hosts.push()
    uplink = hosts.job(0).uplink
    assert uplink.keys[7].sums
    for rank in range(4):
        hosts.relay(rank).say(hosts.workers[rank], goodbye=pb.Goodbye())
    hosts.settle()
    for rank in range(2):
        job, relay = hosts.workers[rank].job, hosts.relay(rank)
        relay.runner.perform(job, job.lost(rank, 0.0))
        relay.groups.settle(job, 0.0)
    assert hosts.relays[0].groups.jobs == {}
    assert not uplink.keys


def test_a_relayed_key_reserves_what_it_may_hold() -> None:
    """A key takes its size for each member of the group, for the sum that is forwarded, and for the result."""
    relay = Process(1, Limits(memory_budget=15))
    workers = [relay.join(hello(rank)) for rank in range(2)]
    relay.say(workers[0], declare=pb.Declare(keys=[key(0)]))
    assert [fault.code for fault in workers[0].faults()] == [pb.FAULT_CODE_EXHAUSTED]
    relay = Process(1, Limits(memory_budget=16))
    workers = [relay.join(hello(rank)) for rank in range(2)]
    relay.say(workers[0], declare=pb.Declare(keys=[key(0)]))
    assert workers[0].faults() == []


def test_an_owner_takes_a_relay_whose_ranks_do_not_follow_each_other() -> None:
    """Its name tells the first ones. With all of them it would be longer than an owner takes."""
    relay, owner = Process(1), Process(100)
    ranks = range(0, 1000, 10)
    workers = [relay.join(hello(rank, group=len(ranks), num_workers=1000)) for rank in ranks]
    job = workers[0].job
    assert isinstance(job, HostJob)
    member = job.hello(0, False)
    _, _, refusal = owner.fleet.join(member, "peer", 0.0)
    assert refusal is None
    assert list(member.ranks) == [*ranks]
    assert member.worker.endswith("for ranks 0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110 and 88 more")


def test_an_owner_that_is_not_in_the_list_is_refused() -> None:
    """A declaration for an aggregator that the hello does not list breaks the protocol."""
    relay = Process(1)
    workers = [relay.join(hello(rank)) for rank in range(2)]
    with pytest.raises(Exception, match="aggregator 5, counted from 0, of a list of 1"):
        relay.say(workers[0], declare=pb.Declare(keys=[key(5)]))


@pytest.mark.parametrize("addresses", [[], ["nowhere"], ["owner:1"] * 5000], ids=["none", "no address", "too many"])
def test_a_relay_to_unusable_addresses_is_refused(addresses: list[str]) -> None:
    """A hello of a few bytes for each address must not make the relay keep buffers for each, and connect to it."""
    relay = Process(1)
    job, _, refusal = relay.groups.join(hello(0, aggregators=addresses), "peer:0", 0.0)
    assert job is None
    assert "it asks for a relay to" in str(refusal)
