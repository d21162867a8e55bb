"""A simulated aggregator process: the real registries, jobs and send queues, with simulated streams and sum threads."""

import itertools
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from random import Random
from typing import Any, cast

from psum.aggregator.core.actions import Admit, ConnectUplinks, Refuse, UplinkAction
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.registry import Registry
from psum.aggregator.relay.core.elastic_host_job import ElasticHostJob
from psum.aggregator.relay.core.host_job import HostJob
from psum.aggregator.relay.core.introduction import Identity
from psum.aggregator.relay.relays import FOUND_SECONDS
from psum.aggregator.service.action_runner import ActionRunner
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.receiver import Receiver
from psum.aggregator.sums.pool import PriorityPool
from psum.planes import DataConnection
from psum.planes.direct import DirectAggregator
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, decode, to_columns
from psum.wire.errors import FaultError
from simulation.frames import Received, as_message
from simulation.relay import Uplinks
from simulation.stream import Stream

_Task = tuple[Callable[[], None], Callable[[BaseException | None], None]]

#: Kinds of messages that the aggregator must accept twice.
_REPEATABLE = (
    "push",
    "pull",
    "restore",
    "declare",
    "abort",
    "synced",
    "lacking",
    "losses",
    "admit",
    "reach",
    "candidates",
)

#: The processes' incarnations.
_numbers = itertools.count(1 << 40)


class LatePool:
    """A stand-in for PriorityPool that computes sums later, in any order."""

    at_once_bytes = 0

    def __init__(self) -> None:
        self.tasks: list[_Task] = []

    def submit(
        self, _priority: int, task: Callable[[], None], done: Callable[[BaseException | None], None], _size: int
    ) -> None:
        self.tasks.append((task, done))


class AggregatorProcess:
    """One aggregator process from start to end. Counterpart of psum.aggregator.service.service.Service.

    Args:
        limits: The process's limits, including its time-outs.
        clock: The time in seconds.
        credit_bytes: Maximum number of bytes in flight on an uplink.
        above: The processes that it forwards to, if it is a relay.
    """

    def __init__(
        self, limits: Limits, clock: Callable[[], float], credit_bytes: int, above: Sequence[int] = ()
    ) -> None:
        self.registry = Registry(limits)
        identity = Identity(next(_numbers), "a simulated host")
        of_group = {"identity": identity, "credit_bytes": credit_bytes, "clock": clock}
        self._relay_registry = Registry(
            limits,
            self._release,
            budget=self.registry.budget,
            make=partial(_make_host_job, of_group),
            found_after=FOUND_SECONDS,
        )
        self._registries = (self.registry, self._relay_registry)
        self.uplinks: Uplinks | None = None
        """The uplinks of the group that it relays for, None before they are needed."""
        self._above = above
        self._clock = clock
        self.streams: list[Stream] = []
        """Streams whose end it has not seen."""
        self.connections: dict[tuple[int, int], WorkerConnection] = {}
        self.draining = False
        self.grace_until = 0.0
        self._pool = LatePool()
        self._runner = ActionRunner(
            cast(PriorityPool, self._pool),
            lambda job, rank: self.connections.get((id(job), rank)),
            uplinks=self._to_uplinks,
            detach=self._detach,
            decide=self._decide,
        )
        self._waiting: dict[Candidate, Stream] = {}
        self._drained: dict[int, set[tuple[int, int, int]]] = {}

    @property
    def jobs(self) -> list[Job]:
        """The jobs in progress, those of groups that it relays for included."""
        return [job for registry in self._registries for job in registry.jobs.values()]

    @property
    def ended_groups(self) -> list[Job]:
        """The jobs of groups that it relayed for."""
        return [ended.job for ended in self._relay_registry.ended]

    @property
    def uncredited(self) -> bool:
        """Whether time must pass before credit is returned."""
        return any(registry.uncredited for registry in self._registries)

    def accept(self, stream: Stream) -> bool:
        """Accept a new stream. Return False if the process is draining."""
        if not self.draining:
            self.streams.append(stream)
        return not self.draining

    def read(self, stream: Stream, now: float, random: Random, duplicate_rate: float) -> bool:
        """Read and handle the next frame of a stream. Return False if there is none, or the stream is closing."""
        if not stream.requests or not stream.aggregator_open:
            return False
        if stream.received is None:
            if stream.connection.closing:
                return False
            data = as_message(stream.requests.popleft())
            request, _ = decode(pb.ExchangeRequest, data)
            if stream.joined is None:
                assert stream.candidate is None, "a process that waits to join sends nothing"
                self._hello(stream, request.hello, now)
                return True
            stream.received = Received(data, stream.requests)
            if stream.direct:
                # The member has a data connection: what it sends after hello comes there.
                stream.connection.plane.connected(cast(DataConnection, stream.received))
            stream.handling = _handle(stream, stream.received)
        assert stream.handling is not None
        if _ends(stream.handling):
            received, stream.received, stream.handling = stream.received, None, None
            kind = decode(pb.ExchangeRequest, received.message)[0].WhichOneof("kind")
            if duplicate_rate and kind in _REPEATABLE and random.random() < duplicate_rate:
                again = _handle(stream, received.again())
                while not _ends(again):
                    pass
        return True

    def write(self, stream: Stream, now: float) -> bool:
        """Send the next message of a stream, or end a closing stream. Return False if there was nothing to do."""
        if not stream.aggregator_open:
            return False
        queue = stream.connection.queue
        if stream.to_client:
            stream.to_client.go_on()
        elif queue:
            message = queue.get()
            stream.to_client.send(message, queue.following)
        elif stream.connection.closing:
            self.lose(stream, now)
        else:
            return False
        return True

    def lose(self, stream: Stream, now: float) -> None:
        """Handle the end of a stream, whatever its cause."""
        if not stream.aggregator_open:
            return
        stream.close_aggregator_end()
        self.streams.remove(stream)
        if stream.joined is None:
            if stream.candidate is not None:
                del self._waiting[stream.candidate]
                for about, action in self._registry_for(stream.candidate.hello).withdraw(stream.candidate, now):
                    self._runner.perform(about, [action])
            return
        job, rank = stream.joined
        if self.connections.get((id(job), rank)) is not stream.connection:
            return
        del self.connections[id(job), rank]
        self._runner.perform(job, job.lost(rank, now))
        self._registry_of(job).settle(job, now)

    def sum_one(self, random: Random) -> bool:
        """Compute one pending sum, chosen at random. Return False if there is none."""
        tasks = self._pool.tasks
        if not tasks:
            return False
        task, done = tasks.pop(random.randrange(len(tasks)))
        task()
        done(None)
        return True

    def tick(self, now: float) -> None:
        """Check for time-outs. All who are connected have sent beats."""
        for worker in (worker for job in self.jobs for worker in job.workers.values() if worker.connected):
            worker.last_heard = max(now, worker.last_heard)
        for registry in self._registries:
            for job, action in registry.tick(now):
                self._runner.perform(job, [action])
        for registry in self._registries:
            for refusal in registry.refusals(now):
                self._decide(None, refusal)

    def vouch(self, rank: int, incarnation: int, now: float) -> None:
        """Hear from a worker behind a relay that it lives."""
        for job in self.registry.jobs.values():
            if isinstance(job, ElasticJob) and job.failure is None:
                job.members.vouch(rank, incarnation, now)

    def drain(self, until: float) -> None:
        """Begin an orderly shutdown that ends at `until` at the latest."""
        self.draining, self.grace_until = True, until
        self._drained = {id(job): set(job.drain()) for job in self.jobs}
        for stream in self._waiting.values():
            stream.connection.finish()
        for (job_id, _), connection in self.connections.items():
            entries = [ShardRound(*round) for round in self._drained.get(job_id, ())]
            connection.queue.put_control(
                pb.ExchangeResponse(drain=pb.Drain(grace_seconds=10, open=to_columns(entries)))
            )

    def drained(self, now: float) -> bool:
        """Return whether the shutdown is complete or its time is up."""
        return now >= self.grace_until or not (
            any(connection.queue for connection in self.connections.values())
            or any(set(job.open_rounds()) & self._drained.get(id(job), set()) for job in self.jobs)
        )

    def die(self) -> None:
        """End all streams abruptly. Messages that were sent may still arrive."""
        for stream in self.streams:
            stream.close_aggregator_end()
        if self.uplinks is not None:
            self.uplinks.die()

    def check(self) -> None:
        """Assert the invariants."""
        for job in self.jobs:
            job.check()
            for rank, worker in job.workers.items():
                assert worker.connected == ((id(job), rank) in self.connections), f"rank {rank} of {job!r}"

    def _hello(self, stream: Stream, hello: pb.Hello, now: float) -> None:
        if hello.joining:
            self._let_wait(stream, hello, now)
            return
        job, actions, refusal = self._registry_for(hello).join(hello, f"peer of client {stream.client}", now)
        for about, action in actions:
            self._runner.perform(about, [action])
        connection = stream.connection
        if job is None or refusal is not None:
            assert isinstance(refusal, FaultError)
            connection.queue.put_control(pb.ExchangeResponse(fault=refusal.to_message()))
            connection.closing = True
            return
        self._welcome(stream, job, hello)

    def _let_wait(self, stream: Stream, hello: pb.Hello, now: float) -> None:
        stream.candidate = candidate = Candidate(hello, f"peer of client {stream.client}", now)
        self._waiting[candidate] = stream
        actions, refusal = self._registry_for(hello).wait(candidate, now)
        for about, action in actions:
            self._runner.perform(about, [action])
        if refusal is not None:
            self._decide(None, Refuse(candidate, refusal))

    def _decide(self, job: Job | None, action: Admit | Refuse) -> None:
        stream = self._waiting.get(action.candidate)
        if stream is None:
            return
        if isinstance(action, Refuse):
            stream.connection.queue.put_control(pb.ExchangeResponse(fault=action.fault.to_message()))
            stream.connection.closing = True
            return
        assert job is not None
        del self._waiting[action.candidate]
        stream.candidate = None
        self._welcome(stream, job, action.candidate.hello)

    def _detach(self, job: Job, rank: int) -> None:
        if (connection := self.connections.pop((id(job), rank), None)) is not None:
            connection.finish()

    def _welcome(self, stream: Stream, job: Job, hello: pb.Hello) -> None:
        connection = stream.connection
        if (replaced := self.connections.get((id(job), hello.rank))) is not None:
            replaced.abandon()
        self.connections[id(job), hello.rank] = connection
        stream.joined = job, hello.rank
        stream.receiver = Receiver(
            job, hello.rank, connection, self._runner, clock=self._clock, uncredited=lambda: None
        )
        if stream.direct:
            connection.plane = DirectAggregator()
        welcome = pb.Welcome(
            plane=pb.PLANE_DIRECT if stream.direct else pb.PLANE_INLINE,
            relays=hello.group_size > 0,
            departures=job.departures(),
            losses=job.losses(self._clock(), hello.rank),
            admission=job.admission(hello.rank),
            admissions=job.other_admissions(hello.rank),
        )
        connection.queue.put_control(pb.ExchangeResponse(welcome=welcome))
        if candidates := job.candidates():
            connection.queue.put_control(pb.ExchangeResponse(candidates=pb.Candidates(candidates=candidates)))

    def _to_uplinks(self, job: Job, action: UplinkAction) -> None:
        assert isinstance(job, HostJob)
        if isinstance(action, ConnectUplinks):
            assert self._above, "a process that is no relay connects to other aggregators"
            self.uplinks = Uplinks(job, self._above, self._runner.perform, before=self.uplinks)
        elif self.uplinks is not None and self.uplinks.job is job:
            self.uplinks.perform(action)

    def _release(self, job: Job) -> None:
        """End the uplinks of a group whose workers have all been away for so long that nothing is kept for them."""
        if job.abandoned and self.uplinks is not None and self.uplinks.job is job:
            self.uplinks.die()

    def _registry_for(self, hello: pb.Hello) -> Registry:
        return self._relay_registry if hello.group_size else self.registry

    def _registry_of(self, job: Job) -> Registry:
        return self._relay_registry if job.forwards else self.registry


def _handle(stream: Stream, received: Received) -> Coroutine[object, None, None]:
    """Begin to handle a message."""
    assert stream.receiver is not None
    return stream.receiver.handle(received.message, cast(DataConnection, received) if stream.direct else None)


def _ends(handling: Coroutine[object, None, None]) -> bool:
    """Go on with the work on a message. Return whether it has ended; otherwise it waits for a payload."""
    try:
        handling.send(None)
    except StopIteration:
        return True
    return False


def _make_host_job(of_group: dict[str, Any], hello: pb.Hello, limits: Limits, **job: Any) -> HostJob:
    """Make the job of a group. Counterpart of psum.aggregator.relay.relays."""
    return (ElasticHostJob if hello.HasField("elastic") else HostJob)(hello, limits, **job, **of_group)
