"""A connection of its own for what a stream would carry: messages, and payloads from memory and into memory.

A message in gRPC costs ten times as much processor time as one here, and a large payload some copies more. Whoever
takes a message that announces payloads takes those next: they follow it in the order in which it names them.

On the wire are frames, each behind a letter that says what it is and its length. The side that connects first shows a
secret, without which nothing is read.
"""

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, cast

import numpy as np

from psum.wire.channel import MAX_MESSAGE_BYTES, MAX_PARTITION_BYTES
from psum.wire.errors import ProtocolError

SECRET_BYTES: Final = 32

_HEADER: Final = struct.Struct("<cI")
_MESSAGE: Final = b"m"
_PAYLOAD: Final = b"p"
_LIMITS: Final = {_MESSAGE: MAX_MESSAGE_BYTES, _PAYLOAD: MAX_PARTITION_BYTES}

#: What may wait to be handed to the kernel: an urgent payload is behind this much of others at most.
_WRITE_BUFFER_BYTES: Final = 256 << 10

#: What is read where it is not known yet how long the next frame is: several messages at once, and little of a payload,
#: since that part of it is copied.
_STAGE_BYTES: Final = 4 << 10

#: Without pacing: a loopback has no queue to spare. Pacing, as BBR does it, takes a quarter of the time there.
_LOOPBACK_CONGESTION_CONTROL: Final = b"reno"


class DataConnection(asyncio.BufferedProtocol):
    """One end of a connection. To be used on its event loop.

    Args:
        max_waiting_bytes: What nobody has taken yet, beyond which no more is read.
        admit: Given the secret that the other side shows first, says whether it may send more; None: it shows none.
        keepalive: Seconds of silence after which the other side is probed, and again that many for its answer, after
            which the connection breaks; six times as many for what it does not take.
    """

    def __init__(
        self, max_waiting_bytes: int, admit: Callable[[bytes], bool] | None = None, *, keepalive: float
    ) -> None:
        self.peer = "a stranger"
        """The other side's address, once there is a connection."""
        self._max_waiting_bytes = max_waiting_bytes
        self._admit = admit
        self._keepalive = keepalive
        self._transport: asyncio.Transport | None = None
        self._stage = memoryview(bytearray(_STAGE_BYTES))
        self._staged = 0
        """How much of the stage is filled."""
        self._kind = _MESSAGE
        self._frame: memoryview | None = None
        """The frame that is being received, None while its header is not here."""
        self._filled = 0
        """How much of it is here."""
        self._received: deque[tuple[bytes, memoryview]] = deque()
        self._waiting_bytes = 0
        self._paused = False
        self._error: Exception | None = None
        self._closed = False
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        address = transport.get_extra_info("peername")
        if address is None or self._closed:
            # The other side is gone already; or it was turned away while it shook hands for TLS.
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self.peer = str(address)
        # It takes options, though it is none of Python's sockets: no descriptor of its own is needed for them.
        connection = cast(socket.socket, transport.get_extra_info("socket"))
        # A connection that is broken by now takes no options; it is told soon enough.
        with contextlib.suppress(OSError):
            _probe_when_silent(connection, self._keepalive)
        if ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
            _do_not_pace(connection)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._stage[self._staged :] if self._frame is None else self._frame[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._error is not None:
            # It is being closed.
            return
        if self._frame is None:
            self._staged += nbytes
            try:
                self._take_apart()
            except ProtocolError as error:
                self._fail(error)
        else:
            self._filled += nbytes
            if self._filled == len(self._frame):
                frame, self._frame = self._frame, None
                self._hand_over(self._kind, frame)
        if self._waiting_bytes > self._max_waiting_bytes and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionResetError(f"the data connection broke: {exc or 'it was closed'}"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def receive(self) -> memoryview:
        """The next message.

        Raises:
            ProtocolError: A payload came that no message has announced.
            ConnectionResetError: The connection broke before it came.
        """
        kind, message = await self._next()
        if kind != _MESSAGE:
            raise ProtocolError(f"a payload of {len(message)} bytes that was not announced")
        return message

    async def receive_payload(self, size: int) -> memoryview:
        """The next payload, which must have this size.

        Raises:
            ProtocolError: It has not, or a message came instead.
            ConnectionResetError: The connection broke before it came.
        """
        kind, payload = await self._next()
        if kind != _PAYLOAD or len(payload) != size:
            what = "payload" if kind == _PAYLOAD else "message"
            raise ProtocolError(f"a {what} of {len(payload)} bytes where a payload of {size} was announced")
        return payload

    async def discard(self) -> None:
        """Leaves aside what comes, until the other side ends the connection."""
        with contextlib.suppress(ConnectionResetError):
            while True:
                await self._next()

    def show(self, secret: bytes) -> None:
        """Sends the secret that the other side asks for first.

        Raises:
            ConnectionResetError: The connection broke as soon as it was open.
        """
        if self._error is not None or self._closed or self._transport is None:
            raise ConnectionResetError(str(self._error or "the data connection is not open"))
        self._transport.write(secret)

    async def send(self, message: bytes, payloads: Sequence[memoryview] = ()) -> None:
        """Sends a message and the payloads that it announces, which must not change until they were received; waits
        while others are in the way.

        Raises:
            ConnectionResetError: The connection broke.
        """
        lead = _HEADER.pack(_MESSAGE, len(message)) + message
        for payload in payloads:
            await self._write(lead + _HEADER.pack(_PAYLOAD, len(payload)))
            # Not writelines, which in asyncio of Python 3.12 does not say when the buffer is full.
            self._transport.write(payload)  # type: ignore[union-attr]
            lead = b""
        if lead:
            await self._write(lead)

    @property
    def broken(self) -> str | None:
        """Why the connection has ended, None while it has not."""
        return None if self._error is None else str(self._error)

    @property
    def flushed(self) -> bool:
        """Whether all that was sent is in the kernel's hands, so that its memory may change."""
        return self._transport is None or not self._transport.get_write_buffer_size()

    def close(self) -> None:
        """Ends it at once, whatever is under way; where there is no connection yet, as soon as there is one."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    async def _write(self, data: bytes) -> None:
        while not self._writable.is_set():
            await self._writable.wait()
        if self._error is not None or self._transport is None:
            raise ConnectionResetError(str(self._error or "the data connection is not open"))
        self._transport.write(data)

    async def _next(self) -> tuple[bytes, memoryview]:
        while not self._received:
            if self._error is not None:
                # A new one each time: the traceback of one that is kept here would hold this, in a circle, and with it
                # all that those have who wait, such as shared memory.
                raise type(self._error)(*self._error.args)
            self._arrived.clear()
            await self._arrived.wait()
        kind, frame = self._received.popleft()
        self._waiting_bytes -= len(frame)
        if self._paused and self._waiting_bytes <= self._max_waiting_bytes and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return kind, frame

    def _take_apart(self) -> None:
        """Looks at what is in the stage: whole frames, and the beginning of one.

        Raises:
            ProtocolError: It is none of that, or the secret is not known.
        """
        position = 0
        if self._admit is not None:
            if self._staged < SECRET_BYTES:
                return
            position = SECRET_BYTES
            if not self._admit(bytes(self._stage[:SECRET_BYTES])):
                raise ProtocolError("a secret that is not known")
            self._admit = None
        while self._staged - position >= _HEADER.size:
            kind, size = _HEADER.unpack_from(self._stage, position)
            limit = _LIMITS.get(kind)
            if limit is None or not 0 < size <= limit:
                raise ProtocolError(f"a frame of kind {kind!r} and {size} bytes, which is none of psum's")
            position += _HEADER.size
            here = self._stage[position : min(position + size, self._staged)]
            position += len(here)
            if len(here) == size:
                self._hand_over(kind, memoryview(bytes(here)))
                continue
            # Memory that nobody has written to yet, hence without the cost of clearing it.
            self._kind, self._frame, self._filled = kind, np.empty(size, np.uint8).data, len(here)
            self._frame[: self._filled] = here
        rest = self._staged - position
        self._stage[:rest] = bytes(self._stage[position : self._staged])
        self._staged = rest

    def _hand_over(self, kind: bytes, frame: memoryview) -> None:
        self._received.append((kind, frame))
        self._waiting_bytes += len(frame)
        self._arrived.set()

    def _fail(self, error: Exception) -> None:
        # No circle: its traceback has the frames in which it was raised, and they have this.
        self._admit = None
        if self._error is None:
            self._error = error.with_traceback(None)
        self._arrived.set()
        self._writable.set()
        self.close()


def _probe_when_silent(connection: socket.socket, keepalive: float) -> None:
    # The kernel takes whole seconds up to some hours for the one, milliseconds of 31 bits for the other.
    seconds = max(1, min(round(keepalive), 32767))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1)
    # Where something is under way there are no probes. A process that is busy may leave it unread for a while; of a
    # host that is gone, the stream's own probes tell sooner.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 6000 * seconds)


def _do_not_pace(connection: socket.socket) -> None:
    # Where it cannot be had, the system's own does too.
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _LOOPBACK_CONGESTION_CONTROL)
