"""A simulated worker process: a real session with simulated streams."""

import itertools
from collections import deque
from collections.abc import Sequence

from psum.client import (
    ElementType,
    ExcludedError,
    FaultError,
    Operation,
    TakenError,
    Ticket,
    WorkerLostError,
)
from psum.client.core.recorder import Recorder
from psum.client.core.session import Session
from psum.planes import WorkerPlane
from psum.v1 import aggregator_pb2 as pb
from psum.wire import PLACEMENT_BY_ROLES, PLACEMENT_BY_WEIGHTS, PROTOCOL_VERSION, encode
from simulation.client import RANK_TIMEOUT_SECONDS, Client, Connection
from simulation.groups import Relay
from simulation.plan import Plan

_numbers = itertools.count(1)


class WorkerProcess(Client):
    """One worker process from start to end.

    Args:
        plan: The history's plan.
        rank: Its rank.
        number: Number of processes that had this rank before.
        now: The current time in seconds.
        keep_sums: Whether it keeps sums to restore them after a restart of an aggregator.
        relay: The relay that it connects to, None if it connects to the owners.
        joining: Whether it joins a running job.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        rank: int,
        number: int,
        now: float,
        keep_sums: bool,
        relay: Relay | None,
        joining: bool = False,
    ) -> None:
        super().__init__(plan.processes_by(relay))
        self.rank = rank
        self.relay = relay
        self.number = number
        self.leaving = False
        self.retry_at = now
        """When it may connect."""
        self._ended_by: FaultError | None = None
        self._give_up: float | None = None
        """When it stops waiting for its rank, None before it has begun to wait."""
        self.plan = plan
        self._incarnation = next(_numbers)
        self._started_at = now
        self.joining = joining
        """Whether it waits to join a running job, or has no state yet."""
        self.generation = 0
        """How many processes of this rank were members before it, if it is a member."""
        self._submitted: deque[Ticket] = deque()
        self._route = plan.route_by(relay)
        self.session = Session(
            plan.addresses,
            None if plan.by_roles else plan.weights,
            rank=rank,
            num_workers=plan.workers,
            elastic=plan.elastic,
            relay=self._route.relay,
            partition_bytes=plan.partition_bytes,
            credit_bytes=plan.credit_bytes,
            keep_sums=keep_sums,
            hand_over=self._submitted.append,
            # Ranks with a recorder ask for timings; the others cover results without them.
            recorder=Recorder(0, 1 << 40) if rank % 2 else None,
        )
        # Every second process is beside an aggregator. One that replaces another may be elsewhere.
        self.session.beside = [rank % plan.aggregators] if (rank + number) % 2 else []
        if joining:
            self.session.joins.wait()
        self.session.is_member = relay is None or rank == relay.ranks[0]

    @property
    def incarnation(self) -> int:
        """The number by which aggregators know it again."""
        return self._incarnation

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
    def failed(self) -> bool:
        return self.session.failure is not None

    @property
    def found_nobody(self) -> bool:
        """Whether it was refused because no member could let it in for long: all may have waited for their relays."""
        return self.joining and "nobody can let another process in" in str(self.session.failure or "")

    def lose(self, process: int) -> None:
        connection = self.to(process)
        if connection.stream is not None and connection.resuming and not self.leaving:
            self.session.disconnected(self.connections.index(connection))
        super().lose(process)

    def may_connect(self, process: int, now: float) -> bool:
        return now >= self.retry_at and super().may_connect(process, now)

    def hello(self, index: int, now: float) -> pb.Hello:
        hello = pb.Hello(
            protocol_version=PROTOCOL_VERSION,
            job="model",
            rank=self.rank,
            num_workers=self.plan.workers,
            incarnation=self._incarnation,
            partition_bytes=self.plan.partition_bytes,
            aggregators=self.plan.addresses,
            weights=self.plan.weights,
            aggregator_index=index,
            planes=[pb.PLANE_INLINE],
            worker=f"process {self.number} of rank {self.rank}",
            age_seconds=now - self._started_at,
            resuming=self.connections[index].resuming,
            placement=PLACEMENT_BY_ROLES if self.plan.by_roles else PLACEMENT_BY_WEIGHTS,
            departures=self.session.departures(index),
            elastic=pb.Elastic(min=1, max=self.plan.ranks) if self.plan.elastic else None,
            losses=self.session.joins.losses(),
            joining=self.joining and not self.connections[index].resuming,
            generation=self.session.joins.generation,
            admissions=self.session.joins.admissions.for_hello(index),
        )
        self._route.describe(hello)
        return hello

    def reserve(
        self,
        name: str,
        elements: int,
        kind: ElementType,
        operation: Operation,
        priority: int,
        ranks: tuple[int, ...] = (),
    ) -> Ticket:
        """Reserve an operation."""
        # Only some ranks label the key.
        label = f"{operation.name} of {name}" if self.rank % 2 else ""
        return self.session.reserve(0, name, (elements,), kind, operation, priority, label, ranks)

    def submit(self, now: float) -> None:
        """Pass started and aborted operations to the session."""
        while self._submitted:
            self.session.submit(self._submitted.popleft(), now)
        self.report()

    def next_message(self, index: int, _now: float) -> bytes | None:
        connection = self.connections[index]
        if (early_goodbye := self.early_goodbye) is not None:
            if connection.said_goodbye:
                return None
            connection.said_goodbye = True
            return encode(pb.ExchangeRequest(goodbye=early_goodbye))
        message = self.session.next_message(index)
        if message is None and self.leaving and not connection.said_goodbye:
            connection.said_goodbye = True
            return encode(pb.ExchangeRequest(goodbye=pb.Goodbye()))
        return message

    def following(self, index: int) -> Sequence[memoryview]:
        return self.session.following(index)

    def use_plane(self, index: int, plane: WorkerPlane) -> None:
        self.session.use_plane(index, plane)

    def handle(
        self,
        index: int,
        message: pb.ExchangeResponse,
        payload: memoryview,
        following: Sequence[memoryview],
        now: float,
    ) -> None:
        self.session.handle(index, message, payload, following, now)
        self.report()

    def expire(self, seconds: float, now: float) -> None:
        """Fail operations that have waited for longer than `seconds`."""
        self.session.expire(seconds, now)
        self.report()

    def report(self) -> None:
        """Report ended operations to the program, whose memory is no longer sent from then on."""
        for index in self.session.take_recalled():
            connection = self.connections[index]
            if connection.stream is not None and connection.stream.to_aggregator:
                self.lose(connection.process)
        finished = list(self.session.finished)
        self.session.finished.clear()
        for ticket, error in finished:
            done, ticket.done = ticket.done, None
            ticket.source = ticket.target = None
            if done is not None:
                done(error)

    def answered(self, index: int, message: pb.ExchangeResponse, now: float) -> None:
        connection = self.connections[index]
        match message.WhichOneof("kind"):
            case "welcome":
                assert message.welcome.relays is bool(self._route.relay)
                connection.welcomed = True
                self.session.welcomed(message.welcome)
                if connection.resuming:
                    self.session.reconnected(index)
                connection.resuming = True
            case "fault" if self.leaving and message.fault.code == TakenError.code:
                # Its farewell was lost, and the job has ended there.
                self.lose(connection.process)
                connection.gone = True
            case "fault" if self._waits_for_rank(message.fault, now) or self._asks_again(message.fault):
                # As psum.client.joining: leave all aggregators, then join all of them anew.
                for other in self.connections:
                    self.lose(other.process)
                self.connections = [Connection(other.process) for other in self.connections]
                self._incarnation = next(_numbers)
                self.session.joins.ask()
            case "fault":
                self.session.fail(FaultError.from_message(message.fault))
                # A worker that never joined the job gives up the other aggregators too.
                for other in (connection,) if self.joined else self.connections:
                    self.lose(other.process)
                    other.gone = True
                self.report()
            case kind:
                raise AssertionError(f"hello was answered with {kind}")

    def _asks_again(self, fault: pb.Fault) -> bool:
        """Whether it asks to join as another process, because it was lost before it was let in everywhere."""
        return self.joining and not self.joined and fault.code == ExcludedError.code

    def _waits_for_rank(self, fault: pb.Fault, now: float) -> bool:
        if self.joined or fault.code != TakenError.code:
            return False
        if self._give_up is None:
            self._give_up = now + RANK_TIMEOUT_SECONDS
        self.retry_at = now + 1.0
        return now < self._give_up
