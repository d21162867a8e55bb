"""Relays, owners and hand-made workers without I/O: the real cores, joined by queues of messages."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

from psum.aggregator.core.actions import (
    Admit,
    ConnectUplinks,
    LeaveUplinks,
    PartUplinks,
    Refuse,
    ReopenUplinks,
    UplinkAction,
)
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.registry import Registry
from psum.aggregator.relay.core.elastic_host_job import ElasticHostJob
from psum.aggregator.relay.core.host_job import HostJob
from psum.aggregator.relay.core.introduction import Identity
from psum.aggregator.service.action_runner import ActionRunner
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.sums.pool import PriorityPool
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, decode, encode, split, to_columns, to_rows


class AtOncePool:
    """Makes every sum at once."""

    at_once_bytes = 1 << 40


@dataclasses.dataclass
class Peer:
    """One worker's or relay's connection to an aggregator: what it has been sent."""

    job: Job
    rank: int
    connection: WorkerConnection

    def received(self) -> list[tuple[pb.ExchangeResponse, memoryview]]:
        """The messages that wait for it, the welcome left out."""
        messages = []
        while self.connection.queue:
            messages.append(decode(pb.ExchangeResponse, self.connection.queue.get()))
        return messages

    def kinds(self) -> list[str]:
        """The kinds of these messages."""
        return [str(message.WhichOneof("kind")) for message, _ in self.received()]

    def results(self) -> list[bytes]:
        """The payloads of the results among these messages."""
        results = []
        for message, payload in self.received():
            if message.HasField("result"):
                results += [bytes(piece) for piece in split(payload, to_rows(message.result.shards))]
        return results

    def faults(self) -> list[pb.Fault]:
        """The faults among these messages."""
        return [message.fault for message, _ in self.received() if message.HasField("fault")]


class Process:
    """One aggregator process: an owner, and a relay for groups.

    Args:
        incarnation: Its number.
        limits: Its limits.
    """

    def __init__(self, incarnation: int, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self.now = 0.0
        self.fleet = Registry(limits)
        self.groups = Registry(
            limits,
            make=lambda hello, limits, **job: (ElasticHostJob if hello.HasField("elastic") else HostJob)(
                hello,
                limits,
                identity=Identity(incarnation, f"host{incarnation} pid 1"),
                credit_bytes=1 << 20,
                clock=lambda: self.now,
                **job,
            ),
            found_after=2.0,
        )
        self.connections: dict[tuple[int, int], WorkerConnection] = {}
        self.told: list[UplinkAction] = []
        """What the shell was told to do with the uplinks."""
        self.decided: list[Admit | Refuse] = []
        """What was decided about processes that wait to join."""
        self.runner = ActionRunner(
            cast(PriorityPool, AtOncePool()),
            lambda job, rank: self.connections.get((id(job), rank)),
            uplinks=lambda _job, action: self.told.append(action),
            decide=lambda _job, action: self.decided.append(action),
        )

    def join(self, hello: pb.Hello) -> Peer:
        """Lets a worker or a relay in; it must not be refused."""
        registry = self.groups if hello.group_size else self.fleet
        job, actions, refusal = registry.join(hello, f"peer:{hello.rank}", self.now)
        for about, action in actions:
            self.runner.perform(about, [action])
        assert refusal is None, refusal
        assert job is not None
        connection = self.connections[id(job), hello.rank] = WorkerConnection()
        return Peer(job, hello.rank, connection)

    def wait(self, hello: pb.Hello) -> Candidate:
        """Lets a process wait to join; it must not be refused."""
        registry = self.groups if hello.group_size else self.fleet
        candidate = Candidate(hello, f"peer:{hello.rank}", self.now)
        actions, refusal = registry.wait(candidate, self.now)
        for about, action in actions:
            self.runner.perform(about, [action])
        assert refusal is None, refusal
        return candidate

    def withdraw(self, candidate: Candidate) -> None:
        """The stream of a process that waits has ended."""
        registry = self.groups if candidate.hello.group_size else self.fleet
        for about, action in registry.withdraw(candidate, self.now):
            self.runner.perform(about, [action])

    def let_in(self, candidate: Candidate) -> Peer:
        """Gives a process its connection about which it was decided that it is let in."""
        [decision] = [each for each in self.decided if each.candidate is candidate]
        assert isinstance(decision, Admit), decision
        hello = candidate.hello
        job = (self.groups if hello.group_size else self.fleet).jobs[hello.job]
        connection = self.connections[id(job), hello.rank] = WorkerConnection()
        return Peer(job, hello.rank, connection)

    def handle(self, peer: Peer, data: bytes) -> None:
        """Handles a message from a worker or a relay."""
        job, rank, now = peer.job, peer.rank, self.now
        request, payload = decode(pb.ExchangeRequest, data)
        match request.WhichOneof("kind"):
            case "push":
                rows = to_rows(request.push.shards)
                for row, piece in zip(rows, split(payload, rows), strict=True):
                    self.runner.perform(job, job.contribute(rank, row, piece, now))
            case "pull":
                for row in to_rows(request.pull.shards):
                    self.runner.perform(job, job.contribute(rank, row, None, now))
            case "declare":
                for key in request.declare.keys:
                    self.runner.perform(job, job.declare(rank, key, now))
            case "restore":
                rows = to_rows(request.restore.shards)
                for row, piece in zip(rows, split(payload, rows), strict=True):
                    self.runner.perform(job, job.restore(rank, row, piece))
            case "abort":
                self.runner.perform(job, job.abort(rank, request.abort))
            case "synced":
                self.runner.perform(job, job.synced(rank, request.synced.number, now))
            case "lacking":
                for row, lacks in zip(to_rows(request.lacking.shards), request.lacking.ranks, strict=True):
                    job.lacking(rank, row, lacks.ranks)
            case "losses":
                self.runner.perform(job, job.learn_losses(rank, request.losses.losses, now))
            case "admit":
                self.runner.perform(job, job.admit(rank, request.admit.admission, now))
            case "candidates":
                self.runner.perform(job, job.wait_at(rank, request.candidates.candidates, now))
            case "reach":
                self.runner.perform(job, job.reaches(rank, now, all_of_them=request.reach.all))
            case "goodbye" if request.goodbye.HasField("fault"):
                self.runner.perform(job, job.leave_early(rank, request.goodbye, now))
            case "goodbye" if request.goodbye.ranks:
                self.runner.perform(job, job.leave_partly(rank, request.goodbye.ranks))
            case "goodbye":
                self.runner.perform(job, job.leave(rank, now))

    def say(self, peer: Peer, payload: bytes = b"", **kind: Any) -> None:
        """Handles a message that a worker makes by hand."""
        self.handle(
            peer, encode(pb.ExchangeRequest(**kind), payload) if payload else encode(pb.ExchangeRequest(**kind))
        )

    def tick(self, seconds: float) -> None:
        """Lets time pass."""
        self.now += seconds
        for registry in (self.fleet, self.groups):
            for job, action in registry.tick(self.now):
                self.runner.perform(job, [action])


class Uplinks:
    """The connections of one relay's group to the owners. Counterpart of psum.aggregator.relay.uplinks.Uplinks.

    Args:
        relay: The relay's process.
        job: The group's job there.
        owners: The owners, in the order of the workers' list.
    """

    def __init__(self, relay: Process, job: Job, owners: Sequence[Process]) -> None:
        assert isinstance(job, HostJob)
        self.relay = relay
        self.job = job
        self.owners = list(owners)
        self.peers: list[Peer | None] = [None] * len(owners)
        self.waiting: dict[int, Candidate] = {}
        """What the relay is to the owners that have not let it in, if its group begins with a process that joins."""
        self.farewells = 0

    def connect(self, index: int, *, resuming: bool = False, reopened: bool = False) -> None:
        """Opens a stream to one owner."""
        said = self.job.hello(index, resuming)
        if said.joining:
            self.waiting[index] = self.owners[index].wait(said)
        else:
            self._welcome(index, self.owners[index].join(said), resuming=resuming or reopened)

    def decide(self) -> bool:
        """Carries out what owners have decided about the relay. Returns whether there was anything."""
        decided = False
        for index, candidate in list(self.waiting.items()):
            owner = self.owners[index]
            for decision in (each for each in owner.decided if each.candidate is candidate):
                decided = True
                del self.waiting[index]
                if isinstance(decision, Admit):
                    self._welcome(index, owner.let_in(candidate))
                else:
                    self.relay.runner.perform(self.job, self.job.unreachable(decision.fault, self.relay.now))
        return decided

    def end(self) -> None:
        """The streams end."""
        for owner, peer in self.pairs():
            owner.runner.perform(peer.job, peer.job.lost(peer.rank, owner.now, closed=True))
            owner.connections.pop((id(peer.job), peer.rank), None)
        for index, candidate in self.waiting.items():
            self.owners[index].withdraw(candidate)

    def _welcome(self, index: int, peer: Peer, *, resuming: bool = False) -> None:
        self.peers[index] = peer
        job, rank = peer.job, peer.rank
        welcome = pb.Welcome(departures=job.departures(), losses=job.losses(self.relay.now, rank))
        if (admission := job.admission(rank)) is not None:
            welcome.admission.CopyFrom(admission)
            welcome.admissions.extend(job.other_admissions(rank))
        self.job.uplink.welcomed(welcome)
        self.job.uplink.let_in(index)
        if candidates := peer.job.candidates():
            peer.connection.queue.put_control(pb.ExchangeResponse(candidates=pb.Candidates(candidates=candidates)))
        if resuming:
            self.job.uplink.reconnected(index)
        self.relay.runner.perform(self.job, self.job.heard(self.relay.now))

    def replace(self, index: int, owner: Process) -> None:
        """An owner was started again."""
        self.owners[index] = owner
        self.connect(index, resuming=True)

    def run(self) -> None:
        """Carries out what the shell was told, and moves messages until there are none."""
        moved = True
        while moved:
            moved = False
            for action in self.take_told():
                moved = True
                match action:
                    case ConnectUplinks():
                        for index, peer in enumerate(self.peers):
                            if peer is None:
                                self.connect(index)
                    case ReopenUplinks():
                        self.end()
                        for index in range(len(self.peers)):
                            self.connect(index, reopened=True)
                    case PartUplinks(goodbye):
                        for owner, peer in self.pairs():
                            owner.say(peer, goodbye=goodbye)
                    case LeaveUplinks():
                        self.flush()
                        for owner, peer in self.pairs():
                            owner.say(peer, goodbye=pb.Goodbye())
            moved = self.decide() or self.flush() or moved

    def flush(self) -> bool:
        """Moves messages in both directions; returns whether there were any."""
        moved = False
        for index, (owner, peer) in enumerate(self.pairs()):
            while self.job.failure is None and (message := self.job.uplink.next_message(index)) is not None:
                moved = True
                owner.handle(peer, message)
            for response, payload in peer.received():
                moved = True
                if response.HasField("farewell"):
                    self.farewells += 1
                    if self.farewells == len(self.owners):
                        self.relay.runner.perform(self.job, self.job.parted(self.relay.now))
                else:
                    self.job.uplink.handle(index, response, payload, (), self.relay.now)
                    self.relay.runner.perform(self.job, self.job.heard(self.relay.now))
        return moved

    def pairs(self) -> list[tuple[Process, Peer]]:
        """Each owner with the relay's connection there."""
        return [(owner, peer) for owner, peer in zip(self.owners, self.peers, strict=True) if peer is not None]

    def take_told(self) -> list[UplinkAction]:
        """What the shell was told since the last call."""
        told, self.relay.told[:] = list(self.relay.told), []
        return told


def hello(rank: int, *, group: int = 2, num_workers: int = 4, owners: int = 1, **change: Any) -> pb.Hello:
    """The hello of a worker to its relay; with `group=0`, to an owner."""
    fields: dict[str, Any] = {
        "protocol_version": 1,
        "job": "night",
        "rank": rank,
        "num_workers": num_workers,
        "group_size": group,
        "partition_bytes": 1024,
        "incarnation": 100 + rank,
        "aggregators": [f"owner{index}:1" for index in range(owners)],
        "worker": f"host pid {100 + rank}",
    }
    return pb.Hello(**fields | change)


def key(*owners: int, id: int = 7, round: int = 0, broadcast: bool = False, elements: int = 4) -> pb.Key:
    """The declaration of a key with a shard of this many elements for each of these owners."""
    return pb.Key(
        id=id,
        name="w",
        elements=elements * len(owners),
        type=pb.ELEMENT_TYPE_UINT8,
        operation=pb.OPERATION_BROADCAST if broadcast else pb.OPERATION_SUM,
        shape=[elements * len(owners)],
        shards=[pb.Shard(index=i, elements=elements, round=round, owner=owner) for i, owner in enumerate(owners)],
    )


def push(value: bytes, *, shard: int = 0, round: int = 0, id: int = 7) -> dict[str, Any]:
    """A contribution, as Process.say takes it."""
    columns = to_columns([ShardRound(id, shard, round, length=len(value))])
    return {"payload": value, "push": pb.Push(shards=columns)}


def pull(*, shard: int = 0, round: int = 0, id: int = 7) -> dict[str, Any]:
    """A pull of a broadcast, as Process.say takes it."""
    return {"pull": pb.Pull(shards=to_columns([ShardRound(id, shard, round)]))}
