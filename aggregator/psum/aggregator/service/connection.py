"""The way to one connected worker."""

import asyncio
from typing import Any

from psum.aggregator.service.send_queue import SendQueue
from psum.planes import DataConnection, Segment
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import ProtocolError


class WorkerConnection:
    """Its outbox, its connections, and the memory that it shares."""

    def __init__(self) -> None:
        self.segment: Segment | None = None
        """The memory in which the worker places what it pushes, where it shares memory with this process."""
        self.staging = memoryview(b"")
        """More of its memory, which it pushes from where the values are, if it has any."""
        self.descriptors = 0
        """How many file descriptors it has, or may have when the worker opens what it was offered."""
        self.pipe: DataConnection | None = None
        """The worker's data connection, where it has one that works both ways."""
        self._offered: DataConnection | None = None
        self._offer = asyncio.Event()
        self.outbox = SendQueue()
        self.filled = asyncio.Event()
        self.closing = False
        """Whether the stream ends once the outbox is empty."""
        self.room = asyncio.Event()
        """Set while the worker may be heard, since its outbox is not crowded."""
        self.room.set()

    @property
    def plane(self) -> pb.Plane.ValueType:
        """How large payloads cross."""
        if self.segment is not None:
            return pb.PLANE_SHM
        return pb.PLANE_DIRECT if self.pipe is not None else pb.PLANE_INLINE

    def offer(self, pipe: DataConnection) -> None:
        """The worker has opened a data connection, which is not known yet to work both ways."""
        self._offered = pipe
        self._offer.set()

    async def offered(self) -> DataConnection:
        """The data connection that the worker has opened, once it has."""
        await self._offer.wait()
        assert self._offered is not None
        return self._offered

    def use_pipe(self) -> None:
        """The worker talks on its data connection: from now on it is talked to there."""
        self.pipe = self._offered

    async def send(self, context: Any) -> None:
        """Sends what is in the outbox until the line is closing and that is empty.

        Args:
            context: The stream's grpc.aio.ServicerContext, for what does not go over the data connection.

        Raises:
            ConnectionResetError: The data connection broke.
        """
        while True:
            if not self.outbox:
                if self.closing:
                    return
                self.filled.clear()
                await self.filled.wait()
                continue
            message, beside = self.outbox.take(), self.outbox.beside
            if not self.outbox.crowded:
                self.room.set()
            if self.pipe is None:
                await context.write(message)
            else:
                await self.pipe.send(message, beside)

    def close(self) -> None:
        """The stream has ended, and what belongs to it goes too."""
        if self.segment is not None:
            self.segment.close()
        self.staging = memoryview(b"")
        if self._offered is not None:
            self._offered.close()

    def placed(self, entry: ShardRound) -> memoryview:
        """What a worker has placed in the memory that it shares.

        Raises:
            ProtocolError: It shares not as much.
        """
        size = 0 if self.segment is None else self.segment.size
        memory, start = self.staging, entry.place - size
        if self.segment is not None and start < 0:
            memory, start = self.segment.view, entry.place
        if start + entry.placed > len(memory) or entry.length:
            raise ProtocolError(
                f"a shard of {entry.placed} bytes at {entry.place} of shared memory, and {entry.length} in the message;"
                f" this worker shares {size + len(self.staging)} bytes"
            )
        return memory[start : start + entry.placed]
