"""The stream to one aggregator: connecting, sending, receiving, leaving."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import grpc
import grpc.aio

from psum.client.core.session import Session
from psum.client.transport.connect_problem import ConnectProblem
from psum.client.transport.credentials import Credentials
from psum.client.transport.data_dialer import DataConnectionError, DialProspects, open_data_connection
from psum.client.transport.diagnosis import diagnose
from psum.client.transport.shared_memory import SharedMemory
from psum.client.transport.split_addresses import Member, watch_for_split
from psum.planes import DataConnection, SegmentError
from psum.runtime import first_completed, lacks_descriptors
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode, encode, grpc_options, sizes_beside
from psum.wire.errors import (
    AggregatorLostError,
    ConfigurationError,
    ConnectError,
    DeniedError,
    FaultError,
    ProtocolError,
)

_log = logging.getLogger(__name__)

_EXCHANGE: Final = "/psum.v1.AggregatorService/Exchange"

#: How long the reason for a broken stream may take to arrive.
_LAST_WORDS_SECONDS: Final = 2.0

#: What one connection takes of the system's file descriptors, and what gRPC needs besides for a moment.
_CONNECTION_DESCRIPTORS: Final = 2

#: What gRPC says where the other side's refusal overtook the hello, whose sending then failed: the reason is lost.
_NO_REASON: Final = "Internal error from Core"

#: What gRPC raises where a stream is broken.
_BROKEN: Final = (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError, ConnectionResetError)

_CHANNEL_OPTIONS: Final = (
    # Clients of one process are to have connections of their own, and to try again soon.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
)


#: A stream that breaks sooner after it was opened than this shows that opening the next one helps little.
_STEADY_SECONDS: Final = 1.0


class AggregatorConnection:
    """One worker's stream to one aggregator. To be used on the client's event loop.

    Args:
        index: The aggregator's place in the list.
        address: Its address.
        session: What gives the messages to send and takes those received.
        credentials: What to show to the aggregator, and to ask of it.
        keepalive: Seconds of silence after which the aggregator is probed.
        hello: Makes the introduction to an aggregator, given its place and whether this worker was in the job before.
        plane: What the settings say of it.
        share: Makes memory to share with the aggregator, None where none is to be shared.
        settle: Called after messages were received: reports what has finished, and wakes the senders.
    """

    def __init__(
        self,
        index: int,
        address: str,
        session: Session,
        *,
        credentials: Credentials,
        keepalive: float,
        hello: Callable[[int, bool], pb.Hello],
        plane: str,
        share: Callable[[], SharedMemory | None],
        settle: Callable[[], None],
    ) -> None:
        self.address = address
        self.welcome: pb.Welcome | None = None
        """What the aggregator answered to hello, None before."""
        self.index = index
        self._session = session
        self._credentials = credentials
        self._hello = hello
        self._plane = plane
        self._share = share
        self._shared: SharedMemory | None = None
        self._pipe: DataConnection | None = None
        self._prospects = DialProspects()
        """Of data connections to the aggregator process with the incarnation below."""
        self._met: int | None = None
        self._summed = False
        """Whether a sum has come since the stream was opened."""
        self._recalled = False
        """Whether the pipe was closed from here."""
        self._told_slower = ""
        """Why the stream is the only way, as the log says already."""
        self._sending = False
        """Whether a message has announced payloads that the pipe was not given yet."""
        self._keepalive = keepalive
        self._options = (*grpc_options(keepalive), *_CHANNEL_OPTIONS)
        self._settle = settle
        self._wake = asyncio.Event()
        self._leaving = False
        self._left = False
        """Whether the aggregator has let this worker go."""
        self._parting: pb.Goodbye | None = None
        """What is said next, before all that waits, and is the last."""
        self._running = False
        """Whether `run` sees to the stream."""
        self._silent = asyncio.Event()
        """Set once there is no more to hear after `part`."""
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
            ConnectError: It could not be reached in time, or one side does not trust the other.
            FaultError: It refused this worker.
            ConfigurationError: A file for TLS or the token's cannot be used.
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
        self._running = True
        try:
            await self._run(patience)
        finally:
            self._running = False
            self._silent.set()

    async def _run(self, patience: float) -> None:
        pauses = backoff()
        while not self._left:
            began = time.monotonic()
            cause = await self._converse()
            if self._left or self._parting is not None or self._session.failure is not None:
                return
            lost = time.monotonic()
            _log.warning(
                "rank %d lost its connection to aggregator %s (%s); connecting again for up to %g s",
                self._session.rank,
                self.address,
                cause,
                patience,
            )
            self._judge_pipe()
            await self.abandon()
            if lost - began < _STEADY_SECONDS:
                # As behind a proxy that takes no large messages: each stream can be opened, and ends with the first.
                await asyncio.sleep(next(pauses))
            else:
                pauses = backoff()
            try:
                await self._open(patience, resuming=True)
            except _OutOfPatience as error:
                raise AggregatorLostError(
                    f"rank {self._session.rank} lost its connection to aggregator {self.address} ({cause}) and could"
                    f" not get it back within {patience:g} s (PSUM_RECONNECT_TIMEOUT): {error}."
                    " Look into the aggregator's log, then start the job again",
                    address=self.address,
                ) from None
            self._session.reconnected(self.index)
            _log.warning(
                "rank %d is connected to aggregator %s again, after %.1f s",
                self._session.rank,
                self.address,
                time.monotonic() - lost,
            )

    def recall(self) -> None:
        """Memory whose sending has begun is about to change: what is not sent of it is never to be."""
        if self._pipe is not None and (self._sending or not self._pipe.flushed):
            # Its stream ends with it; over the next one everything else is sent again.
            self._recalled = True
            self._pipe.close()

    async def leave(self) -> None:
        """Says goodbye once everything was sent; `run` ends when the aggregator has answered."""
        self._leaving = True
        self._wake.set()

    def part(self, goodbye: pb.Goodbye) -> None:
        """Says goodbye at once, before its work is done: nothing else is sent any more. `run` ends soon."""
        if self._parting is None:
            self._parting, self._leaving = goodbye, True
            self._wake.set()

    async def parted(self) -> None:
        """After `part`: waits until the aggregator has heard of it. Returns at once where there is no stream to it."""
        if self._running:
            await self._silent.wait()
        elif self._call is not None and self.welcome is not None:
            # It has joined here, and not everywhere yet.
            await self._converse()

    async def abandon(self) -> None:
        """Closes the connection, whatever is under way."""
        self._recalled = self._summed = False
        call, channel, shared, pipe = self._call, self._channel, self._shared, self._pipe
        self._call = self._channel = self._shared = self._pipe = None
        if pipe is not None:
            pipe.close()
        if shared is not None:
            shared.close()
        if call is not None:
            call.cancel()
        if channel is not None:
            await channel.close()

    async def _open(self, patience: float, *, resuming: bool = False) -> None:
        obstacle = ConnectProblem(time.monotonic())
        try:
            async with asyncio.timeout(patience):
                for pause in backoff():
                    try:
                        self._channel = self._credentials.aio_channel(self.address, self._options)
                        self._call = self._channel.stream_stream(_EXCHANGE)(metadata=self._credentials.metadata())
                        # Made anew each time: it says how old this process is now.
                        self.welcome = await self._introduce(self._hello(self.index, resuming))
                        break
                    except (grpc.RpcError, ProtocolError) as error:
                        await self._explain(error, obstacle, final=not resuming)
                    except (ConfigurationError, DeniedError) as error:
                        if not resuming:
                            raise
                        # Certificates and tokens may be renewed on one side before the other.
                        obstacle.refused(error)
                    await self.abandon()
                    if obstacle.should_say(time.monotonic()):
                        _log.warning(
                            "rank %d waits for aggregator %s, for up to %g s (%s): %s",
                            self._session.rank,
                            self.address,
                            patience,
                            "PSUM_RECONNECT_TIMEOUT" if resuming else "PSUM_CONNECT_TIMEOUT",
                            obstacle.cause,
                        )
                    await asyncio.sleep(pause)
        except TimeoutError:
            await self.abandon()
            raise _OutOfPatience(obstacle.cause or "nothing was heard from it") from None
        assert self.welcome is not None
        # With a deadline of its own: the aggregator is there, whatever becomes of this.
        self._pipe = await self._open_pipe(self.welcome)
        if self.welcome.plane == pb.PLANE_DIRECT and self._pipe is None:
            self.welcome.plane = pb.PLANE_INLINE
        self._session.use_plane(self.index, self._shared, piped=self.welcome.plane == pb.PLANE_DIRECT)

    async def _explain(self, error: BaseException, obstacle: ConnectProblem, *, final: bool) -> None:
        """Finds out why a connection could not be made.

        Args:
            error: What gRPC says.
            obstacle: What is known of the attempts before this one, and told what is found out.
            final: Whether it is to be an error that one side does not trust the other, or that this process may have no
                more file descriptors.

        Raises:
            ConnectError: That is so, and final.
        """
        if (lack := lacks_descriptors(_CONNECTION_DESCRIPTORS)) is not None:
            if final:
                await self.abandon()
                raise ConnectError(
                    f"rank {self._session.rank} cannot connect to aggregator {self.address}: {lack}",
                    address=self.address,
                )
            obstacle.diagnosed(lack, time.monotonic())
            return
        if obstacle.cause and isinstance(error, grpc.aio.AioRpcError) and error.details() == _NO_REASON:
            return
        if obstacle.should_diagnose(time.monotonic()):
            try:
                reason = await asyncio.to_thread(diagnose, self.address, self._credentials)
            except RuntimeError:
                # The interpreter is ending, and starts no more threads.
                reason = None
            if reason is not None and final:
                await self.abandon()
                raise ConnectError(
                    f"rank {self._session.rank} cannot talk to aggregator {self.address}: {reason}",
                    address=self.address,
                )
            obstacle.diagnosed(reason, time.monotonic())
        obstacle.failed(_describe(error))

    async def _introduce(self, hello: pb.Hello) -> pb.Welcome:
        request = pb.ExchangeRequest(hello=hello)
        self._shared = self._share()
        if self._shared is not None:
            request.hello.planes.insert(0, pb.PLANE_SHM)
            request.hello.segment, request.hello.staging = self._shared.name, self._shared.staging
        if self._plane in ("auto", "direct") and not self.address.startswith("unix:"):
            request.hello.planes.insert(-1, pb.PLANE_DIRECT)
        await self._call.write(encode(request))
        data = await self._call.read()
        if data is grpc.aio.EOF:
            raise ProtocolError(f"it ended the stream instead of answering ({await _status(self._call)})")
        message, _ = decode(pb.ExchangeResponse, data)
        match message.WhichOneof("kind"):
            case "welcome":
                if message.welcome.plane not in request.hello.planes:
                    raise ProtocolError(f"it chose plane {message.welcome.plane}, which it was not offered")
                self._agree(message.welcome)
                return message.welcome
            case "fault":
                await self.abandon()
                raise FaultError.from_message(message.fault)
            case kind:
                raise ProtocolError(f"it answered hello with {kind}")

    def _agree(self, welcome: pb.Welcome) -> None:
        """Shares memory with the aggregator where its welcome says so."""
        shared, self._shared = self._shared, None
        if shared is not None and welcome.plane == pb.PLANE_SHM:
            try:
                self._shared = shared.accepted(welcome.segment, staging=welcome.staging)
            except SegmentError as error:
                shared.close()
                self._share = lambda: None
                _log.warning(
                    "rank %d shares no memory with aggregator %s, which is slower: %s",
                    self._session.rank,
                    self.address,
                    error,
                )
                raise ProtocolError(f"it shares memory that cannot be used: {error}") from None
        elif shared is not None:
            shared.close()

    async def _open_pipe(self, welcome: pb.Welcome) -> DataConnection | None:
        """A data connection, None where there is none that works: then everything goes on the stream."""
        if welcome.incarnation != self._met:
            # Another process has another data port.
            self._met, self._prospects = welcome.incarnation, DialProspects()
        if not welcome.data_port or self.address.startswith("unix:"):
            return None
        if not self._prospects.worth_trying(time.monotonic()):
            return None
        try:
            pipe = await open_data_connection(self.address, welcome, self._credentials, self._keepalive)
        except DataConnectionError as error:
            self._prospects.failed(time.monotonic())
            self._tell_slower(f"it cannot open a data connection to port {welcome.data_port} there ({error})")
            return None
        self._prospects.opened(time.monotonic())
        return pipe

    def _judge_pipe(self) -> None:
        """The stream has ended: did the data connection break, and is it to be done without?"""
        pipe = self._pipe
        if pipe is None or self._recalled or (reason := pipe.broken) is None:
            return
        if self._prospects.broke(time.monotonic(), useful=self._summed):
            self._tell_slower(f"the data connection there breaks each time soon after it was opened ({reason})")

    def _tell_slower(self, reason: str) -> None:
        """Once for each reason: it is tried again now and then."""
        if reason != self._told_slower:
            self._told_slower = reason
            _log.warning(
                "rank %d has only the stream to aggregator %s, which is slower: %s",
                self._session.rank,
                self.address,
                reason,
            )

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
            sender.cancel()
            receiver.cancel()
            try:
                await asyncio.gather(sender, receiver, return_exceptions=True)
            finally:
                # What they raised holds this frame: see first_completed.
                del sender, receiver

    async def _send(self) -> None:
        said_goodbye = False
        while True:
            if self._parting is not None:
                await self._say(encode(pb.ExchangeRequest(goodbye=self._parting)))
                # Until the answer ends the conversation.
                await asyncio.Event().wait()
            message = self._session.next_message(self.index)
            if message is not None:
                await self._say(message, self._session.beside(self.index))
            elif self._leaving and not said_goodbye:
                # Not the last message: another rank may yet want a sum that only this one has.
                await self._say(encode(pb.ExchangeRequest(goodbye=pb.Goodbye())))
                said_goodbye = True
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _say(self, message: bytes, beside: Sequence[memoryview] = ()) -> None:
        if self._pipe is None:
            await self._call.write(message)
            return
        self._sending = bool(beside)
        await self._pipe.send(message, beside)
        self._sending = False

    async def _receive(self) -> str:
        """Hears the aggregator until the stream ends; returns why it did.

        Where there is a data connection, messages come there. The stream still says when it ends, and whatever was sent
        before the aggregator knew of the connection.
        """
        ways = [self._receive_stream()]
        if self._pipe is not None:
            ways.append(self._receive_pipe(self._pipe))
        if not self.address.startswith("unix:"):
            ways.append(self._watch_address())
        return await first_completed(*ways)

    async def _watch_address(self) -> str:
        """Raises an error where the address leads to several aggregators, which keeps the ranks apart."""
        hello, welcome = self._hello(self.index, False), self.welcome
        if hello.num_workers > 1 and welcome is not None:
            member = Member(hello.job, hello.rank, hello.num_workers)
            await watch_for_split(
                member, self.address, welcome.incarnation, credentials=self._credentials, waiting=self._waits
            )
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    def _waits(self) -> bool | None:
        """Whether the first sum of this stream is waited for; None: it has come, or the aggregator is about to end."""
        return None if self._summed else self._session.waits(self.index)

    async def _receive_stream(self) -> str:
        while (data := await self._call.read()) is not grpc.aio.EOF:
            if (end := self._hear(*decode(pb.ExchangeResponse, data))) is not None:
                return end
        return await _status(self._call)

    async def _receive_pipe(self, pipe: DataConnection) -> str:
        while True:
            message, payload = decode(pb.ExchangeResponse, await pipe.receive())
            beside = []
            if self._shared is None:
                beside = [await pipe.receive_payload(size) for size in sizes_beside(message.result.shards)]
            if (end := self._hear(message, payload, beside)) is not None:
                return end

    def _hear(self, message: pb.ExchangeResponse, payload: memoryview, beside: Sequence[memoryview] = ()) -> str | None:
        """The aggregator says something; returns why the stream ends with it, None where it does not."""
        if message.HasField("farewell"):
            if not self._leaving:
                # Whatever is under way here would wait for its last deadline.
                raise ProtocolError(f"aggregator {self.address} said farewell to a worker that has not left")
            self._left = True
            return "this worker has left"
        self._summed = self._summed or message.HasField("result")
        failed_before = self._session.failure is not None
        self._session.take(self.index, message, payload, beside, time.monotonic())
        self._settle()
        if self._session.failure is not None and not failed_before:
            # The aggregator's last word; it leaves it to this side to end the stream.
            return "the job has failed"
        return None


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
