"""The job of a relay's group: what it forwards, what it gives back, and what it passes on."""

from collections.abc import Sequence

import pytest

from psum.aggregator.core.actions import ReopenUplinks, SendUplinks
from psum.aggregator.core.departures import RELEASE_SECONDS
from psum.aggregator.core.limits import Limits
from psum.aggregator.relay.core.host_job import HostJob
from psum.aggregator.relay.core.lacking_ranks import LACKING_SECONDS
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, to_columns
from psum.wire.errors import InternalError, WorkerLostError
from tests.aggregator.relay.pure import Peer, Process, Uplinks, hello, key, pull, push


class Hosts:
    """Two hosts with a relay and two workers each, and owners of shards."""

    def __init__(self, owners: int = 1) -> None:
        self.owners = [Process(100 + index) for index in range(owners)]
        self.relays = [Process(1), Process(2)]
        self.workers: list[Peer] = []
        self.uplinks: list[Uplinks] = []
        for host, relay in enumerate(self.relays):
            self.workers += [relay.join(hello(2 * host + local, owners=owners)) for local in range(2)]
            self.uplinks.append(Uplinks(relay, self.workers[-1].job, self.owners))
        self.settle()

    def relay(self, rank: int) -> Process:
        """The relay of a rank."""
        return self.relays[rank // 2]

    def job(self, host: int) -> HostJob:
        """The job of a host's group."""
        return self.uplinks[host].job

    def settle(self) -> None:
        """Moves messages between relays and owners until there are none."""
        for _ in range(2):
            for uplinks in self.uplinks:
                uplinks.run()
        for uplinks in self.uplinks:
            uplinks.job.check()
        for owner in self.owners:
            for job in owner.fleet.jobs.values():
                job.check()

    def declare(self, declared: pb.Key, ranks: Sequence[int] = range(4)) -> None:
        for rank in ranks:
            self.relay(rank).say(self.workers[rank], declare=pb.Declare(keys=[declared]))
        self.settle()

    def push(self, round: int = 0, ranks: Sequence[int] = range(4), shard: int = 0) -> None:
        for rank in ranks:
            self.relay(rank).say(self.workers[rank], **push(bytes([10**rank % 251] * 4), round=round, shard=shard))
        self.settle()

    def tick(self, seconds: float) -> None:
        for process in (*self.relays, *self.owners):
            process.tick(seconds)
        self.settle()

    def restart_relay(self, host: int, *rounds: int, declared: bool = True) -> None:
        """The relay is killed, and its workers come to a new process, each at its round."""
        for owner, peer in self.uplinks[host].pairs():
            owner.runner.perform(peer.job, peer.job.lost(peer.rank, owner.now))
        self.relays[host] = relay = Process(1000 + host)
        relay.now = self.owners[0].now
        ranks = (2 * host, 2 * host + 1)
        for rank in ranks:
            self.workers[rank] = relay.join(hello(rank, owners=len(self.owners), resuming=True))
        self.uplinks[host] = Uplinks(relay, self.workers[ranks[0]].job, self.owners)
        self.settle()
        if declared:
            for rank, round in zip(ranks, rounds, strict=True):
                self.declare(key(0, round=round), [rank])

    def restart_owner(self) -> None:
        """The owner is killed, and the relays come to a new process."""
        self.owners[0] = Process(200)
        self.owners[0].now = self.relays[0].now
        for uplinks in self.uplinks:
            uplinks.replace(0, self.owners[0])
        self.settle()


SUM = bytes([(1 + 10 + 100 + 1000 % 251) % 256] * 4)


@pytest.fixture
def hosts() -> Hosts:
    return Hosts()


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


def test_the_relay_gives_back_a_sum_to_an_owner_that_was_started_again(hosts: Hosts) -> None:
    """The owner was killed when one relay had its result and the other had not."""
    hosts.declare(key(0))
    hosts.push(ranks=[0, 1])
    late = hosts.uplinks.pop()
    hosts.relays[1].say(hosts.workers[2], **push(bytes([100] * 4)))
    hosts.relays[1].say(hosts.workers[3], **push(bytes([1000 % 251] * 4)))
    # Its contribution reaches the owner, but the result does not reach it.
    owner, peer = late.pairs()[0]
    while (message := late.job.uplink.next_message(0)) is not None:
        owner.handle(peer, message)
    hosts.settle()
    assert [worker.results() for worker in hosts.workers] == [[SUM], [SUM], [], []]
    hosts.uplinks.append(late)
    hosts.restart_owner()
    assert [worker.results() for worker in hosts.workers] == [[], [], [SUM], [SUM]]


def test_relay_and_owner_killed_together_ask_a_rank(hosts: Hosts) -> None:
    """The relay that would give back the sum was killed too; a rank of its group has it."""
    hosts.declare(key(0))
    hosts.push(ranks=[0, 1])
    late = hosts.uplinks.pop()
    hosts.relays[1].say(hosts.workers[2], **push(bytes([100] * 4)))
    hosts.relays[1].say(hosts.workers[3], **push(bytes([1000 % 251] * 4)))
    owner, peer = late.pairs()[0]
    while (message := late.job.uplink.next_message(0)) is not None:
        owner.handle(peer, message)
    hosts.settle()
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


def test_a_key_that_fails_in_a_group_fails_everywhere(hosts: Hosts) -> None:
    """A rank that cannot contribute fails the key in all groups, with the rank's own reason."""
    hosts.declare(key(0))
    hosts.relay(1).say(hosts.workers[1], abort=pb.Abort(id=7, round=0, text="the lights went out"))
    hosts.settle()
    for worker in hosts.workers:
        [fault] = worker.faults()
        assert (fault.id, fault.code) == (7, pb.FAULT_CODE_ABORTED)
        assert "the lights went out" in fault.text


def test_an_owner_s_fault_is_told_verbatim(hosts: Hosts) -> None:
    """What fails at the owner fails in the groups with the same text."""
    hosts.declare(key(0), [0, 1])
    hosts.declare(key(0, elements=8), [2, 3])
    told = [worker.faults() for worker in hosts.workers]
    assert len({faults[0].text for faults in told}) == 1
    assert "ranks 0-1" in told[0][0].text
    assert "ranks 2-3" in told[0][0].text


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


def test_a_lost_worker_fails_the_job_everywhere_and_is_named(hosts: Hosts) -> None:
    """All ranks hear which rank vanished, and not that a relay did."""
    hosts.declare(key(0))
    hosts.relay(3).runner.perform(hosts.job(1), hosts.job(1).lost(3, 0.0, closed=True))
    hosts.tick(31)
    for rank in (0, 1, 2):
        [fault] = hosts.workers[rank].faults()
        assert fault.code == pb.FAULT_CODE_WORKER_LOST
        assert list(fault.ranks) == [3]
        assert fault.text.startswith("rank 3 of job 'night'")


def test_an_incomplete_group_tells_the_others_why_it_failed() -> None:
    """A group fails before all its ranks have joined. The other group hears of it, and does not wait for it."""
    owner, one, two = Process(100), Process(1), Process(2)
    others = [two.join(hello(rank)) for rank in (2, 3)]
    Uplinks(two, others[0].job, [owner]).run()
    first = one.join(hello(0))
    _, actions, refusal = one.groups.join(hello(1, num_workers=6), "peer:1", 0.0)
    assert refusal is not None
    for job, action in actions:
        one.runner.perform(job, [action])
    Uplinks(one, first.job, [owner]).run()
    [fleet] = owner.fleet.jobs.values()
    assert fleet.failure is not None
    assert str(fleet.failure) == str(refusal)


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


def test_the_owner_knows_for_which_ranks_a_relay_waits(hosts: Hosts) -> None:
    """The status at the owner names the one rank that has not contributed at its relay."""
    hosts.declare(key(0))
    hosts.push(ranks=[0, 1, 2])
    hosts.tick(LACKING_SECONDS + 0.1)
    [fleet] = hosts.owners[0].fleet.jobs.values()
    assert list(fleet.keys[7].shards[0].waiting_for()) == [3]


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


@pytest.mark.parametrize("how", ["abort", "deserted", "timeout"])
def test_the_uplinks_are_woken_when_a_key_fails(how: str) -> None:
    """A connection that has nothing else to send sends the abort at once: otherwise other groups wait for it."""
    hosts = Hosts()
    hosts.declare(key(0))
    relay = hosts.relay(0)
    if how == "abort":
        relay.say(hosts.workers[0], abort=pb.Abort(id=7, text="no memory"))
    elif how == "deserted":
        relay.say(hosts.workers[1], goodbye=pb.Goodbye())
        relay.told.clear()
        relay.say(hosts.workers[0], **push(b"abcd"))
    else:
        relay.say(hosts.workers[0], **push(b"abcd"))
        relay.tick(2 * LACKING_SECONDS)
        relay.told.clear()
        relay.tick(Limits().round_timeout)
    assert hosts.job(0).keys[7].failure is not None
    assert SendUplinks() in relay.told


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


def test_an_owner_that_was_started_again_is_told_for_which_ranks_a_relay_waits(hosts: Hosts) -> None:
    """Its warnings would otherwise name ranks that have contributed."""
    hosts.declare(key(0))
    hosts.push(ranks=[0, 1, 2])
    hosts.tick(LACKING_SECONDS)
    hosts.restart_owner()
    hosts.tick(LACKING_SECONDS)
    [fleet] = hosts.owners[0].fleet.jobs.values()
    assert list(fleet.keys[7].shards[0].waiting_for()) == [3]


@pytest.mark.parametrize("addresses", [[], ["nowhere"], ["owner:1"] * 5000], ids=["none", "no address", "too many"])
def test_a_relay_to_unusable_addresses_is_refused(addresses: list[str]) -> None:
    """A hello of a few bytes for each address must not make the relay keep buffers for each, and connect to it."""
    relay = Process(1)
    job, _, refusal = relay.groups.join(hello(0, aggregators=addresses), "peer:0", 0.0)
    assert job is None
    assert "it asks for a relay to" in str(refusal)


def test_nothing_follows_from_what_comes_after_a_failure(hosts: Hosts) -> None:
    """The job may have been released: what it asked of its uplinks then would make new ones, which nobody ends."""
    hosts.declare(key(0))
    job, relay = hosts.job(0), hosts.relay(0)
    relay.say(hosts.workers[0], **push(b"abcd"))
    relay.say(hosts.workers[0], goodbye=pb.Goodbye())
    relay.runner.perform(job, job.fail(InternalError("for some reason"), relay.now))
    job.uplink.handle(0, pb.ExchangeResponse(sync=pb.Sync(number=2)), memoryview(b""), (), relay.now)
    assert job.heard(relay.now) == []


@pytest.mark.parametrize("owner_knows", [True, False])
def test_the_owner_knows_for_which_rank_a_key_is_not_declared(hosts: Hosts, owner_knows: bool) -> None:
    """A rank that has not even declared the key is named, not the ranks of its group that have contributed."""
    if owner_knows:
        hosts.declare(key(0), [0, 2, 3])
        hosts.push(ranks=[0, 2, 3])
        hosts.tick(LACKING_SECONDS)
    else:
        hosts.declare(key(0), [0])
        hosts.push(ranks=[0])
        hosts.tick(LACKING_SECONDS)
        hosts.declare(key(0), [2, 3])
        hosts.push(ranks=[2, 3])
        hosts.tick(LACKING_SECONDS)
    [fleet] = hosts.owners[0].fleet.jobs.values()
    assert list(fleet.keys[7].shards[0].waiting_for()) == [1]


def test_what_an_owner_is_told_does_not_pile_up(hosts: Hosts) -> None:
    """While there is no connection, what is said again and again waits once."""
    hosts.declare(key(0), [0])
    hosts.push(ranks=[0])
    for _ in range(5):
        hosts.relay(0).tick(LACKING_SECONDS)
    uplink = hosts.job(0).uplink
    assert uplink.next_message(0) is not None
    assert uplink.next_message(0) is None
