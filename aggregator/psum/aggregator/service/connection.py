"""The connection to one worker: what is sent to it, and on what."""

import asyncio
from typing import Any, Final

from psum.aggregator.service.send_queue import SendQueue
from psum.planes import AggregatorPlane, DataConnection, InlineAggregator
from psum.v1 import aggregator_pb2 as pb
from psum.wire import encode

#: The last message on a stream before the aggregator talks on the data connection.
_LAST_HERE: Final = encode(pb.ExchangeResponse(taken=pb.Taken()))


class WorkerConnection:
    """A worker's stream, the plane and data connection that belong to it, and the queue of messages."""

    def __init__(self) -> None:
        self.plane: AggregatorPlane = InlineAggregator()
        """How large payloads cross."""
        self.descriptors = 0
        """How many file descriptors it has, or will have if the worker opens what it was offered."""
        self.data_connection: DataConnection | None = None
        """The worker's data connection once messages are sent there. It works both ways."""
        self._offered: DataConnection | None = None
        self._offer = asyncio.Event()
        self._upcoming: DataConnection | None = None
        """The data connection that works both ways, until the stream has said that it follows."""
        self.queue = SendQueue()
        self._sending = False
        """Whether a message has left the queue, and is not sent yet."""
        self._ended = False
        """Whether nothing is sent any more, and the worker ends the stream."""
        self.filled = asyncio.Event()
        """To be set after something was put into the queue."""
        self.closing = False
        """Whether the stream ends as soon as the queue is empty."""
        self.recalled = False
        """Whether the stream ends at once, for the worker to open another one: there is no last message to wait for."""
        self.room = asyncio.Event()
        """Set while the queue is not crowded, so that the worker may be heard."""
        self.room.set()

    def offer(self, connection: DataConnection) -> None:
        """Takes a data connection that the worker has opened. Whether it works both ways is not known yet."""
        self._offered = connection
        self._offer.set()

    async def offered(self) -> DataConnection:
        """The data connection that the worker has opened, as soon as it has."""
        await self._offer.wait()
        assert self._offered is not None
        return self._offered

    def use_data_connection(self) -> None:
        """Sends on the data connection from now on: the worker has sent its first message there."""
        if self._offered is not None:
            self._upcoming = self._offered
            self.plane.connected(self._offered)
            self.filled.set()

    def say(self, message: pb.ExchangeResponse) -> None:
        """Puts a message without payload into the queue, for the sender to send."""
        self.queue.put_control(message)
        self.filled.set()

    def finish(self, last: pb.ExchangeResponse | None = None) -> None:
        """Ends the stream as soon as the queue is empty. If there is a last message, results are not sent any more.

        The other messages are: without its welcome, a new worker would take the failure of a job for a refusal.
        """
        if last is not None:
            self.queue.clear_results()
            self.queue.put_control(last)
        self.closing = True
        self.filled.set()

    def abandon(self) -> None:
        """Ends the stream without sending what is in the queue."""
        self.queue.clear()
        self.finish()

    @property
    def busy(self) -> bool:
        """Whether messages wait to be sent, or one is being sent."""
        return bool(self.queue) or self._sending

    def end(self) -> bool:
        """Ends the data connection after what was sent on it. Nothing else is sent.

        Returns:
            Whether there is one. The worker then ends the stream when it has received everything.
        """
        if self.data_connection is None:
            return False
        self._ended = True
        self.data_connection.end()
        return True

    async def send(self, context: Any) -> None:
        """Sends what is in the queue, until the queue is empty and `closing` is set.

        Args:
            context: The stream's grpc.aio.ServicerContext, for what does not go over the data connection.

        Raises:
            ConnectionResetError: The data connection broke.
        """
        while True:
            if self._upcoming is not None:
                # What is sent there may be read before what was sent on the stream, which must be handled first.
                await context.write(_LAST_HERE)
                self.data_connection, self._upcoming = self._upcoming, None
            if self._ended or not self.queue:
                if self.closing:
                    return
                self.filled.clear()
                await self.filled.wait()
                continue
            message, following = self.queue.get(), self.queue.following
            if not self.queue.crowded:
                self.room.set()
            self._sending = True
            if self.data_connection is None:
                await context.write(message)
            else:
                await self.data_connection.send(message, following)
            self._sending = False

    def close(self) -> None:
        """Closes everything that belongs to the stream, which has ended."""
        self.plane.close()
        if self._offered is not None:
            self._offered.close()
