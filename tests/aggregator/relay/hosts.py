"""Two hosts with a relay each, for tests."""

from collections.abc import Sequence

from psum.aggregator.relay.core.host_job import HostJob
from psum.v1 import aggregator_pb2 as pb
from tests.aggregator.relay.pure import Peer, Process, Uplinks, hello, key, push


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


def two_hosts() -> Hosts:
    """Two hosts of a job of four workers, with one owner."""
    return Hosts()
