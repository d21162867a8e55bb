"""Payloads on a connection of their own beside a stream, from memory and into memory without a copy in between.

The stream's messages say which payloads come, and in which order; a pipe carries nothing but them, each behind its
length. Whoever takes a message that announces a payload takes that next, so that all remains in the stream's order.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import Final, cast

import numpy as np

from psum.wire._channel import MAX_PARTITION_BYTES
from psum.wire.errors import ProtocolError

SECRET_BYTES: Final = 32

_LENGTH: Final = struct.Struct("<Q")

#: What may wait to be handed to the kernel: an urgent payload is behind this much of others at most.
_WRITE_BUFFER_BYTES: Final = 256 << 10


class Pipe(asyncio.BufferedProtocol):
    """One end of a connection. To be used on its event loop.

    Args:
        max_waiting_bytes: Payloads that nobody has taken yet, beyond which no more are read.
        admit: Given the secret that the other side shows first, says whether it may send more; None: it shows none.
    """

    def __init__(self, max_waiting_bytes: int, admit: Callable[[bytes], bool] | None = None) -> None:
        self.peer = "a stranger"
        """The other side's address, once there is a connection."""
        self._max_waiting_bytes = max_waiting_bytes
        self._admit = admit
        self._transport: asyncio.Transport | None = None
        self._header = bytearray(_LENGTH.size)
        self._part = memoryview(self._header)
        """What is being received: a length or a payload."""
        self._payload: memoryview | None = None
        self._filled = 0
        self._received: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._paused = False
        self._error: Exception | None = None
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self.peer = str(transport.get_extra_info("peername"))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._part[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled < len(self._part):
            return
        self._filled = 0
        if self._payload is None:
            [size] = _LENGTH.unpack(self._header)
            # Nothing longer than a secret is taken from somebody who has not shown one.
            limit = MAX_PARTITION_BYTES if self._admit is None else SECRET_BYTES
            if not 0 < size <= limit:
                self._fail(ProtocolError(f"a payload of {size} bytes; at most {limit} are taken"))
                return
            # Memory that nobody has written to yet, hence without the cost of clearing it.
            self._part = self._payload = np.empty(size, np.uint8).data
            return
        payload, self._payload, self._part = self._payload, None, memoryview(self._header)
        if self._admit is not None:
            if not self._admit(bytes(payload)):
                self._fail(ProtocolError("a secret that is not known"))
            self._admit = None
            return
        self._received.append(payload)
        self._waiting_bytes += len(payload)
        if self._waiting_bytes > self._max_waiting_bytes and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._arrived.set()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionResetError(f"the data connection broke: {exc or 'it was closed'}"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def receive(self, size: int) -> memoryview:
        """The next payload, which must have this size.

        Raises:
            ProtocolError: It has not.
            ConnectionResetError: The connection broke before it came.
        """
        while not self._received:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        payload = self._received.popleft()
        self._waiting_bytes -= len(payload)
        if self._paused and self._waiting_bytes <= self._max_waiting_bytes and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        if len(payload) != size:
            raise ProtocolError(f"a payload of {len(payload)} bytes where one of {size} was announced")
        return payload

    async def send(self, payload: memoryview) -> None:
        """Sends a payload, which must not change until it was received; waits while others are in the way.

        Raises:
            ConnectionResetError: The connection broke.
        """
        while not self._writable.is_set():
            await self._writable.wait()
        if self._error is not None or self._transport is None:
            raise ConnectionResetError(str(self._error or "the data connection is not open"))
        # Not writelines, which in asyncio of Python 3.12 does not say when the buffer is full.
        self._transport.write(_LENGTH.pack(len(payload)))
        self._transport.write(payload)

    @property
    def flushed(self) -> bool:
        """Whether all that was sent is in the kernel's hands, so that its memory may change."""
        return self._transport is None or not self._transport.get_write_buffer_size()

    def close(self) -> None:
        """Ends it at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._arrived.set()
        self._writable.set()
        self.close()
