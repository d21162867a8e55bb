"""The near end of simulated streams to aggregator processes: what workers and the uplinks of relays have in common."""

import abc
from collections.abc import Sequence
from random import Random

from psum.planes import InlineWorker, WorkerPlane
from psum.planes.direct import DirectWorker
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode, encode, following_sizes
from simulation.frames import as_message, as_payload
from simulation.stream import Stream

#: How long a client waits for the end of another process with its rank.
RANK_TIMEOUT_SECONDS = 45.0

_FAREWELL = encode(pb.ExchangeResponse(farewell=pb.Farewell()))

#: Kinds of messages that a client must accept twice.
_REPEATABLE = ("result", "taken", "want", "losses", "candidates", "decision")


class Connection:
    """One connection to an aggregator process. Counterpart of psum.client.transport.connection.AggregatorConnection.

    Args:
        process: The number of the process.
    """

    def __init__(self, process: int) -> None:
        self.process = process
        self.stream: Stream | None = None
        self.welcomed = False
        """Whether the process answered hello on the current stream."""
        self.resuming = False
        """Whether it ever did."""
        self.reopened = False
        """Whether the client has joined anew, as another one."""
        self.said_goodbye = False
        self.gone = False
        """Whether the client opens no more streams on this connection."""


class Client(abc.ABC):
    """What opens streams to aggregator processes.

    Args:
        processes: The number of the process for each connection.
    """

    def __init__(self, processes: Sequence[int]) -> None:
        self.alive = True
        self.connections = [Connection(process) for process in processes]
        self._indexes = {process: index for index, process in enumerate(processes)}

    @property
    def joined(self) -> bool:
        """Whether it was accepted once on every connection."""
        return all(connection.resuming for connection in self.connections)

    @property
    def gone(self) -> bool:
        """Whether it has left on all connections, or was killed."""
        return not self.alive or all(connection.gone for connection in self.connections)

    def to(self, process: int) -> Connection:
        """Return the connection to a process."""
        return self.connections[self._indexes[process]]

    def may_connect(self, process: int, _now: float) -> bool:
        """Return whether it wants a new stream to a process now."""
        connection = self.to(process)
        return self.alive and connection.stream is None and not connection.gone

    def connected(self, process: int, stream: Stream, now: float) -> None:
        """Use a new stream, and say hello on it."""
        connection = self.to(process)
        stream.requests.append(encode(pb.ExchangeRequest(hello=self.hello(self.connections.index(connection), now))))
        connection.stream, connection.welcomed, connection.said_goodbye = stream, False, False

    def send(self, process: int, window: int, now: float) -> bool:
        """Send the next message or payload. Return False if there is none, or no stream can take it."""
        connection = self.to(process)
        stream, index = connection.stream, self.connections.index(connection)
        if stream is None or not connection.welcomed or len(stream.requests) >= window:
            return False
        if stream.to_aggregator:
            stream.to_aggregator.go_on()
            return True
        message = self.next_message(index, now)
        if message is None:
            return False
        stream.to_aggregator.send(message, self.following(index))
        return True

    def receive(self, process: int, now: float, random: Random, duplicate_rate: float) -> bool:
        """Receive the next message or payload, or notice the end of the stream. Return False if there is neither."""
        connection = self.to(process)
        stream = connection.stream
        if stream is None:
            return False
        if not stream.responses:
            if stream.aggregator_open:
                return False
            self.lose(process)
            return True
        stream.answer.append(stream.responses.popleft())
        message, payload = decode(pb.ExchangeResponse, data := as_message(stream.answer[0]))
        if len(stream.answer) <= len(sizes := following_sizes(message.result.shards)):
            return True
        following = list(map(as_payload, stream.answer[1:], sizes))
        stream.answer.clear()
        if data == _FAREWELL:
            self.lose(process)
            connection.gone = True
            self.released(now)
            return True
        index = self.connections.index(connection)
        if not connection.welcomed:
            if message.HasField("welcome"):
                self.use_plane(index, DirectWorker() if stream.direct else InlineWorker())
            self.answered(index, message, now)
            return True
        twice = message.WhichOneof("kind") in _REPEATABLE and duplicate_rate and random.random() < duplicate_rate
        for _ in range(2 if twice else 1):
            self.handle(index, message, payload, following, now)
        if message.HasField("fault") and not message.fault.HasField("id"):
            # The process knows that the job has failed.
            self.lose(process)
            connection.gone = True
            self.released(now)
        return True

    def lose(self, process: int) -> None:
        """Close the stream to a process."""
        connection = self.to(process)
        if connection.stream is not None:
            connection.stream.close_client_end()
            connection.stream = None

    def die(self) -> None:
        """End as if the process were killed."""
        self.alive = False
        for connection in self.connections:
            self.lose(connection.process)

    @property
    @abc.abstractmethod
    def failed(self) -> bool:
        """Whether it takes part in nothing any more."""

    @abc.abstractmethod
    def hello(self, index: int, now: float) -> pb.Hello:
        """Return the hello for a connection."""

    @abc.abstractmethod
    def next_message(self, index: int, now: float) -> bytes | None:
        """Return the next message on a connection, None if nothing may be sent now."""

    @abc.abstractmethod
    def following(self, index: int) -> Sequence[memoryview]:
        """Return the payloads that must follow the last message on a connection."""

    @abc.abstractmethod
    def use_plane(self, index: int, plane: WorkerPlane) -> None:
        """Use a plane for large payloads on a new stream."""

    @abc.abstractmethod
    def handle(
        self,
        index: int,
        message: pb.ExchangeResponse,
        payload: memoryview,
        following: Sequence[memoryview],
        now: float,
    ) -> None:
        """Handle a message on a connection, and the payloads that followed it."""

    @abc.abstractmethod
    def answered(self, index: int, message: pb.ExchangeResponse, now: float) -> None:
        """Handle the answer to hello."""

    def released(self, _now: float) -> None:
        """Handle a farewell."""
        return
