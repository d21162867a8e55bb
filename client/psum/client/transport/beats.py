"""Signs of life from a worker of an elastic job, which is lost when its aggregator hears nothing for some seconds.

An empty message goes out when nothing else was sent for a while. It comes from the thread that sends everything else.
So it shows that this thread runs, which an answer to a gRPC probe would not.
"""

import asyncio
import contextlib
from typing import Final

from psum.client.transport.stream import BROKEN, Stream
from psum.v1 import aggregator_pb2 as pb
from psum.wire import encode

#: The message. It says nothing.
BEAT: Final = encode(pb.ExchangeRequest(declare=pb.Declare()))

#: The longest keepalive in elastic jobs, in seconds. After twice as long a worker notices that a connection is silent.
#: It must have another one before the aggregator counts it as lost, and must tell the others that it does not reach all
#: before they lose anybody.
ELASTIC_KEEPALIVE: Final = 1.5

#: How many beats there are in the time after which a silent worker is lost.
_BEATS: Final = 5


def beat_seconds(welcome: pb.Welcome) -> float | None:
    """The seconds without another message after which a beat is sent, None if the aggregator does not say."""
    return welcome.worker_timeout_seconds / _BEATS or None


class Beats:
    """Sends beats on a stream from its opening until somebody else sends on it.

    A worker may wait for minutes until it has joined at all aggregators, and for seconds until it knows whether there
    is a data connection.

    Args:
        stream: The stream. Nobody else sends on it before `stop` has returned.
        seconds: The time between beats.
    """

    def __init__(self, stream: Stream, seconds: float) -> None:
        self._stream = stream
        self._seconds = seconds
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Sends nothing more."""
        # gRPC would end the stream if this cancelled the sending of a message.
        self._stopping.set()
        await self._task

    async def _run(self) -> None:
        # Whoever sends next hears of a broken stream.
        with contextlib.suppress(*BROKEN):
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._seconds):
                        await self._stopping.wait()
                        return
                await self._stream.write(BEAT)
