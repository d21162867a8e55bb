"""What is said on one stream to an aggregator, from welcome to its end."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from psum.client.transport.beats import BEAT
from psum.client.transport.party import Party
from psum.client.transport.pauses import Pauses
from psum.client.transport.stream import BROKEN, Stream, describe
from psum.planes import DataConnection
from psum.runtime import first_completed
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode, encode, following_sizes
from psum.wire.errors import ProtocolError

#: How long the reason for a broken stream may take to arrive.
_LAST_WORDS_SECONDS: Final = 2.0

#: How long messages on the data connection wait for what the aggregator has sent on the stream before.
_FOLLOWS_SECONDS: Final = 10.0

#: After so many beats without this process running, sums in shared memory may have changed.
_PAUSE_BEATS: Final = 2.5


class Conversation:
    """Sends what the session has to say, and hands the session what comes, until the stream ends.

    Args:
        index: The aggregator's position in the list.
        address: The aggregator's address, for errors.
        stream: The stream.
        session: What makes the messages and takes the answers.
        wake: Set when there may be something to send.
        settle: Called after a message was taken: reports what has finished, and wakes the senders.
        beat: The seconds without a message after which an empty one is sent; None: none is sent.
    """

    def __init__(
        self,
        index: int,
        address: str,
        stream: Stream,
        session: Party,
        wake: asyncio.Event,
        settle: Callable[[], None],
        *,
        beat: float | None = None,
    ) -> None:
        self.leaving = False
        """Whether this worker says goodbye as soon as everything was sent."""
        self.parting: pb.Goodbye | None = None
        """The goodbye that goes ahead of everything that waits, and is the last message; None if there is none."""
        self.left = False
        """Whether the aggregator has let this worker go."""
        self.failed = False
        """Whether the aggregator has said that the job has failed."""
        self.summed = False
        """Whether a sum has come."""
        self.recalled = False
        """Whether `recall` ended the stream."""
        self._index = index
        self._address = address
        self._stream = stream
        self._session = session
        self._wake = wake
        self._settle = settle
        self._beat = beat
        self._pauses: Pauses | None = None
        """Whether this process has run all the time, if it matters."""
        self._beat_due = False
        self._beat_timer: asyncio.TimerHandle | None = None
        self._written = 0.0
        """When the last message was sent, in the loop's time; only with `beat`."""
        self._sending = False
        """Whether payloads follow a message that the data connection has not been given yet."""
        self._follows = asyncio.Event()
        """Set when all is handled that the aggregator has sent before it talked on the data connection."""

    async def run(self, *watchers: Callable[[], Coroutine[Any, Any, str]]) -> str:
        """Sends and receives until the stream ends, or until one of the watchers does.

        Returns:
            Why the stream ended.

        Raises:
            ProtocolError: The aggregator did not keep to the protocol.
        """
        if self._beat is not None:
            self._note_beat(self._beat)
        if self._beat is not None and self._stream.plane.shares_sums:
            # Less than it takes until this worker is lost.
            self._pauses = Pauses(_PAUSE_BEATS * self._beat)
        sender, receiver = asyncio.create_task(self._send()), asyncio.create_task(self._receive(watchers))
        try:
            await asyncio.wait((sender, receiver), return_when=asyncio.FIRST_COMPLETED)
            if sender.done() and not isinstance(sender.exception(), BROKEN):
                sender.result()
            # The reason why sending broke may still arrive.
            async with asyncio.timeout(_LAST_WORDS_SECONDS if sender.done() else None):
                return await receiver
        except BROKEN as error:
            return describe(error)
        except TimeoutError:
            return describe(sender.exception() or TimeoutError())
        finally:
            if self._beat_timer is not None:
                self._beat_timer.cancel()
            if self._pauses is not None:
                self._pauses.stop()
            sender.cancel()
            receiver.cancel()
            try:
                await asyncio.gather(sender, receiver, return_exceptions=True)
            finally:
                # What they raised holds this frame: see first_completed.
                del sender, receiver

    def recall(self) -> None:
        """Ends the stream if memory of failed operations is still being sent, since it is about to change."""
        connection = self._stream.data_connection
        if connection is not None and (self._sending or not connection.flushed):
            # Everything else is sent again on the next stream.
            self.recalled = True
            connection.close()

    @property
    def waits(self) -> bool | None:
        """Whether this worker waits for the first sum of the stream; None: it has come, or the aggregator is ending."""
        return None if self.summed else self._session.waits(self._index)

    async def _send(self) -> None:
        said_goodbye = False
        while True:
            if self.parting is not None:
                await self._write(encode(pb.ExchangeRequest(goodbye=self.parting)))
                # The answer ends the conversation.
                await asyncio.Event().wait()
            message = self._session.next_message(self._index)
            if message is not None:
                await self._write(message, self._session.following(self._index))
            elif self.leaving and not said_goodbye:
                # Not the last message: another rank may still want a sum that only this rank has.
                await self._write(encode(pb.ExchangeRequest(goodbye=pb.Goodbye())))
                said_goodbye = True
            elif self._beat_due:
                self._beat_due = False
                await self._write(BEAT)
            else:
                self._wake.clear()
                await self._wake.wait()

    def _note_beat(self, beat: float) -> None:
        """Notes that a beat is due if nothing was sent for as long. A timer costs less than a limit for each wait."""
        loop = asyncio.get_running_loop()
        left = self._written + beat - loop.time()
        if left <= 0:
            self._beat_due = True
            self._wake.set()
            left = beat
        self._beat_timer = loop.call_later(left, self._note_beat, beat)

    async def _write(self, message: bytes, following: Sequence[memoryview] = ()) -> None:
        connection = self._stream.data_connection
        if self._beat is not None:
            self._written = asyncio.get_running_loop().time()
        if connection is None:
            await self._stream.write(message)
            return
        self._sending = bool(following)
        await connection.send(message, following)
        self._sending = False

    async def _receive(self, watchers: Sequence[Callable[[], Coroutine[Any, Any, str]]]) -> str:
        """Takes messages until the stream ends; returns why it ended.

        Messages come on the data connection if there is one. The call still tells when the stream ends, and brings what
        was sent before the aggregator knew of the data connection. That is handled first: losses must be known before
        results without the lost ranks, for example.
        """
        if not self._stream.welcome.data_follows:
            self._follows.set()
        receivers = [self._receive_on_call()]
        if self._stream.data_connection is not None:
            receivers.append(self._receive_on(self._stream.data_connection))
        return await first_completed(*receivers, *(watch() for watch in watchers))

    async def _receive_on_call(self) -> str:
        while (data := await self._stream.read()) is not None:
            message, payload = decode(pb.ExchangeResponse, data)
            if message.HasField("taken") and not message.taken.HasField("shards"):
                self._follows.set()
            elif (end := self._handle(message, payload)) is not None:
                return end
        return await self._stream.status()

    async def _receive_on(self, connection: DataConnection) -> str:
        payloads_follow = self._stream.plane.payloads_follow
        while True:
            message, payload = decode(pb.ExchangeResponse, await connection.receive())
            following = []
            if payloads_follow:
                following = [await connection.receive_payload(size) for size in following_sizes(message.result.shards)]
            if not self._follows.is_set():
                try:
                    await asyncio.wait_for(self._follows.wait(), _FOLLOWS_SECONDS)
                except TimeoutError:
                    return f"what it sent on the stream did not come within {_FOLLOWS_SECONDS:g} s"
            if (end := self._handle(message, payload, following)) is not None:
                return end

    def _handle(
        self, message: pb.ExchangeResponse, payload: memoryview, following: Sequence[memoryview] = ()
    ) -> str | None:
        """Handles one message; returns why the stream ends with it, None if it does not end."""
        if message.HasField("farewell"):
            if not self.leaving:
                # Otherwise what is under way here would wait for its last deadline.
                raise ProtocolError(f"aggregator {self._address} said farewell to a worker that has not left")
            self.left = True
            return "this worker has left"
        if self._pauses is not None and self._pauses.noticed and message.HasField("result"):
            return "this process did not run for a while, and sums in shared memory may have changed"
        self.summed = self.summed or message.HasField("result")
        self._session.handle(self._index, message, payload, following, time.monotonic())
        self._settle()
        if message.HasField("fault") and not message.fault.HasField("id"):
            # That was the aggregator's last message; it leaves it to this side to end the stream. This also holds where
            # the session had failed before, as when another aggregator was the first to tell.
            self.failed = True
            return "the job has failed"
        return None
