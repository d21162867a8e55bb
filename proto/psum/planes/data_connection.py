"""A TCP connection that carries a stream's messages and payloads, which go straight from and into memory.

A message costs a tenth of gRPC's processor time here, and a large payload saves some copies. Payloads follow the
message that announces them, in the order in which it names them.

Each frame on the wire begins with a letter for its kind and its length. The side that connects first shows a secret;
without it, nothing is read.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, cast

import numpy as np

from psum.planes.send_limit import SendLimit
from psum.planes.tcp import do_not_pace, limit_sending, on_this_host, probe_when_silent, progress_of
from psum.wire.channel import MAX_MESSAGE_BYTES, MAX_PARTITION_BYTES
from psum.wire.errors import ProtocolError

SECRET_BYTES: Final = 32

_HEADER: Final = struct.Struct("<cI")
_MESSAGE: Final = b"m"
_PAYLOAD: Final = b"p"
_LIMITS: Final = {_MESSAGE: MAX_MESSAGE_BYTES, _PAYLOAD: MAX_PARTITION_BYTES}

#: How many bytes may wait for the kernel. An urgent payload waits for at most this much of others.
_WRITE_BUFFER_BYTES: Final = 256 << 10

#: Round trips that take less stay within a data center.
_SHORT_WAY_SECONDS: Final = 0.002

#: How much is read while the length of the next frame is not known: enough for several messages, but little of a
#: payload, because that part of it is copied.
_STAGE_BYTES: Final = 4 << 10


class DataConnection(asyncio.BufferedProtocol):
    """One end of a connection. Used on its event loop.

    Args:
        max_waiting_bytes: How many received bytes may wait to be taken before reading pauses.
        admit: Decides by the secret that the other side shows first whether it may send more; None: it shows none.
        keepalive: Seconds of silence after which the other side is probed. The connection breaks if no answer comes
            within as many seconds, or if the other side acknowledges nothing for six times as long.
    """

    def __init__(
        self, max_waiting_bytes: int, admit: Callable[[bytes], bool] | None = None, *, keepalive: float
    ) -> None:
        self.peer = "a stranger"
        """The other side's address, for people."""
        self._max_waiting_bytes = max_waiting_bytes
        self._admit = admit
        self._keepalive = keepalive
        self._transport: asyncio.Transport | None = None
        self._local = False
        """Whether the other side is on this host."""
        self._limit: SendLimit | None = None
        """How many bytes may be under way; None: the kernel decides."""
        self._share: float | None = None
        """The share for which the limit is made."""
        self._limiting: asyncio.TimerHandle | None = None
        """Sets the limit anew, None while nothing is under way."""
        self._limited = False
        """Whether there is a limit already."""
        self._stage = memoryview(bytearray(_STAGE_BYTES))
        self._staged = 0
        """How many bytes of the stage are filled."""
        self._kind = _MESSAGE
        self._frame: memoryview | None = None
        """The frame that is being received, None until its header is here."""
        self._filled = 0
        """How many bytes of the frame are here."""
        self._received: deque[tuple[bytes, memoryview]] = deque()
        self._waiting_bytes = 0
        self._paused = False
        self._error: Exception | None = None
        self._closed = False
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        address = transport.get_extra_info("peername")
        if address is None or self._closed:
            # The other side is gone already, or was turned away during its TLS handshake.
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self.peer = str(address)
        # Not one of Python's sockets, but it takes options, and needs no file descriptor of its own.
        connection = cast(socket.socket, transport.get_extra_info("socket"))
        # A connection that is broken by now takes no options; connection_lost follows.
        with contextlib.suppress(OSError):
            probe_when_silent(connection, self._keepalive)
        self._local = on_this_host(address, transport.get_extra_info("sockname"))
        if self._local:
            do_not_pace(connection)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._stage[self._staged :] if self._frame is None else self._frame[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._error is not None:
            # The connection is being closed.
            return
        if self._frame is None:
            self._staged += nbytes
            try:
                self._split_frames()
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
        """Waits for the next message.

        Raises:
            ProtocolError: A payload came that no message announced.
            ConnectionResetError: The connection broke before it came.
        """
        kind, message = await self._next()
        if kind != _MESSAGE:
            raise ProtocolError(f"a payload of {len(message)} bytes that was not announced")
        return message

    async def receive_payload(self, size: int) -> memoryview:
        """Waits for the next payload, which must have this size.

        Raises:
            ProtocolError: It has another size, or a message came instead.
            ConnectionResetError: The connection broke before it came.
        """
        kind, payload = await self._next()
        if kind != _PAYLOAD or len(payload) != size:
            what = "payload" if kind == _PAYLOAD else "message"
            raise ProtocolError(f"a {what} of {len(payload)} bytes where a payload of {size} was announced")
        return payload

    async def discard(self) -> None:
        """Ignores everything that comes, until the other side ends the connection."""
        with contextlib.suppress(ConnectionResetError):
            while True:
                await self._next()

    def send_secret(self, secret: bytes) -> None:
        """Sends the secret that the other side expects first.

        Raises:
            ConnectionResetError: The connection broke as soon as it was open.
        """
        if self._error is not None or self._closed or self._transport is None:
            raise ConnectionResetError(str(self._error or "the data connection is not open"))
        self._transport.write(secret)

    @property
    def far(self) -> bool:
        """Whether the other side is on another host."""
        return not self._local

    def share_links(self, share: float) -> None:
        """Limits what is under way in the network, so that this connection and others share full links evenly.

        Does nothing if the other side is on this host.

        Args:
            share: This connection's share of the bytes that its link carries in one direction; see SendLimit.
        """
        if not self._local and share != self._share:
            self._share = share
            self._limit, self._limited = SendLimit(share), False
            if self._limiting is not None:
                self._limiting.cancel()
                self._limiting = None

    async def send(self, message: bytes, payloads: Sequence[memoryview] = ()) -> None:
        """Sends a message and the payloads that it announces. Waits while the write buffer is full.

        Args:
            message: The message.
            payloads: The payloads, in the order in which the message announces them. They must not change until the
                other side has received them.

        Raises:
            ConnectionResetError: The connection broke.
        """
        if payloads and self._limit is not None and self._limiting is None:
            self._begin_limiting(self._limit)
        lead = _HEADER.pack(_MESSAGE, len(message)) + message
        for payload in payloads:
            await self._write(lead + _HEADER.pack(_PAYLOAD, len(payload)))
            # Not writelines: in Python 3.12, asyncio's does not tell when the buffer is full.
            self._transport.write(payload)  # type: ignore[union-attr]
            lead = b""
        if lead:
            await self._write(lead)

    @property
    def broken(self) -> str | None:
        """Why the connection has ended, None if it has not."""
        return None if self._error is None else str(self._error)

    @property
    def flushed(self) -> bool:
        """Whether the kernel has taken everything that was sent, so that its memory may change."""
        return self._transport is None or not self._transport.get_write_buffer_size()

    def end(self) -> None:
        """Ends the connection after everything that was sent. The other side closes it when it has received that.

        Nothing may be sent any more.
        """
        if self._transport is None or self._closed or self._error is not None:
            self.close()
        elif self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            # TLS cannot end one direction alone. It waits for the other side too.
            self._transport.close()

    def close(self) -> None:
        """Ends the connection at once, or as soon as it is made. What the kernel has not taken yet is not sent."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    def _begin_limiting(self, limit: SendLimit) -> None:
        if (connection := self._socket()) is None:
            return
        loop = asyncio.get_running_loop()
        try:
            progress = progress_of(connection)
            if progress.shortest >= _SHORT_WAY_SECONDS:
                # On a long way, much must be under way, and its round trips vary by themselves.
                self._limit = None
                return
            limit.begin(loop.time(), progress)
            if not self._limited:
                limit_sending(connection, limit.size)
                do_not_pace(connection)
                self._limited = True
        except OSError:
            # It is broken, or the kernel is too old.
            self._limit = None
            return
        self._limiting = loop.call_later(limit.interval, self._set_limit, limit)

    def _set_limit(self, limit: SendLimit) -> None:
        self._limiting = None
        if self.flushed or (connection := self._socket()) is None:
            return
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            if limit.move(loop.time(), progress_of(connection)):
                limit_sending(connection, limit.size)
            self._limiting = loop.call_later(limit.interval, self._set_limit, limit)

    def _socket(self) -> socket.socket | None:
        """The socket while the connection is open. Not one of Python's, but it takes options."""
        if self._transport is None or self._closed or self._error is not None:
            return None
        return cast(socket.socket, self._transport.get_extra_info("socket"))

    async def _write(self, data: bytes) -> None:
        while not self._writable.is_set():
            await self._writable.wait()
        if self._error is not None or self._transport is None:
            raise ConnectionResetError(str(self._error or "the data connection is not open"))
        self._transport.write(data)

    async def _next(self) -> tuple[bytes, memoryview]:
        while not self._received:
            if self._error is not None:
                # A new exception each time. The traceback of one that is kept here would refer to this object in a
                # circle, and to everything that its waiters hold, such as shared memory.
                raise type(self._error)(*self._error.args)
            self._arrived.clear()
            await self._arrived.wait()
        kind, frame = self._received.popleft()
        self._waiting_bytes -= len(frame)
        if self._paused and self._waiting_bytes <= self._max_waiting_bytes and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return kind, frame

    def _split_frames(self) -> None:
        """Takes complete frames out of the stage, and begins an incomplete one.

        Raises:
            ProtocolError: The stage holds something else, or the secret is not known.
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
                raise ProtocolError(f"a frame of kind {kind!r} and {size} bytes, which psum does not know")
            position += _HEADER.size
            here = self._stage[position : min(position + size, self._staged)]
            position += len(here)
            if len(here) == size:
                self._hand_over(kind, memoryview(bytes(here)))
                continue
            # Uninitialized memory: clearing it would cost time.
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
        # Without its traceback, whose frames refer to this object in a circle.
        self._admit = None
        if self._error is None:
            self._error = error.with_traceback(None)
        self._arrived.set()
        self._writable.set()
        self.close()
