"""Opens streams to one aggregator: tries again while it is not up, and finds out why a stream cannot be opened."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import Final

import grpc
import grpc.aio

from psum.client.transport.connect_problem import ConnectProblem
from psum.client.transport.credentials import Credentials
from psum.client.transport.explanation import explain
from psum.client.transport.plane_offers import PlaneOffers
from psum.client.transport.stream import Stream
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode, encode, grpc_options
from psum.wire.errors import ConfigurationError, ConnectError, DeniedError, FaultError, ProtocolError

_log = logging.getLogger(__name__)

_CHANNEL_OPTIONS: Final = (
    # Several clients of one process get connections of their own, and try again soon.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
)


class OutOfPatienceError(Exception):
    """No stream could be opened within the time allowed; the text is the last cause."""


class StreamOpener:
    """Opens the streams to one aggregator.

    Args:
        index: The aggregator's position in the list.
        address: The aggregator's address.
        title: Who opens them, for errors, such as "rank 3".
        credentials: What is shown to the aggregator, and asked of it.
        keepalive: Seconds of silence after which the aggregator is probed.
        hello: Makes the hello, given the aggregator's index and whether this worker was in the job before.
        planes: Makes the offers.
    """

    def __init__(
        self,
        index: int,
        address: str,
        title: str,
        *,
        credentials: Credentials,
        keepalive: float,
        hello: Callable[[int, bool], pb.Hello],
        planes: PlaneOffers,
    ) -> None:
        self._index = index
        self._address = address
        self._title = title
        self._credentials = credentials
        self._options = (*grpc_options(keepalive), *_CHANNEL_OPTIONS)
        self._hello = hello
        self._planes = planes

    async def open(self, patience: float, *, resuming: bool) -> Stream:
        """A stream on which the aggregator has answered hello.

        Args:
            patience: Seconds to try for.
            resuming: Whether this worker was in the job before. Then a refusal may be temporary, and it tries again.

        Raises:
            OutOfPatienceError: The aggregator could not be reached in time.
            ConnectError: One side does not trust the other, or this process may open no more files. Not on resuming.
            FaultError: The aggregator refused this worker.
            ConfigurationError: A file for TLS or the token cannot be used. Not on resuming.
        """
        problem = ConnectProblem(time.monotonic())
        try:
            async with asyncio.timeout(patience) as deadline:
                for pause in backoff():
                    stream: Stream | None = None
                    try:
                        if deadline.when() is None:
                            # The stream broke on which this process waited to be let in.
                            deadline.reschedule(asyncio.get_running_loop().time() + patience)
                        channel = self._credentials.aio_channel(self._address, self._options)
                        stream = Stream(channel, self._credentials.metadata())
                        # Made for each attempt: it tells how old this process is.
                        await self._introduce(stream, self._hello(self._index, resuming), deadline)
                        opened, stream = stream, None
                        return opened
                    except (grpc.RpcError, ProtocolError) as error:
                        await self._explain(error, problem, final=not resuming)
                    except (ConfigurationError, ConnectError, DeniedError) as error:
                        if not resuming:
                            raise
                        # Certificates and tokens may be renewed on one side before the other, and versions too.
                        problem.refused(error)
                    finally:
                        if stream is not None:
                            await stream.close()
                    if problem.should_log(time.monotonic()):
                        _log.warning(
                            "%s waits for aggregator %s, for up to %g s (%s): %s",
                            self._title,
                            self._address,
                            patience,
                            "PSUM_RECONNECT_TIMEOUT" if resuming else "PSUM_CONNECT_TIMEOUT",
                            problem.cause,
                        )
                    await asyncio.sleep(pause)
        except TimeoutError:
            pass
        raise OutOfPatienceError(problem.cause or "nothing was heard from it")

    async def _introduce(self, stream: Stream, hello: pb.Hello, deadline: asyncio.Timeout) -> None:
        """Says hello, and takes the aggregator's answer.

        To a process that joins a running job, it comes when the members have let it in, however long that takes.
        """
        offers = self._planes.make(self._address)
        try:
            hello.planes[:] = [offer.kind for offer in offers]
            for offer in offers:
                offer.describe(hello)
            await stream.write(encode(pb.ExchangeRequest(hello=hello)))
            if hello.joining:
                await stream.ready()
                deadline.reschedule(None)
            message = await self._answer(stream)
            while hello.joining and message.WhichOneof("kind") == "candidates":
                message = await self._answer(stream)
            match message.WhichOneof("kind"):
                case "welcome" if hello.group_size and not message.welcome.relays:
                    raise ConnectError(
                        f"aggregator {self._address} does not sum for a group of {hello.group_size} ranks (PSUM_RELAY):"
                        " its version of psum has no relays. Upgrade it, or set PSUM_RELAY=off on all workers of the"
                        " group",
                        address=self._address,
                    )
                case "welcome":
                    stream.plane = self._planes.accepted(offers, self._address, message.welcome)
                    stream.welcome = message.welcome
                case "fault":
                    # A refusal concerns the whole job. If it named a key, a relay's workers would wait for its end.
                    message.fault.ClearField("id")
                    message.fault.ClearField("round")
                    raise FaultError.from_message(message.fault)
                case kind:
                    raise ProtocolError(f"it answered hello with {kind}")
        finally:
            for offer in offers:
                offer.close()

    async def _answer(self, stream: Stream) -> pb.ExchangeResponse:
        data = await stream.read()
        if data is None:
            raise ProtocolError(f"it ended the stream instead of answering ({await stream.status()})")
        message, _ = decode(pb.ExchangeResponse, data)
        return message

    async def _explain(self, error: BaseException, problem: ConnectProblem, *, final: bool) -> None:
        """Finds out why a stream could not be opened; see `explain`."""
        await explain(
            error,
            problem,
            final=final,
            title=self._title,
            address=self._address,
            credentials=self._credentials,
        )


def backoff() -> Iterator[float]:
    """Seconds to wait between attempts: short at first, later about one second, jittered so that workers spread out."""
    pause = 0.05
    while True:
        yield pause * random.uniform(0.5, 1.5)
        pause = min(1.0, pause * 1.6)
