"""An aggregator process: everything of the real one but the streams and the threads, of which it does what they do."""

from collections.abc import Callable
from random import Random
from typing import cast

from psum.aggregator.core.actions import Action
from psum.aggregator.core.job import Job
from psum.aggregator.core.registry import Registry
from psum.aggregator.service.action_runner import ActionRunner
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.settings import Settings
from psum.aggregator.sums.pool import PriorityPool
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, decode, split, to_columns, to_rows
from psum.wire.errors import FaultError
from simulation.connection import Connection

_Task = tuple[Callable[[], None], Callable[[BaseException | None], None]]

#: What harms nobody when it comes twice.
_REPEATABLE = ("push", "pull", "restore", "declare", "abort", "synced")


class LatePool:
    """Sums that are made later, in any order."""

    at_once_bytes = 0

    def __init__(self) -> None:
        self.tasks: list[_Task] = []

    def submit(
        self, _priority: int, task: Callable[[], None], done: Callable[[BaseException | None], None], _size: int
    ) -> None:
        self.tasks.append((task, done))


class AggregatorProcess:
    """One process from its start to its end. Counterpart of psum.aggregator.service.service.Service.

    Args:
        settings: Its time-outs.
    """

    def __init__(self, settings: Settings) -> None:
        self.registry = Registry(settings)
        self.connections: list[Connection] = []
        """Streams that it has not seen the end of."""
        self.lines: dict[tuple[int, int], WorkerConnection] = {}
        self.draining = False
        self.grace_until = 0.0
        self._pool = LatePool()
        self._delivery = ActionRunner(cast(PriorityPool, self._pool), lambda job, rank: self.lines.get((id(job), rank)))
        self._drained: dict[int, set[tuple[int, int, int]]] = {}

    def accept(self, connection: Connection) -> bool:
        """A stream is opened; returns False where the process takes no more."""
        if not self.draining:
            self.connections.append(connection)
        return not self.draining

    def read(self, connection: Connection, now: float, random: Random, echoes: float) -> bool:
        """Takes the next message of a stream; returns False where there is none, or nobody who would read it."""
        if not connection.requests or not connection.aggregator_open or connection.line.closing:
            return False
        request, payload = decode(pb.ExchangeRequest, connection.requests.popleft())
        if connection.joined is None:
            self._hello(connection, request.hello, now)
            return True
        kind = request.WhichOneof("kind")
        for _ in range(2 if echoes and kind in _REPEATABLE and random.random() < echoes else 1):
            self._handle(*connection.joined, request, payload, now)
        return True

    def write(self, connection: Connection, now: float) -> bool:
        """Sends the next message of a stream, or ends it where all was said."""
        if not connection.aggregator_open:
            return False
        if not connection.line.outbox:
            if connection.line.closing:
                self.lose(connection, now)
                return True
            return False
        data = connection.line.outbox.take()
        if connection.worker_open:
            connection.responses.append(data)
        return True

    def lose(self, connection: Connection, now: float) -> None:
        """A stream is over, for whatever reason."""
        if not connection.aggregator_open:
            return
        connection.close_aggregator_end()
        self.connections.remove(connection)
        if connection.joined is None:
            return
        job, rank = connection.joined
        if self.lines.get((id(job), rank)) is not connection.line:
            return
        del self.lines[id(job), rank]
        self._delivery.perform(job, job.lost(rank, now))
        self.registry.settle(job, now)

    def sum_one(self, random: Random) -> bool:
        """Some sum is made; returns False where there is none to make."""
        tasks = self._pool.tasks
        if not tasks:
            return False
        task, done = tasks.pop(random.randrange(len(tasks)))
        task()
        done(None)
        return True

    def tick(self, now: float) -> None:
        """Looks for time-outs."""
        for job, action in self.registry.tick(now):
            self._delivery.perform(job, [action])

    def drain(self, until: float) -> None:
        """Begins to end in order."""
        self.draining, self.grace_until = True, until
        self._drained = {id(job): set(job.open_rounds()) for job in self.registry.jobs.values()}
        for (job_id, _), line in self.lines.items():
            entries = [ShardRound(*place) for place in self._drained.get(job_id, ())]
            line.outbox.put_control(pb.ExchangeResponse(drain=pb.Drain(grace_seconds=10, open=to_columns(entries))))

    def drained(self, now: float) -> bool:
        """Whether it has nothing more to do, or no more time."""
        return now >= self.grace_until or not (
            any(line.outbox for line in self.lines.values())
            or any(set(job.open_rounds()) & self._drained.get(id(job), set()) for job in self.registry.jobs.values())
        )

    def die(self) -> None:
        """All streams end; what was sent on them may yet arrive."""
        for connection in self.connections:
            connection.close_aggregator_end()

    def check(self) -> None:
        """Asserts what always holds."""
        for job in self.registry.jobs.values():
            job.check()
            for rank, worker in job.workers.items():
                assert worker.connected == ((id(job), rank) in self.lines), f"rank {rank} of {job!r}"

    def _hello(self, connection: Connection, hello: pb.Hello, now: float) -> None:
        job, actions, refusal = self.registry.join(hello, f"peer of rank {connection.rank}", now)
        for about, action in actions:
            self._delivery.perform(about, [action])
        line = connection.line
        if job is None or refusal is not None:
            assert isinstance(refusal, FaultError)
            line.outbox.put_control(pb.ExchangeResponse(fault=refusal.to_message()))
            line.closing = True
            return
        if (replaced := self.lines.get((id(job), hello.rank))) is not None:
            replaced.outbox.clear()
            replaced.closing = True
        self.lines[id(job), hello.rank] = line
        connection.joined = job, hello.rank
        line.outbox.put_control(pb.ExchangeResponse(welcome=pb.Welcome(plane=pb.PLANE_INLINE)))

    def _handle(self, job: Job, rank: int, request: pb.ExchangeRequest, payload: memoryview, now: float) -> None:
        job.workers[rank].last_heard = now
        perform: Callable[[list[Action]], None] = lambda actions: self._delivery.perform(job, actions)  # noqa: E731
        match request.WhichOneof("kind"):
            case "push":
                entries = to_rows(request.push.shards)
                actions: list[Action] = []
                for entry, piece in zip(entries, split(payload, entries), strict=True):
                    actions += job.contribute(rank, entry, piece, now, len(payload))
                perform(actions)
            case "pull":
                for entry in to_rows(request.pull.shards):
                    perform(job.contribute(rank, entry, None, now))
            case "declare":
                for key in request.declare.keys:
                    perform(job.declare(rank, key, now))
            case "restore":
                entries = to_rows(request.restore.shards)
                for entry, piece in zip(entries, split(payload, entries), strict=True):
                    perform(job.restore(rank, entry, piece))
            case "abort":
                perform(job.abort(rank, request.abort))
            case "goodbye":
                if request.goodbye.HasField("fault"):
                    perform(job.leave_early(rank, request.goodbye, now))
                else:
                    perform(job.leave(rank, now))
            case "synced":
                perform(job.synced(rank, request.synced.number, now))
            case kind:
                raise AssertionError(f"rank {rank} sent {kind}")
