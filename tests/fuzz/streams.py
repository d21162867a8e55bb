"""The two ends of a stream without gRPC: what the service is given as context, driven by a fuzzer or a real session."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from psum.client import ElementType, Operation, PsumError, Ticket
from psum.client.core.session import Session
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode, encode
from psum.wire.errors import ClosedError, FaultError
from tests.fuzz.cases import ViolationError


class AbortedStream(Exception):
    """The service refused a stream with a status."""


class Context:
    """What the service is told of a call, besides its messages."""

    def peer(self) -> str:
        """Where it comes from."""
        return "fuzz:1"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """What it brought with it."""
        return ()

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        """Refuses it."""
        raise AbortedStream(f"{code.name}: {details}")


class Attacker(Context):
    """A stream whose messages the fuzzer puts in.

    Args:
        deaf: Whether it never takes an answer.
    """

    def __init__(self, *, deaf: bool = False) -> None:
        self.hungry = asyncio.Event()
        """Set while the service waits for more."""
        self.last: bytes | None = None
        """The last answer."""
        self.deaf = deaf
        self._inbox: deque[Any] = deque()
        self._filled = asyncio.Event()

    def put(self, data: Any) -> None:
        """Adds what the service is to read."""
        self._inbox.append(data)
        self.hungry.clear()
        self._filled.set()

    async def read(self) -> Any:
        """The next message, or the end."""
        while not self._inbox:
            self.hungry.set()
            self._filled.clear()
            await self._filled.wait()
        return self._inbox.popleft()

    async def write(self, data: bytes) -> None:
        """Takes an answer, which must be a message whatever was sent."""
        if self.deaf:
            await asyncio.Event().wait()
        message = pb.ExchangeResponse.FromString(data)
        if message.WhichOneof("kind") is None:
            raise ViolationError(f"the answer {data!r} says nothing")
        self.last = data
        if is_last_word(message):
            # As gRPC's clients do; the service would wait some seconds for it.
            self.put(grpc.aio.EOF)


class Worker(Context):
    """A stream whose other end is a real session that keeps to the protocol.

    Args:
        hello: Its introduction.
    """

    def __init__(self, hello: pb.Hello) -> None:
        self.left = False
        """Whether the aggregator let it go."""
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
            hand_over=self._submitted.append,
        )
        self.outcomes: dict[Ticket, list[PsumError | None]] = {}
        self.pending = 0
        """Operations that have not ended."""

    def begin(
        self, name: str, element_type: ElementType, operation: Operation, value: bytearray
    ) -> tuple[Ticket, bytearray]:
        """Begins an operation in place; returns it with the memory that its result goes to."""
        elements = len(value) // element_type.itemsize
        ticket = self.session.reserve(0, name, (elements,), element_type, operation, 0)
        target = memoryview(value)
        source = None if operation is Operation.BROADCAST and self.session.rank else target
        outcomes = self.outcomes[ticket] = []
        self.pending += 1
        ticket.start(source, target, self._count(outcomes))
        self.session.submit(self._submitted.pop(), 0.0)
        self.settle()
        return ticket, value

    def leave(self) -> None:
        """Says goodbye after all else."""
        self._leaving = True
        self._wake.set()

    def broken(self) -> None:
        """The stream has ended: an operation that has not is failed, as a client would that cannot come back."""
        self.session.fail(ClosedError("the stream has ended"))
        self.settle()

    async def read(self) -> Any:
        """What the session sends next."""
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
        """Gives the session what the aggregator says."""
        message, _ = decode(pb.ExchangeResponse, data)
        self._over = is_last_word(message)
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
        """Reports what has ended."""
        report(take(self.session))
        self._wake.set()

    @property
    def refused(self) -> bool:
        """Whether the aggregator told it that its job has failed."""
        return isinstance(self.session.failure, FaultError)

    def _count(self, outcomes: list[PsumError | None]) -> Callable[[PsumError | None], None]:
        def done(error: PsumError | None) -> None:
            outcomes.append(error)
            self.pending -= 1
            if len(outcomes) != 1:
                raise ViolationError(f"an operation ended more than once: {outcomes}")

        return done


def is_last_word(message: pb.ExchangeResponse) -> bool:
    """Whether the service says nothing more after this."""
    kind = message.WhichOneof("kind")
    return kind == "farewell" or (kind == "fault" and not message.fault.HasField("id"))


def take(session: Session) -> list[tuple[Ticket, PsumError | None]]:
    """What has ended since the last call."""
    finished, session.finished = session.finished, []
    return finished


def report(finished: Iterable[tuple[Ticket, PsumError | None]]) -> None:
    """Tells the owners of operations that they have ended."""
    for ticket, error in finished:
        if error is not None and not isinstance(error, PsumError):
            raise ViolationError(f"{ticket!r} ended with {error!r}")
        assert ticket.done is not None
        ticket.done(error)
