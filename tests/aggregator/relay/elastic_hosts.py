"""Two hosts of an elastic job with relays, and owners, without I/O."""

from collections.abc import Sequence
from typing import Any

from psum.aggregator.core.candidates import Candidate
from psum.aggregator.relay.core.elastic_host_job import ElasticHostJob
from psum.v1 import aggregator_pb2 as pb
from psum.wire import split, to_rows
from tests.aggregator.relay.pure import Peer, Process, Uplinks, hello, push

#: The process that asks to join.
NEWCOMER = 999


def value(rank: int) -> bytes:
    return bytes([1 << rank] * 4)


def total(*ranks: int) -> bytes:
    return bytes([sum(1 << rank for rank in ranks)] * 4)


class Hosts:
    """Two hosts with a relay and two workers each, and owners of shards.

    Args:
        owners: How many owners there are.
        least: The least number of ranks.
    """

    def __init__(self, owners: int = 1, least: int = 1) -> None:
        self.elastic = pb.Elastic(min=least, max=8)
        self.owners = [Process(100 + index) for index in range(owners)]
        self.relays = [Process(1), Process(2)]
        self.workers: dict[int, Peer] = {}
        self.uplinks: dict[int, Uplinks] = {}
        for host in range(2):
            self.begin_group(host)
        self.settle()

    def hello(self, rank: int, **change: Any) -> pb.Hello:
        return hello(rank, owners=len(self.owners), elastic=self.elastic, **change)

    def begin_group(self, host: int, ranks: Sequence[int] | None = None, **change: Any) -> None:
        relay = self.relays[host]
        for rank in (2 * host, 2 * host + 1) if ranks is None else ranks:
            self.workers[rank] = relay.join(self.hello(rank, **change))
        [job] = relay.groups.jobs.values()
        self.uplinks[host] = Uplinks(relay, job, self.owners)

    def relay(self, rank: int) -> Process:
        return self.relays[rank // 2]

    def job(self, host: int) -> ElasticHostJob:
        job = self.uplinks[host].job
        assert isinstance(job, ElasticHostJob)
        return job

    def settle(self) -> None:
        """Moves messages between relays and owners until there are none."""
        for _ in range(3):
            for host, uplinks in self.uplinks.items():
                for job in self.relays[host].groups.jobs.values():
                    if job is not uplinks.job:
                        # The group was lost, as the owners have been told, and begins anew.
                        uplinks.end()
                        uplinks = self.uplinks[host] = Uplinks(self.relays[host], job, self.owners)
                uplinks.run()
        for uplinks in self.uplinks.values():
            uplinks.job.check()
        for owner in self.owners:
            for job in owner.fleet.jobs.values():
                job.check()

    def declare(self, declared: pb.Key, *ranks: int) -> None:
        for rank in ranks or self.workers:
            self.relay(rank).say(self.workers[rank], declare=pb.Declare(keys=[declared]))
        self.settle()

    def push(self, *ranks: int, round: int = 0, shard: int = 0) -> None:
        for rank in ranks:
            self.relay(rank).say(self.workers[rank], **push(value(rank), round=round, shard=shard))
        self.settle()

    def kill(self, *ranks: int, seconds: float = 1.5) -> None:
        """Workers that have taken part are killed. The others go on for some time."""
        for rank in ranks:
            peer, relay = self.workers.pop(rank), self.relay(rank)
            peer.job.workers[rank].contributed = True
            relay.runner.perform(peer.job, peer.job.lost(rank, relay.now, closed=True))
            relay.connections.pop((id(peer.job), rank), None)
        self.pass_time(seconds)

    def kill_relay(self, host: int) -> None:
        """A relay is killed. The owners see its streams end."""
        self.uplinks.pop(host).end()
        self.relays[host] = Process(1000 + host)
        self.relays[host].now = self.owners[0].now

    def restart_owner(self, index: int = 0) -> None:
        owner = self.owners[index] = Process(200 + index)
        owner.now = self.relays[0].now
        for uplinks in self.uplinks.values():
            uplinks.replace(index, owner)
        self.settle()

    def pass_time(self, seconds: float) -> None:
        """Time passes, in which all that are connected send beats."""
        for _ in range(round(seconds / 0.25)):
            for process in (*self.relays, *self.owners):
                for registry in (process.groups, process.fleet):
                    for job in registry.jobs.values():
                        for worker in job.workers.values():
                            if worker.connected:
                                worker.last_heard = process.now + 0.25
                process.tick(0.25)
            self.settle()

    def results(self, rank: int) -> list[tuple[bytes, int]]:
        """The results that a worker was sent, with their counts."""
        return [
            (bytes(piece), row.contributors)
            for message, payload in self.workers[rank].received()
            if message.HasField("result")
            for rows in [to_rows(message.result.shards)]
            for row, piece in zip(rows, split(payload, rows), strict=True)
        ]

    def lost(self) -> list[list[int]]:
        """The ranks that each owner has lost."""
        jobs = [job for owner in self.owners for job in owner.fleet.jobs.values()]
        return [list(status.lost) for job in jobs if (status := job.elastic_status(0.0)) is not None]

    def wait(self, rank: int, host: int | None = None, incarnation: int = NEWCOMER) -> Candidate:
        """A process waits at a relay to join."""
        relay = self.relays[rank // 2 if host is None else host]
        candidate = relay.wait(self.hello(rank, joining=True, incarnation=incarnation))
        self.settle()
        return candidate

    def admit(self, rank: int, generation: int = 1, round: int = 1, by: Sequence[int] = ()) -> None:
        """Members admit the process of a rank, to a round of the key."""
        admission = pb.Admission(rank=rank, generation=generation, incarnation=NEWCOMER, ids=[7], rounds=[round])
        for each in by or list(self.workers):
            self.relay(each).say(self.workers[each], admit=pb.Admit(admission=admission))
        self.settle()

    def candidates(self, rank: int) -> list[list[int]]:
        """The lists of candidates that a worker is sent."""
        return [
            [each.rank for each in message.candidates.candidates]
            for message, _ in self.workers[rank].received()
            if message.HasField("candidates")
        ]
