"""Streams without gRPC: contexts for the service's handler, driven by the fuzzer or by a real session."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from psum.aggregator.service.connection import WorkerConnection
from psum.client import ElementType, Operation, PsumError, Ticket
from psum.client.core.session import Session
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode, encode
from psum.wire.errors import ClosedError, FaultError
from tests.fuzz.harness import ViolationError


class AbortedStream(Exception):
    """The service refused a stream with a gRPC status."""


class Context:
    """A stand-in for grpc.aio.ServicerContext."""

    def peer(self) -> str:
        """Return the peer's address."""
        return "fuzz:1"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return no metadata."""
        return ()

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        """Abort the call."""
        raise AbortedStream(f"{code.name}: {details}")


class Attacker(Context):
    """A stream whose messages come from the fuzzer.

    Args:
        never_reads: Whether it never reads an answer.
    """

    def __init__(self, *, never_reads: bool = False) -> None:
        self.waiting_for_input = asyncio.Event()
        """Set while the service waits for a message."""
        self.connection: WorkerConnection | None = None
        """The service's state of this stream, once it has been read from."""
        self.last: bytes | None = None
        """The last answer."""
        self.never_reads = never_reads
        self._inbox: deque[Any] = deque()
        self._filled = asyncio.Event()

    def put(self, data: Any) -> None:
        """Add a message for the service to read, or EOF."""
        self._inbox.append(data)
        self.waiting_for_input.clear()
        self._filled.set()

    async def read(self) -> Any:
        """Return the next message, or EOF."""
        while not self._inbox:
            self.waiting_for_input.set()
            self._filled.clear()
            await self._filled.wait()
        return self._inbox.popleft()

    async def write(self, data: bytes) -> None:
        """Receive an answer, which must be a valid message whatever was sent."""
        if self.never_reads:
            await asyncio.Event().wait()
        message = pb.ExchangeResponse.FromString(data)
        if message.WhichOneof("kind") is None:
            raise ViolationError(f"the answer {data!r} has no kind")
        self.last = data
        if is_final(message):
            # gRPC's clients do the same. Otherwise the service would wait some seconds for it.
            self.put(grpc.aio.EOF)


class Worker(Context):
    """A stream whose other end is a real session that keeps to the protocol.

    Args:
        hello: The worker's hello message.
    """

    def __init__(self, hello: pb.Hello) -> None:
        self.left = False
        """Whether the aggregator answered its goodbye."""
        self._hello = hello
        self._said_hello = self._welcome = self._leaving = self._said_goodbye = self._over = False
        self._wake = asyncio.Event()
        self._submitted: list[Ticket] = []
        self.session = Session(
            tuple(hello.aggregators),
            (),
            rank=hello.rank,
            partition_bytes=hello.partition_bytes,
            credit_bytes=1 << 20,
            relay="the relay" if hello.group_size else "",
            hand_over=self._submitted.append,
        )
        self.outcomes: dict[Ticket, list[PsumError | None]] = {}
        self.targets: dict[Ticket, bytearray] = {}
        """The memory that receives each result."""
        self.pending = 0
        """Number of operations that have not ended."""

    def begin(
        self, name: str, element_type: ElementType, operation: Operation, value: bytearray
    ) -> tuple[Ticket, bytearray]:
        """Start an operation in place. Return its ticket and the memory that receives the result."""
        elements = len(value) // element_type.itemsize
        ticket = self.session.reserve(0, name, (elements,), element_type, operation, 0)
        target = memoryview(value)
        source = None if operation is Operation.BROADCAST and self.session.rank else target
        outcomes = self.outcomes[ticket] = []
        self.targets[ticket] = value
        self.pending += 1
        ticket.start(source, target, self._count(outcomes))
        self.session.submit(self._submitted.pop(), 0.0)
        self.settle()
        return ticket, value

    def leave(self) -> None:
        """Say goodbye after all other messages."""
        self._leaving = True
        self._wake.set()

    def connection_lost(self) -> None:
        """Fail the remaining operations after the end of the stream, as a client does that cannot reconnect."""
        self.session.fail(ClosedError("the stream has ended"))
        self.settle()

    async def read(self) -> Any:
        """Return the session's next message, or EOF."""
        while True:
            if self._over:
                return grpc.aio.EOF
            if not self._said_hello:
                self._said_hello = True
                return encode(pb.ExchangeRequest(hello=self._hello))
            if self._over:
                return grpc.aio.EOF
            if self._welcome and (message := self.session.next_message(0)) is not None:
                return message
            if self._leaving and not self._said_goodbye:
                self._said_goodbye = True
                return encode(pb.ExchangeRequest(goodbye=pb.Goodbye()))
            self._wake.clear()
            await self._wake.wait()

    async def write(self, data: bytes) -> None:
        """Pass a message of the aggregator to the session."""
        message, _ = decode(pb.ExchangeResponse, data)
        self._over = is_final(message)
        match message.WhichOneof("kind"):
            case "welcome":
                self._welcome = True
            case "farewell":
                self.left = True
            case _:
                self.session.receive(0, data, 0.0)
                self.session.check()
        self.settle()

    def settle(self) -> None:
        """Report ended operations."""
        report(take_finished(self.session))
        self._wake.set()

    @property
    def refused(self) -> bool:
        """Whether the aggregator reported the failure of the job."""
        return isinstance(self.session.failure, FaultError)

    def _count(self, outcomes: list[PsumError | None]) -> Callable[[PsumError | None], None]:
        def done(error: PsumError | None) -> None:
            outcomes.append(error)
            self.pending -= 1
            if len(outcomes) != 1:
                raise ViolationError(f"an operation ended more than once: {outcomes}")

        return done


def is_final(message: pb.ExchangeResponse) -> bool:
    """Return whether this is the service's last message on the stream."""
    kind = message.WhichOneof("kind")
    return kind == "farewell" or (kind == "fault" and not message.fault.HasField("id"))


def take_finished(session: Session) -> list[tuple[Ticket, PsumError | None]]:
    """Return the operations that have ended since the last call."""
    finished = list(session.finished)
    session.finished.clear()
    return finished


def report(finished: Iterable[tuple[Ticket, PsumError | None]]) -> None:
    """Report ended operations to their owners."""
    for ticket, error in finished:
        if error is not None and not isinstance(error, PsumError):
            raise ViolationError(f"{ticket!r} ended with {error!r}")
        assert ticket.done is not None
        ticket.done(error)
