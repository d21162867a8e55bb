"""A worker process: a real session, and what its streams do."""

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
from psum.wire import PROTOCOL_VERSION, decode, encode
from simulation.connection import Connection
from simulation.plan import Plan

Values = npt.NDArray[np.generic]

_FAREWELL = encode(pb.ExchangeResponse(farewell=pb.Farewell()))
_REPEATABLE = ("result", "taken", "want")
RANK_TIMEOUT_SECONDS = 45.0
_numbers = itertools.count(1)


class _Link:
    """The way to one aggregator. Counterpart of psum.client.transport.connection.AggregatorConnection."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.welcomed = False
        """Whether hello was answered on this connection."""
        self.resuming = False
        """Whether it was ever."""
        self.said_goodbye = False
        self.gone = False
        """Whether it is not to be opened any more."""


class WorkerProcess:
    """One process from its start to its end.

    Args:
        plan: The history's.
        addresses: The aggregators.
        rank: Its rank.
        number: How many processes had this rank before.
        now: The time.
        keep_sums: Whether it keeps its sums.
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
        """When it waits no longer for its rank, None before it has begun to wait."""
        self.plan = plan
        self._addresses = tuple(addresses)
        self._incarnation = next(_numbers)
        self._started_at = now
        self.links = [_Link() for _ in addresses]
        self._submitted: deque[Ticket] = deque()
        self.session = Session(
            addresses,
            plan.weights,
            rank=rank,
            partition_bytes=plan.partition_bytes,
            credit_bytes=plan.credit_bytes,
            keep_sums=keep_sums,
            hand_over=self._submitted.append,
            # Some ranks ask for timings, the others complete rounds of which they are told.
            recorder=Recorder(0, 1 << 40) if rank % 2 else None,
        )

    @property
    def joined(self) -> bool:
        """Whether it has got through to every aggregator once; before, its program has no store to use."""
        return all(link.resuming for link in self.links)

    @property
    def parting(self) -> pb.Goodbye | None:
        """What it says to all aggregators before its work is done, None where it goes on."""
        fault = self._ended_by or self.session.failure
        if not isinstance(fault, FaultError) or fault.key is not None:
            return None
        replaceable = fault is self._ended_by and not self.session.took_part
        return pb.Goodbye(fault=fault.to_message(), replaceable=replaceable)

    def terminate(self) -> None:
        """It gets SIGTERM. Counterpart of psum.client.termination."""
        self._ended_by = WorkerLostError(f"rank {self.rank} of job 'model' was ended", ranks=[self.rank])

    @property
    def busy(self) -> bool:
        """Whether an operation of it has not ended."""
        return bool(self.session.running) or any(key.waiting for key in self.session._keys.values())

    @property
    def gone(self) -> bool:
        """Whether it has nothing to do with any aggregator any more."""
        return not self.alive or all(link.gone for link in self.links)

    def hello(self, aggregator: int, now: float) -> bytes:
        """Its introduction to an aggregator."""
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
                    resuming=self.links[aggregator].resuming,
                )
            )
        )

    def reserve(self, name: str, elements: int, kind: ElementType, operation: Operation, priority: int) -> Ticket:
        """Announces an operation."""
        # Some ranks know what the key stands for.
        label = f"{operation.name} of {name}" if self.rank % 2 else ""
        return self.session.reserve(0, name, (elements,), kind, operation, priority, label)

    def submit(self, now: float) -> None:
        """Hands the session what was started or aborted."""
        while self._submitted:
            self.session.submit(self._submitted.popleft(), now)
        self.report()

    def connected(self, aggregator: int, connection: Connection) -> None:
        """A stream was opened, on which nothing was said yet but hello."""
        link = self.links[aggregator]
        link.connection, link.welcomed, link.said_goodbye = connection, False, False

    def send(self, aggregator: int, window: int) -> bool:
        """Sends the next message; returns False where there is none, or no way."""
        link = self.links[aggregator]
        if link.connection is None or not link.welcomed or len(link.connection.requests) >= window:
            return False
        if (parting := self.parting) is not None:
            if link.said_goodbye:
                return False
            message: bytes | None = encode(pb.ExchangeRequest(goodbye=parting))
            link.said_goodbye = True
        else:
            message = self.session.next_message(aggregator)
        if message is None and self.leaving and not link.said_goodbye:
            message = encode(pb.ExchangeRequest(goodbye=pb.Goodbye()))
            link.said_goodbye = True
        if message is None:
            return False
        if link.connection.aggregator_open:
            link.connection.requests.append(message)
        return True

    def receive(self, aggregator: int, now: float, random: Random, echoes: float) -> bool:
        """Takes the next message, or sees the end of the stream; returns False where there is neither."""
        link = self.links[aggregator]
        if link.connection is None:
            return False
        if not link.connection.responses:
            if link.connection.aggregator_open:
                return False
            self.lose(aggregator)
            return True
        data = link.connection.responses.popleft()
        if data == _FAREWELL:
            self.lose(aggregator)
            link.gone = True
            return True
        message, _ = decode(pb.ExchangeResponse, data)
        kind = message.WhichOneof("kind")
        if not link.welcomed:
            self._introduced(aggregator, message, now)
            return True
        for _ in range(2 if echoes and kind in _REPEATABLE and random.random() < echoes else 1):
            self.session.receive(aggregator, data, now)
        self.report()
        return True

    def lose(self, aggregator: int) -> None:
        """Gives a stream up."""
        link = self.links[aggregator]
        if link.connection is not None:
            link.connection.close_worker_end()
            link.connection = None
            link.gone = link.gone or (link.welcomed and self.session.failure is not None)

    def die(self) -> None:
        """The process is killed."""
        self.alive = False
        for aggregator in range(len(self.links)):
            self.lose(aggregator)

    def expire(self, seconds: float, now: float) -> None:
        """Gives up what has waited for longer than this."""
        self.session.expire(seconds, now)
        self.report()

    def report(self) -> None:
        """Tells the program what has ended."""
        finished, self.session.finished = self.session.finished, []
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

    def _introduced(self, aggregator: int, message: pb.ExchangeResponse, now: float) -> None:
        link = self.links[aggregator]
        match message.WhichOneof("kind"):
            case "welcome":
                link.welcomed = True
                if link.resuming:
                    self.session.reconnected(aggregator)
                link.resuming = True
            case "fault" if self._waits_for_rank(message.fault, now):
                # As psum.client.joining: nowhere, and then everywhere anew.
                for other in range(len(self.links)):
                    self.lose(other)
                self.links = [_Link() for _ in self.links]
                self._incarnation = next(_numbers)
            case "fault":
                self.session.fail(FaultError.from_message(message.fault))
                # Who was never in does without the others too.
                for other in (aggregator,) if self.joined else range(len(self.links)):
                    self.lose(other)
                    self.links[other].gone = True
                self.report()
            case kind:
                raise AssertionError(f"hello was answered with {kind}")
