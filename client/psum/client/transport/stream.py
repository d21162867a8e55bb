"""One stream to an aggregator, with everything that is opened for it and ends with it."""

import asyncio
from typing import Any, Final

import grpc
import grpc.aio

from psum.planes import DataConnection, InlineWorker, WorkerPlane
from psum.v1 import aggregator_pb2 as pb
from psum.wire import DATA_CONNECTION_BROKE

_EXCHANGE: Final = "/psum.v1.AggregatorService/Exchange"

#: What gRPC and data connections raise when a stream is broken.
BROKEN: Final = (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError, ConnectionResetError)


class Stream:
    """The gRPC channel and call, the plane, and the data connection if there is one.

    Args:
        channel: The channel, which this closes.
        metadata: What the call brings with it.
    """

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self.welcome = pb.Welcome()
        """What the aggregator answered to hello, empty before."""
        self.plane: WorkerPlane = InlineWorker()
        """How large payloads cross."""
        self.data_connection: DataConnection | None = None
        """Where messages travel if there is one; else they travel on the call."""
        self._told: str | None = None
        """Why the data connection broke, if the aggregator has said so."""
        self._channel: grpc.aio.Channel | None = channel
        self._call: Any = channel.stream_stream(_EXCHANGE)(metadata=metadata)

    async def ready(self) -> None:
        """Waits until the channel is connected."""
        if (channel := self._channel) is not None:
            await channel.channel_ready()

    async def write(self, message: bytes) -> None:
        """Sends a message on the call."""
        await self._open_call().write(message)

    async def read(self) -> bytes | None:
        """The next message on the call, None at its end."""
        try:
            data = await self._open_call().read()
        except grpc.aio.AioRpcError as error:
            if error.code().name == DATA_CONNECTION_BROKE:
                self._told = error.details()
            raise
        return None if data is grpc.aio.EOF else data

    @property
    def data_connection_broken(self) -> str | None:
        """Why the data connection broke, as this side has noticed or the aggregator has said; None if it did not."""
        if self.data_connection is None:
            return None
        return self.data_connection.broken or self._told

    async def status(self) -> str:
        """How the call ended, as gRPC knows it."""
        call = self._open_call()
        code, details = await call.code(), await call.details()
        return f"{code.name}: {details}" if details else f"the stream was ended with {code.name}"

    def use_inline(self) -> None:
        """Gives the plane up: payloads travel in messages."""
        self.plane.close()
        self.plane = InlineWorker()

    async def close(self) -> None:
        """Ends everything at once. The second call does nothing."""
        if self.data_connection is not None:
            self.data_connection.close()
        self.plane.close()
        # gRPC keeps the connection open as long as somebody refers to these, such as the traceback of an error.
        call, channel, self._call, self._channel = self._call, self._channel, None, None
        if call is not None:
            call.cancel()
        if channel is not None:
            await channel.close()

    def _open_call(self) -> Any:
        if self._call is None:
            raise ConnectionResetError("the stream was closed on this side")
        return self._call


def describe(error: BaseException) -> str:
    """Why a stream broke, for people."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
