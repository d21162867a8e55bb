"""The connection to one aggregator: one stream after another, until this worker has left."""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from psum.client.transport.beats import Beats, beat_seconds
from psum.client.transport.conversation import Conversation
from psum.client.transport.credentials import Credentials
from psum.client.transport.data_dialer import DataDialer
from psum.client.transport.opening import OutOfPatienceError, StreamOpener, backoff
from psum.client.transport.party import Party
from psum.client.transport.plane_offers import PlaneOffers
from psum.client.transport.split_addresses import Member, watch_for_split
from psum.client.transport.stream import Stream
from psum.planes import NAMES, usual_share
from psum.v1 import aggregator_pb2 as pb
from psum.wire import FAR_BATCH_BYTES
from psum.wire.errors import AggregatorLostError, ConnectError, FaultError, TakenError

_log = logging.getLogger(__name__)

#: A stream that breaks sooner than this shows that another one will hardly do better.
_STEADY_SECONDS: Final = 1.0


class AggregatorConnection:
    """The connection of a worker, or of a relay, to one aggregator. Used on one event loop.

    Args:
        index: The aggregator's position in the list.
        address: The aggregator's address.
        session: What makes the messages and takes the answers.
        credentials: What is shown to the aggregator, and asked of it.
        keepalive: Seconds of silence after which the aggregator is probed.
        hello: Makes the hello, given the aggregator's index and whether this worker was in the job before.
        planes: Makes the offers of planes.
        settle: Called after messages were taken: reports what has finished, and wakes the senders.
        beats: Whether to send empty messages when there is nothing else to send for long.
    """

    def __init__(
        self,
        index: int,
        address: str,
        session: Party,
        *,
        credentials: Credentials,
        keepalive: float,
        hello: Callable[[int, bool], pb.Hello],
        planes: PlaneOffers,
        settle: Callable[[], None],
        beats: bool = False,
    ) -> None:
        self.index = index
        self.address = address
        self.stream: Stream | None = None
        """The open stream, None while there is none."""
        self.away = asyncio.Event()
        """Set while a stream has broken and there is no other one."""
        self.plane_name = ""
        """How large payloads cross, as agreed on the last stream; empty before the first one."""
        self._session = session
        self._credentials = credentials
        self._hello = hello
        self._opener = StreamOpener(
            index, address, session.title, credentials=credentials, keepalive=keepalive, hello=hello, planes=planes
        )
        self._dialer = DataDialer(session.title, address, credentials, keepalive)
        self._settle = settle
        self._agreed_share: float | None = None
        """The connection's share of its link's bytes, once the ranks have agreed on weights."""
        self._wake = asyncio.Event()
        self._leaving = False
        self._parting: pb.Goodbye | None = None
        """The goodbye that goes ahead of everything that waits, and is the last message."""
        self._running = False
        """Whether `run` takes care of the stream."""
        self._silent = asyncio.Event()
        """Set when nothing more will come after `part`."""
        self._conversation: Conversation | None = None
        self._sends_beats = beats
        self._beats: Beats | None = None
        """What sends beats before a conversation does."""

    def wake(self) -> None:
        """Looks again whether there is something to send."""
        self._wake.set()

    async def connect(self, patience: float) -> None:
        """Opens the first stream, and tries again while the aggregator is not up.

        Args:
            patience: Seconds to try for.

        Raises:
            ConnectError: It could not be reached in time, or one side does not trust the other.
            FaultError: It refused this worker.
            ConfigurationError: A file for TLS or the token cannot be used.
        """
        try:
            await self._open(patience)
        except OutOfPatienceError as error:
            raise ConnectError(
                f"{self._session.title} could not join the job at aggregator {self.address} within {patience:g} s"
                f" (PSUM_CONNECT_TIMEOUT): {error}. Is it running, and is the address right?",
                address=self.address,
            ) from None

    async def run(self, patience: float) -> None:
        """Sends and receives until this worker has left, over a new stream whenever one breaks.

        It opens new streams also after everything has failed, until the aggregator knows that: one that was started
        again would otherwise wait for this worker, and in the end name it as the cause.

        Args:
            patience: Seconds to try for when the aggregator is gone.

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
        while True:
            # A variable: `abandon` may take the attribute away while the conversation ends.
            stream = self.stream
            assert stream is not None
            began = time.monotonic()
            conversation = await self._converse_on(stream)
            watchers = []
            if not self.address.startswith("unix:"):
                watchers.append(partial(self._watch_address, conversation, stream.welcome))
            cause = await conversation.run(*watchers)
            if conversation.left or conversation.failed:
                return
            lost = time.monotonic()
            self.away.set()
            _log.warning(
                "%s lost its connection to aggregator %s (%s); connecting again for up to %g s%s",
                self._session.title,
                self.address,
                cause,
                patience,
                ", to tell it that the job has ended" if self._is_over else "",
            )
            if (broken := stream.data_connection_broken) is not None and not conversation.recalled:
                self._dialer.broke(broken, useful=conversation.summed)
            self._session.disconnected(self.index)
            # The other connections may have something to say about it.
            self._settle()
            await self.abandon()
            if lost - began < _STEADY_SECONDS:
                # As behind a proxy that refuses large messages: each stream can be opened, and ends with the first one.
                await asyncio.sleep(next(pauses))
            else:
                pauses = backoff()
            try:
                await self._open(patience, resuming=True)
            except FaultError as error:
                # Either the aggregator knows that the job has failed, or the farewell of this worker was lost, and the
                # job has ended here. If this counted as a failure, it would end the job at the other aggregators too.
                if self._is_over or (self._leaving and isinstance(error, TakenError)):
                    return
                raise
            except OutOfPatienceError as error:
                if self._is_over:
                    _log.warning(
                        "%s could not tell aggregator %s that the job has ended", self._session.title, self.address
                    )
                    return
                raise AggregatorLostError(
                    f"{self._session.title} lost its connection to aggregator {self.address} ({cause}) and could"
                    f" not get it back within {patience:g} s (PSUM_RECONNECT_TIMEOUT): {error}."
                    " Look into the aggregator's log, then start the job again",
                    address=self.address,
                ) from None
            self.away.clear()
            self._session.reconnected(self.index)
            _log.warning(
                "%s is connected to aggregator %s again, after %.1f s",
                self._session.title,
                self.address,
                time.monotonic() - lost,
            )

    @property
    def _is_over(self) -> bool:
        """Whether nothing is left to do here but to say so: this worker has ended, or everything has failed."""
        return self._parting is not None or self._session.failure is not None

    def share_links(self, share: float) -> None:
        """Changes the connection's share of its link's bytes, from 0 to 1."""
        self._agreed_share = share
        if self.stream is not None and self.stream.data_connection is not None:
            self.stream.data_connection.share_links(share)

    def recall(self) -> None:
        """Stops sending memory of failed operations, which is about to change. This may end the stream."""
        if self._conversation is not None:
            self._conversation.recall()

    async def leave(self) -> None:
        """Says goodbye after everything was sent. `run` ends when the aggregator has answered."""
        self._leaving = True
        if self._conversation is not None:
            self._conversation.leaving = True
        self._wake.set()

    def part(self, goodbye: pb.Goodbye) -> None:
        """Says goodbye at once, before this worker's work is done. Nothing else is sent.

        `run` ends when the aggregator has heard of it, or cannot be reached within the patience.
        """
        if self._parting is None:
            self._parting, self._leaving = goodbye, True
            if self._conversation is not None:
                self._conversation.parting, self._conversation.leaving = goodbye, True
            self._wake.set()

    async def parted(self) -> None:
        """Waits until the aggregator has heard of `part`. Returns at once if there is no stream to it."""
        if self._running:
            await self._silent.wait()
        elif self.stream is not None:
            # This worker has joined here, but not at every aggregator.
            await (await self._converse_on(self.stream)).run()

    async def abandon(self) -> None:
        """Closes the stream at once."""
        stream, self.stream, self._conversation = self.stream, None, None
        await self._stop_beats()
        if stream is not None:
            await stream.close()

    async def _converse_on(self, stream: Stream) -> Conversation:
        await self._stop_beats()
        beat = beat_seconds(stream.welcome) if self._sends_beats else None
        conversation = Conversation(
            self.index, self.address, stream, self._session, self._wake, self._settle, beat=beat
        )
        conversation.leaving, conversation.parting = self._leaving, self._parting
        self._conversation = conversation
        return conversation

    async def _stop_beats(self) -> None:
        beats, self._beats = self._beats, None
        if beats is not None:
            await beats.stop()

    async def _open(self, patience: float, *, resuming: bool = False) -> None:
        self.stream = stream = await self._opener.open(patience, resuming=resuming)
        if self._sends_beats and (beat := beat_seconds(stream.welcome)) is not None:
            self._beats = Beats(stream, beat)
        # Beyond the patience, with a deadline of its own: the aggregator is there in any case.
        stream.data_connection = await self._dialer.open(stream.welcome)
        if stream.data_connection is not None:
            stream.data_connection.share_links(self._agreed_share or usual_share(self._part()))
            if stream.plane.payloads_follow and stream.data_connection.far:
                stream.plane.batch_bytes = FAR_BATCH_BYTES
        if stream.plane.payloads_follow and stream.data_connection is None:
            stream.use_inline()
        self.plane_name = NAMES[stream.plane.kind]
        self._session.use_plane(self.index, stream.plane)
        self._session.welcomed(stream.welcome)

    def _part(self) -> float:
        """Which part of all bytes the aggregator sums, from 0 to 1."""
        hello = self._hello(self.index, True)
        if hello.group_size:
            # A relay, which everything goes to.
            return 1.0
        weights = hello.weights or [1] * len(hello.aggregators)
        return weights[hello.aggregator_index] / sum(weights) if weights else 1.0

    async def _watch_address(self, conversation: Conversation, welcome: pb.Welcome) -> str:
        """Raises an error if the address leads to several aggregators, which would keep the ranks apart."""
        hello = self._hello(self.index, False)
        if hello.num_workers > 1:
            member = Member(hello.job, hello.rank, hello.num_workers)
            await watch_for_split(
                member,
                self.address,
                welcome.incarnation,
                credentials=self._credentials,
                waiting=lambda: conversation.waits,
            )
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")
