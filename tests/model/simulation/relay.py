"""The uplinks of a simulated relay: the real state machine of a relay with simulated streams to its owners."""

from collections.abc import Callable, Iterable, Sequence
from random import Random

from psum.aggregator.core.actions import Action, LeaveUplinks, PartUplinks, ReopenUplinks, UplinkAction
from psum.aggregator.relay.core.host_job import HostJob
from psum.planes import WorkerPlane
from psum.v1 import aggregator_pb2 as pb
from psum.wire import encode
from psum.wire.errors import FaultError, TakenError
from simulation.client import RANK_TIMEOUT_SECONDS, Client, Connection


class Uplinks(Client):
    """The streams of one relay for one job. Counterpart of the relay's shell.

    Args:
        job: The job of the relay's group.
        processes: The number of the process at the end of each uplink.
        perform: Carries out the job's actions.
        before: The uplinks of the relay's group before this one; None: there was none, or it is another relay's.
    """

    def __init__(
        self,
        job: HostJob,
        processes: Sequence[int],
        perform: Callable[[HostJob, Iterable[Action]], None],
        before: "Uplinks | None" = None,
    ) -> None:
        super().__init__(processes)
        self.job = job
        self._before = before if before is not None and before.parting else None
        """The uplinks of a group that has ended, while they say goodbye."""
        if before is not None and self._before is None:
            before.die()
        self._perform_actions = perform
        self._leaving = False
        self._retry_at = 0.0
        """When it may connect."""
        self._give_up: float | None = None
        """When it stops waiting for the end of another process with its ranks, None before it has begun to wait."""
        self._parting: pb.Goodbye | None = None
        self._asking: set[int] = set()
        """The connections on which it asks to join a running job."""

    def perform(self, action: UplinkAction) -> None:
        """Carry out an action about the uplinks, except for the first, for which they are made."""
        match action:
            case ReopenUplinks():
                for connection in self.connections:
                    self.lose(connection.process)
                    connection.resuming, connection.reopened = False, True
            case LeaveUplinks():
                self._leaving = True
            case PartUplinks(goodbye):
                self._parting = goodbye
                for index, connection in enumerate(self.connections):
                    # It has asked to join with a process that has ended. It takes that back.
                    if index in self._asking or not self.job.workers:
                        self.lose(connection.process)
                        connection.gone = True

    @property
    def parting(self) -> bool:
        """Whether it still has to say goodbye, because its group has ended."""
        return self._parting is not None and not self.gone

    def may_connect(self, process: int, now: float) -> bool:
        return now >= self._retry_at and super().may_connect(process, now)

    @property
    def failed(self) -> bool:
        return self.job.uplink.failure is not None

    def send(self, process: int, window: int, now: float) -> bool:
        before = self._before
        return (before is not None and before.send(process, window, now)) or super().send(process, window, now)

    def receive(self, process: int, now: float, random: Random, duplicate_rate: float) -> bool:
        before = self._before
        if before is not None and before.receive(process, now, random, duplicate_rate):
            return True
        return super().receive(process, now, random, duplicate_rate)

    def die(self) -> None:
        if self._before is not None:
            self._before.die()
        super().die()

    def lose(self, process: int) -> None:
        connection = self.to(process)
        if connection.stream is not None and connection.resuming and not self._leaving:
            self.job.uplink.disconnected(self.connections.index(connection))
        super().lose(process)

    def hello(self, index: int, _now: float) -> pb.Hello:
        hello = self.job.hello(index, self.connections[index].resuming)
        if hello.joining:
            self._asking.add(index)
        return hello

    def next_message(self, index: int, _now: float) -> bytes | None:
        connection = self.connections[index]
        if self._parting is not None:
            if connection.said_goodbye:
                return None
            connection.said_goodbye = True
            return encode(pb.ExchangeRequest(goodbye=self._parting))
        message = self.job.uplink.next_message(index)
        if message is None and self._leaving and not connection.said_goodbye:
            connection.said_goodbye = True
            return encode(pb.ExchangeRequest(goodbye=pb.Goodbye()))
        return message

    def following(self, index: int) -> Sequence[memoryview]:
        return self.job.uplink.following(index)

    def use_plane(self, index: int, plane: WorkerPlane) -> None:
        self.job.uplink.use_plane(index, plane)

    def handle(
        self,
        index: int,
        message: pb.ExchangeResponse,
        payload: memoryview,
        following: Sequence[memoryview],
        now: float,
    ) -> None:
        self.job.uplink.handle(index, message, payload, following, now)
        self._perform_actions(self.job, self.job.heard(now))

    def answered(self, index: int, message: pb.ExchangeResponse, now: float) -> None:
        connection = self.connections[index]
        match message.WhichOneof("kind"):
            case "welcome":
                connection.welcomed = True
                self._asking.discard(index)
                self.job.uplink.welcomed(message.welcome)
                if connection.resuming or connection.reopened:
                    self.job.uplink.reconnected(index)
                connection.resuming = True
                self.job.uplink.let_in(index)
                # The welcome of an elastic job has something for the group.
                self._perform_actions(self.job, self.job.heard(now))
            case "fault" if message.fault.code == TakenError.code and self._waits(now):
                self.lose(connection.process)
            case "fault":
                self.lose(connection.process)
                connection.gone = True
                self._perform_actions(self.job, self.job.unreachable(FaultError.from_message(message.fault), now))
            case kind:
                raise AssertionError(f"hello was answered with {kind}")

    def give_up(self, connection: Connection, failure: FaultError, now: float) -> None:
        """Stop trying to reach the process at the end of a connection."""
        connection.gone = True
        self._perform_actions(self.job, self.job.unreachable(failure, now))

    def _waits(self, now: float) -> bool:
        if self.failed:
            return False
        if self._give_up is None:
            self._give_up = now + RANK_TIMEOUT_SECONDS
        self._retry_at = now + 1.0
        return now < self._give_up

    def released(self, now: float) -> None:
        if all(connection.gone for connection in self.connections):
            self._perform_actions(self.job, self.job.parted(now))
