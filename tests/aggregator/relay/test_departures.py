"""A relay that was started again learns which ranks of its group have left, and what owners must know of that."""

from psum.aggregator.core.departures import RELEASE_SECONDS
from psum.aggregator.relay.core.host_job import HostJob
from psum.client.core.known_departures import KnownDepartures
from psum.v1 import aggregator_pb2 as pb
from tests.aggregator.relay.pure import Peer, Process, Uplinks, hello, key, push


def departures(peer: Peer) -> list[pb.Departure]:
    """The departures that a worker has been told of."""
    return [each for message, _ in peer.received() for each in message.sync.departures]


def left(*ranks: int, level: int = 0) -> pb.Departure:
    return pb.Departure(ranks=ranks, incarnation=100 + ranks[0], level=level)


def test_a_relay_goes_on_without_a_rank_that_left_before_it_was_started_again() -> None:
    """Rank 1 has left in order, then the relay and the owner are killed. A worker of another host still lacks the sum.

    It gets the sum from rank 0, through the relay, which is the same member for its owner.
    """
    owner, relay = Process(100), Process(1)
    workers = [relay.join(hello(rank, num_workers=3)) for rank in range(2)]
    uplinks = Uplinks(relay, workers[0].job, [owner])
    uplinks.run()
    other = owner.join(hello(2, group=0, num_workers=3))
    for peer in workers:
        relay.say(peer, declare=pb.Declare(keys=[key(0)]))
    owner.say(other, declare=pb.Declare(keys=[key(0)]))
    for peer in workers:
        relay.say(peer, **push(b"\1\0\0\0"))
    owner.say(other, **push(b"\0\1\0\0"))
    uplinks.run()
    [total] = workers[0].results()
    relay.say(workers[1], goodbye=pb.Goodbye())
    told = departures(workers[0])
    assert told == [left(1)]
    member = uplinks.job.hello(0, True)

    owner, relay = Process(200), Process(2)
    worker = relay.join(hello(0, num_workers=3, resuming=True, departures=told))
    uplinks = Uplinks(relay, worker.job, [owner])
    other = owner.join(hello(2, group=0, num_workers=3, resuming=True))
    owner.say(other, declare=pb.Declare(keys=[key(0)]))
    owner.say(other, **push(b"\0\1\0\0"))
    uplinks.run()
    again = uplinks.job.hello(0, True)
    assert (again.ranks, again.incarnation) == (member.ranks, member.incarnation)
    relay.say(worker, declare=pb.Declare(keys=[key(0, round=1)]))
    uplinks.run()
    # The relay asks rank 0 for the sum that the owner wants.
    assert worker.kinds() == ["want"]
    relay.say(worker, payload=total, restore=pb.Restore(shards=push(total)["push"].shards))
    uplinks.run()
    assert other.results() == [total]
    relay.say(worker, goodbye=pb.Goodbye())
    uplinks.run()
    assert other.kinds() == ["sync"]
    uplinks.job.check()


def test_owners_hear_of_the_last_sum_before_they_hear_who_has_left() -> None:
    """Relay and owner were started again. Rank 1 comes back and repeats its goodbye before rank 0 declares the key.

    The owner must not take the round of another host, which lacks the last sum, for one that needs rank 1.
    """
    owner, relay = Process(100), Process(1)
    other = owner.join(hello(2, group=0, num_workers=3, resuming=True))
    owner.say(other, declare=pb.Declare(keys=[key(0)]))
    owner.say(other, **push(b"\0\1\0\0"))
    workers = [relay.join(hello(rank, num_workers=3, resuming=True)) for rank in range(2)]
    uplinks = Uplinks(relay, workers[0].job, [owner])
    relay.say(workers[1], declare=pb.Declare(keys=[key(0, round=1)]))
    relay.say(workers[1], goodbye=pb.Goodbye())
    uplinks.run()
    assert other.kinds() == []
    relay.say(workers[0], declare=pb.Declare(keys=[key(0, round=1)]))
    uplinks.run()
    assert other.kinds() == []
    relay.say(workers[1], payload=b"abcd", restore=pb.Restore(shards=push(b"abcd")["push"].shards))
    uplinks.run()
    assert other.results() == [b"abcd"]
    owner.say(other, **push(b"abcd", round=1))
    assert [list(fault.ranks) for fault in other.faults()] == [[1]]


def test_the_last_rank_of_a_group_leaves_after_it_has_told_that_the_others_have_left() -> None:
    """It said goodbye before the relay knew the group to be complete. The owners are told when it repeats that."""
    owner, relay = Process(100), Process(1)
    other = owner.join(hello(2, group=0, num_workers=3, resuming=True))
    worker = relay.join(hello(0, num_workers=3, resuming=True))
    uplinks = Uplinks(relay, worker.job, [owner])
    relay.say(worker, declare=pb.Declare(keys=[key(0, round=1)]))
    relay.say(worker, goodbye=pb.Goodbye())
    relay.runner.perform(worker.job, worker.job.lost(0, relay.now))
    worker = relay.join(hello(0, num_workers=3, resuming=True, departures=[left(1)]))
    relay.say(worker, goodbye=pb.Goodbye())
    uplinks.run()
    assert worker.kinds() == []
    assert other.kinds() == ["sync"]
    owner.say(other, synced=pb.Synced(number=0))
    uplinks.run()
    assert worker.kinds() == ["farewell"]


def test_owners_hear_late_that_a_rank_has_left() -> None:
    """While it may still come back to the relay, the owners wait with it; after that they name it."""
    owner, relay = Process(100), Process(1)
    other = owner.join(hello(2, group=0, num_workers=3, resuming=True))
    worker = relay.join(hello(0, num_workers=3, resuming=True, departures=[left(1)]))
    uplinks = Uplinks(relay, worker.job, [owner])
    uplinks.run()
    owner.say(other, declare=pb.Declare(keys=[key(0, round=1)]))
    owner.say(other, **push(b"abcd", round=1))
    uplinks.run()
    assert other.faults() == []
    relay.tick(31.0)
    uplinks.run()
    assert [list(fault.ranks) for fault in other.faults()] == [[1]]


def test_a_relay_knows_which_other_groups_have_left() -> None:
    """The owner tells it. It tells an owner that was started again, which then does not wait for the other group."""
    owner, relay = Process(100), Process(1)
    workers = [relay.join(hello(rank, num_workers=3)) for rank in range(2)]
    uplinks = Uplinks(relay, workers[0].job, [owner])
    uplinks.run()
    other = owner.join(hello(2, group=0, num_workers=3))
    for process, peer in ((relay, workers[0]), (relay, workers[1]), (owner, other)):
        process.say(peer, declare=pb.Declare(keys=[key(0)]))
        process.say(peer, **push(b"abcd"))
    uplinks.run()
    owner.say(other, goodbye=pb.Goodbye())
    uplinks.run()
    # So do its workers, for the case that the relay is killed together with the owner.
    assert [departures(worker) for worker in workers] == [[left(2, level=1)]] * 2
    owner = Process(200)
    uplinks.replace(0, owner)
    [fleet] = owner.fleet.jobs.values()
    assert fleet.complete
    assert [list(each.ranks) for each in fleet.departures()] == [[2]]

    owner, relay = Process(300), Process(3)
    told = [left(2, level=1)]
    workers = [relay.join(hello(rank, num_workers=3, resuming=True, departures=told)) for rank in range(2)]
    Uplinks(relay, workers[0].job, [owner]).run()
    [fleet] = owner.fleet.jobs.values()
    assert fleet.complete
    assert workers[0].job.departures() == told


def test_a_relay_that_lacks_a_result_says_nothing_of_departures() -> None:
    """The member that has left has that result, so the owner must not be told to do without it."""
    owner, relay = Process(100), Process(1)
    workers = [relay.join(hello(rank)) for rank in range(2)]
    job = workers[0].job
    assert isinstance(job, HostJob)
    uplinks = Uplinks(relay, job, [owner])
    uplinks.run()
    job.uplink.welcomed(pb.Welcome(departures=[left(2)]))
    assert list(job.hello(0, True).departures) == [left(2)]
    for peer in workers:
        relay.say(peer, declare=pb.Declare(keys=[key(0)]))
        relay.say(peer, **push(b"abcd"))
    uplinks.run()
    job.uplink.welcomed(pb.Welcome(departures=[left(3)]))
    # Rank 2 had left before.
    assert list(job.hello(0, True).departures) == [left(2)]


def test_the_last_departure_of_a_member_counts() -> None:
    """A member is known by its ranks on its level."""
    known = KnownDepartures(1)
    known.note([left(1), left(1, level=1), pb.Departure(ranks=[1], incarnation=5)])
    assert list(known) == [pb.Departure(ranks=[1], incarnation=5), left(1, level=1)]


def test_an_early_release_does_not_depend_on_those_who_have_left() -> None:
    """The last ranks of a group are not held for longer than others, if the owner does not answer."""
    relay = Process(1)
    worker = relay.join(hello(0, num_workers=3, resuming=True, departures=[left(1)]))
    relay.say(worker, goodbye=pb.Goodbye())
    assert worker.kinds() == []
    relay.tick(RELEASE_SECONDS + 0.1)
    assert worker.kinds() == ["farewell"]
