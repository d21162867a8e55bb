"""A simulated worker process: a real session with simulated streams."""

import itertools
from collections import deque
from collections.abc import Sequence
from random import Random

import numpy as np
import numpy.typing as npt

from psum.client import (
    ElementType,
    FaultError,
    Operation,
    TakenError,
    Ticket,
    WorkerLostError,
)
from psum.client.core.recorder import Recorder
from psum.client.core.session import Session
from psum.v1 import aggregator_pb2 as pb
from psum.wire import PLACEMENT_BY_ROLES, PLACEMENT_BY_WEIGHTS, PROTOCOL_VERSION, decode, encode
from simulation.plan import Plan
from simulation.stream import Stream

Values = npt.NDArray[np.generic]

_FAREWELL = encode(pb.ExchangeResponse(farewell=pb.Farewell()))
_REPEATABLE = ("result", "taken", "want")
RANK_TIMEOUT_SECONDS = 45.0
_numbers = itertools.count(1)


class _AggregatorConnection:
    """Connection state for one aggregator. Counterpart of psum.client.transport.connection.AggregatorConnection."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.welcomed = False
        """Whether the aggregator answered hello on the current stream."""
        self.resuming = False
        """Whether it ever did."""
        self.said_goodbye = False
        self.gone = False
        """Whether the worker opens no more streams to this aggregator."""


class WorkerProcess:
    """One worker process from start to end.

    Args:
        plan: The history's plan.
        addresses: The aggregators' addresses.
        rank: Its rank.
        number: Number of processes that had this rank before.
        now: The current time in seconds.
        keep_sums: Whether it keeps sums to restore them after a restart of an aggregator.
    """

    def __init__(
        self, plan: Plan, addresses: Sequence[str], *, rank: int, number: int, now: float, keep_sums: bool
    ) -> None:
        self.rank = rank
        self.number = number
        self.alive = True
        self.leaving = False
        self.retry_at = now
        """When it may connect."""
        self._ended_by: FaultError | None = None
        self._give_up: float | None = None
        """When it stops waiting for its rank, None before it has begun to wait."""
        self.plan = plan
        self._addresses = tuple(addresses)
        self._incarnation = next(_numbers)
        self._started_at = now
        self.connections = [_AggregatorConnection() for _ in addresses]
        self._submitted: deque[Ticket] = deque()
        self.session = Session(
            addresses,
            None if plan.by_roles else plan.weights,
            rank=rank,
            partition_bytes=plan.partition_bytes,
            credit_bytes=plan.credit_bytes,
            keep_sums=keep_sums,
            hand_over=self._submitted.append,
            # Ranks with a recorder ask for timings; the others cover results without them.
            recorder=Recorder(0, 1 << 40) if rank % 2 else None,
        )
        # Every second process is beside an aggregator. One that replaces another may be elsewhere.
        self.session.beside = [rank % len(addresses)] if (rank + number) % 2 else []

    @property
    def joined(self) -> bool:
        """Whether every aggregator has accepted it once. Before that, a program has no store."""
        return all(connection.resuming for connection in self.connections)

    @property
    def early_goodbye(self) -> pb.Goodbye | None:
        """The goodbye to all aggregators before its work is done, None while it continues."""
        fault = self._ended_by or self.session.failure
        if not isinstance(fault, FaultError) or fault.key is not None:
            return None
        replaceable = fault is self._ended_by and not self.session.took_part
        return pb.Goodbye(fault=fault.to_message(), replaceable=replaceable)

    def terminate(self) -> None:
        """Receive SIGTERM. Counterpart of psum.client.termination."""
        self._ended_by = WorkerLostError(f"rank {self.rank} of job 'model' was ended", ranks=[self.rank])

    @property
    def busy(self) -> bool:
        """Whether any of its operations has not ended."""
        return self.session.busy

    @property
    def gone(self) -> bool:
        """Whether it has left all aggregators, or was killed."""
        return not self.alive or all(connection.gone for connection in self.connections)

    def hello(self, aggregator: int, now: float) -> bytes:
        """Return its hello message to an aggregator."""
        return encode(
            pb.ExchangeRequest(
                hello=pb.Hello(
                    protocol_version=PROTOCOL_VERSION,
                    job="model",
                    rank=self.rank,
                    num_workers=self.plan.workers,
                    incarnation=self._incarnation,
                    partition_bytes=self.plan.partition_bytes,
                    aggregators=self._addresses,
                    weights=self.plan.weights,
                    aggregator_index=aggregator,
                    planes=[pb.PLANE_INLINE],
                    worker=f"process {self.number}",
                    age_seconds=now - self._started_at,
                    resuming=self.connections[aggregator].resuming,
                    placement=PLACEMENT_BY_ROLES if self.plan.by_roles else PLACEMENT_BY_WEIGHTS,
                )
            )
        )

    def reserve(self, name: str, elements: int, kind: ElementType, operation: Operation, priority: int) -> Ticket:
        """Reserve an operation."""
        # Only some ranks label the key.
        label = f"{operation.name} of {name}" if self.rank % 2 else ""
        return self.session.reserve(0, name, (elements,), kind, operation, priority, label)

    def submit(self, now: float) -> None:
        """Pass started and aborted operations to the session."""
        while self._submitted:
            self.session.submit(self._submitted.popleft(), now)
        self.report()

    def connected(self, aggregator: int, stream: Stream) -> None:
        """Record a new stream, on which only hello has been sent."""
        connection = self.connections[aggregator]
        connection.stream, connection.welcomed, connection.said_goodbye = stream, False, False

    def send(self, aggregator: int, window: int) -> bool:
        """Send the next message. Return False if there is none, or no stream can take it."""
        connection = self.connections[aggregator]
        if connection.stream is None or not connection.welcomed or len(connection.stream.requests) >= window:
            return False
        if (early_goodbye := self.early_goodbye) is not None:
            if connection.said_goodbye:
                return False
            message: bytes | None = encode(pb.ExchangeRequest(goodbye=early_goodbye))
            connection.said_goodbye = True
        else:
            message = self.session.next_message(aggregator)
        if message is None and self.leaving and not connection.said_goodbye:
            message = encode(pb.ExchangeRequest(goodbye=pb.Goodbye()))
            connection.said_goodbye = True
        if message is None:
            return False
        if connection.stream.aggregator_open:
            connection.stream.requests.append(message)
        return True

    def receive(self, aggregator: int, now: float, random: Random, duplicate_rate: float) -> bool:
        """Receive the next message, or notice the end of the stream. Return False if there is neither."""
        connection = self.connections[aggregator]
        if connection.stream is None:
            return False
        if not connection.stream.responses:
            if connection.stream.aggregator_open:
                return False
            self.lose(aggregator)
            return True
        data = connection.stream.responses.popleft()
        if data == _FAREWELL:
            self.lose(aggregator)
            connection.gone = True
            return True
        message, _ = decode(pb.ExchangeResponse, data)
        kind = message.WhichOneof("kind")
        if not connection.welcomed:
            self._receive_welcome(aggregator, message, now)
            return True
        for _ in range(2 if duplicate_rate and kind in _REPEATABLE and random.random() < duplicate_rate else 1):
            self.session.receive(aggregator, data, now)
        self.report()
        return True

    def lose(self, aggregator: int) -> None:
        """Close the stream to an aggregator."""
        connection = self.connections[aggregator]
        if connection.stream is not None:
            connection.stream.close_worker_end()
            connection.stream = None
            connection.gone = connection.gone or (connection.welcomed and self.session.failure is not None)

    def die(self) -> None:
        """End the process as if it were killed."""
        self.alive = False
        for aggregator in range(len(self.connections)):
            self.lose(aggregator)

    def expire(self, seconds: float, now: float) -> None:
        """Fail operations that have waited for longer than `seconds`."""
        self.session.expire(seconds, now)
        self.report()

    def report(self) -> None:
        """Report ended operations to the program."""
        finished = list(self.session.finished)
        self.session.finished.clear()
        for ticket, error in finished:
            done, ticket.done = ticket.done, None
            ticket.source = ticket.target = None
            if done is not None:
                done(error)

    def _waits_for_rank(self, fault: pb.Fault, now: float) -> bool:
        if self.joined or fault.code != TakenError.code:
            return False
        if self._give_up is None:
            self._give_up = now + RANK_TIMEOUT_SECONDS
        self.retry_at = now + 1.0
        return now < self._give_up

    def _receive_welcome(self, aggregator: int, message: pb.ExchangeResponse, now: float) -> None:
        connection = self.connections[aggregator]
        match message.WhichOneof("kind"):
            case "welcome":
                connection.welcomed = True
                if connection.resuming:
                    self.session.reconnected(aggregator)
                connection.resuming = True
            case "fault" if self._waits_for_rank(message.fault, now):
                # As psum.client.joining: leave all aggregators, then join all of them anew.
                for other in range(len(self.connections)):
                    self.lose(other)
                self.connections = [_AggregatorConnection() for _ in self.connections]
                self._incarnation = next(_numbers)
            case "fault":
                self.session.fail(FaultError.from_message(message.fault))
                # A worker that never joined the job gives up the other aggregators too.
                for other in (aggregator,) if self.joined else range(len(self.connections)):
                    self.lose(other)
                    self.connections[other].gone = True
                self.report()
            case kind:
                raise AssertionError(f"hello was answered with {kind}")
