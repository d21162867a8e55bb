"""The stream to one aggregator: connecting, sending, receiving, leaving."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc
import grpc.aio

from psum.client._session import Session
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode, encode, grpc_options
from psum.wire.errors import AggregatorLostError, ConnectError, FaultError, ProtocolError

_log = logging.getLogger(__name__)

_FAREWELL: Final = encode(pb.ExchangeResponse(farewell=pb.Farewell()))
_EXCHANGE: Final = "/psum.v1.AggregatorService/Exchange"

#: How long the reason for a broken stream may take to arrive.
_LAST_WORDS_SECONDS: Final = 2.0

#: What gRPC raises where a stream is broken.
_BROKEN: Final = (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError)

_CHANNEL_OPTIONS: Final = (
    # Clients of one process are to have connections of their own, and to try again soon.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
)


class Link:
    """One worker's stream to one aggregator. To be used on the client's event loop.

    Args:
        index: The aggregator's place in the list.
        address: Its address.
        session: What gives the messages to send and takes those received.
        keepalive: Seconds of silence after which the aggregator is probed.
        hello: Makes the introduction to an aggregator, given its place and whether this worker was in the job before.
        settle: Called after messages were received: reports what has finished, and wakes the senders.
    """

    def __init__(
        self,
        index: int,
        address: str,
        session: Session,
        *,
        keepalive: float,
        hello: Callable[[int, bool], pb.Hello],
        settle: Callable[[], None],
    ) -> None:
        self.address = address
        self.welcome: pb.Welcome | None = None
        """What the aggregator answered to hello, None before."""
        self._index = index
        self._session = session
        self._hello = hello
        self._options = (*grpc_options(keepalive), *_CHANNEL_OPTIONS)
        self._settle = settle
        self._wake = asyncio.Event()
        self._leaving = False
        self._left = False
        """Whether the aggregator has let this worker go."""
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    async def connect(self, patience: float) -> None:
        """Opens the stream and introduces this worker, trying again while the aggregator is not up.

        Args:
            patience: Seconds to try for.

        Raises:
            ConnectError: It could not be reached in time.
            FaultError: It refused this worker.
        """
        try:
            await self._open(patience)
        except _OutOfPatience as error:
            raise ConnectError(
                f"rank {self._session.rank} could not join the job at aggregator {self.address} within {patience:g} s"
                f" (PSUM_CONNECT_TIMEOUT): {error}. Is it running, and is the address right?",
                address=self.address,
            ) from None

    async def run(self, patience: float) -> None:
        """Sends and receives until `leave` is done, over a new stream wherever the old one broke.

        Args:
            patience: Seconds to try for when the aggregator went away.

        Raises:
            PsumError: It did not come back, refused this worker, or did not keep to the protocol.
        """
        while not self._left:
            cause = await self._converse()
            if self._left or self._session.failure is not None:
                return
            lost = time.monotonic()
            _log.warning(
                "rank %d lost its connection to aggregator %s (%s); connecting again for up to %g s",
                self._session.rank,
                self.address,
                cause,
                patience,
            )
            await self.abandon()
            try:
                await self._open(patience, resuming=True)
            except _OutOfPatience as error:
                raise AggregatorLostError(
                    f"rank {self._session.rank} lost its connection to aggregator {self.address} ({cause}) and could"
                    f" not get it back within {patience:g} s (PSUM_RECONNECT_TIMEOUT): {error}."
                    " Look into the aggregator's log, then start the job again",
                    address=self.address,
                ) from None
            self._session.reconnected(self._index)
            _log.warning(
                "rank %d is connected to aggregator %s again, after %.1f s",
                self._session.rank,
                self.address,
                time.monotonic() - lost,
            )

    async def leave(self) -> None:
        """Says goodbye once everything was sent; `run` ends when the aggregator has answered."""
        self._leaving = True
        self._wake.set()

    async def abandon(self) -> None:
        """Closes the connection, whatever is under way."""
        if self._call is not None:
            self._call.cancel()
        if self._channel is not None:
            await self._channel.close()
        self._call = self._channel = None

    async def _open(self, patience: float, *, resuming: bool = False) -> None:
        hello = self._hello(self._index, resuming)
        cause = "nothing was heard from it"
        try:
            async with asyncio.timeout(patience):
                for pause in backoff():
                    self._channel = grpc.aio.insecure_channel(self.address, options=self._options)
                    self._call = self._channel.stream_stream(_EXCHANGE)()
                    try:
                        self.welcome = await self._introduce(hello)
                        return
                    except grpc.RpcError as error:
                        cause = _describe(error)
                    except ProtocolError as error:
                        cause = str(error)
                    await self.abandon()
                    await asyncio.sleep(pause)
        except TimeoutError:
            await self.abandon()
            raise _OutOfPatience(cause) from None

    async def _introduce(self, hello: pb.Hello) -> pb.Welcome:
        await self._call.write(encode(pb.ExchangeRequest(hello=hello)))
        data = await self._call.read()
        if data is grpc.aio.EOF:
            raise ProtocolError(f"it ended the stream instead of answering ({await _status(self._call)})")
        message, _ = decode(pb.ExchangeResponse, data)
        match message.WhichOneof("kind"):
            case "welcome":
                if message.welcome.plane not in hello.planes:
                    raise ProtocolError(f"it chose plane {message.welcome.plane}, which it was not offered")
                return message.welcome
            case "fault":
                await self.abandon()
                raise FaultError.from_message(message.fault)
            case kind:
                raise ProtocolError(f"it answered hello with {kind}")

    async def _converse(self) -> str:
        """Sends and receives until the stream ends; returns why it did."""
        sender, receiver = asyncio.create_task(self._send()), asyncio.create_task(self._receive())
        try:
            await asyncio.wait((sender, receiver), return_when=asyncio.FIRST_COMPLETED)
            if sender.done() and not isinstance(sender.exception(), _BROKEN):
                sender.result()
            # What broke the sending may be explained by what is still to be received.
            async with asyncio.timeout(_LAST_WORDS_SECONDS if sender.done() else None):
                return await receiver
        except _BROKEN as error:
            return _describe(error)
        except TimeoutError:
            return _describe(sender.exception() or TimeoutError())
        finally:
            for task in (sender, receiver):
                task.cancel()
            await asyncio.gather(sender, receiver, return_exceptions=True)

    async def _send(self) -> None:
        said_goodbye = False
        while True:
            message = self._session.next_message(self._index)
            if message is not None:
                await self._call.write(message)
            elif self._leaving and not said_goodbye:
                # Not the last message: another rank may yet want a sum that only this one has.
                await self._call.write(encode(pb.ExchangeRequest(goodbye=pb.Goodbye())))
                said_goodbye = True
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _receive(self) -> str:
        while True:
            data = await self._call.read()
            if data is grpc.aio.EOF:
                return await _status(self._call)
            if data == _FAREWELL:
                if not self._leaving:
                    # Whatever is under way here would wait for its last deadline.
                    raise ProtocolError(f"aggregator {self.address} said farewell to a worker that has not left")
                self._left = True
                return "this worker has left"
            self._session.receive(self._index, data, time.monotonic())
            self._settle()


class _OutOfPatience(Exception):
    """No connection within the time allowed; the text is the last cause."""


def backoff() -> Iterator[float]:
    """Seconds to wait between attempts: short ones at first, about a second later, jittered so that workers spread."""
    pause = 0.05
    while True:
        yield pause * random.uniform(0.5, 1.5)
        pause = min(1.0, pause * 1.6)


def _describe(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__


async def _status(call: Any) -> str:
    """How a stream ended, as gRPC knows it."""
    code, details = await call.code(), await call.details()
    return f"{code.name}: {details}" if details else f"the stream was ended with {code.name}"
