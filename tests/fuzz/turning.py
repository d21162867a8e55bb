"""Workers of a real aggregator that turn to the data connection in wrong ways."""

import asyncio
import contextlib
from random import Random
from typing import Any, Final

import grpc.aio
from google.protobuf.message import DecodeError

from psum.planes import DataConnection
from psum.v1 import aggregator_pb2 as pb
from psum.wire import encode
from psum.wire.errors import ProtocolError
from tests.fuzz.harness import ViolationError

#: What they do. Only the first is right.
HOW: Final = (
    "turns",
    "turns, and talks on both",
    "turns, and talks on the stream for a while",
    "turns, and is cut in a frame",
    "turns without waiting for the answer",
    "shows its secret twice",
    "turns after it has talked on the stream",
)

#: The worker's first message on the data connection.
_HERE: Final = encode(pb.ExchangeRequest(declare=pb.Declare()))

_BROKEN: Final = (grpc.aio.UsageError, grpc.aio.AioRpcError, asyncio.InvalidStateError)

#: How long an answer may take, also on a busy machine.
_PATIENCE_SECONDS: Final = 20.0


def offering(data: bytes) -> bytes:
    """Return a hello that also offers the plane direct, or bytes that are no hello as they are."""
    try:
        message = pb.ExchangeRequest.FromString(data)
    except DecodeError:
        return data
    if not message.HasField("hello"):
        return data
    message.hello.planes[:] = [pb.PLANE_DIRECT, pb.PLANE_INLINE]
    return message.SerializeToString()


class TurningWorker:
    """One stream with its data connection.

    Args:
        random: Generator of all decisions.
        call: The stream's call.
        host: The aggregator's host.
    """

    def __init__(self, random: Random, call: Any, host: str) -> None:
        self.call = call
        self.how = random.choice(HOW)
        self._random = random
        self._host = host
        self._port = 0
        self._secret = b""
        self._connection: DataConnection | None = None
        self._stays = random.randrange(1, 4) if "stream" in self.how else 0
        """How many messages it still sends on the stream."""
        self._cut_in = random.randrange(1, 6)
        """After how many messages it is cut, if it is."""

    @property
    def turned(self) -> bool:
        """Whether it has opened a data connection."""
        return self._connection is not None

    async def begin(self, hello: bytes) -> None:
        """Say hello, and turn to the data connection if the aggregator invites to one."""
        with contextlib.suppress(*_BROKEN):
            await self.call.write(hello)
            async with asyncio.timeout(_PATIENCE_SECONDS):
                data = await self.call.read()
            if data is grpc.aio.EOF:
                return
            welcome = pb.ExchangeResponse.FromString(data).welcome
            self._port, self._secret = welcome.data_port, welcome.data_secret
            if self._port and not self.how.startswith("turns after"):
                await self._turn()

    async def send(self, data: bytes) -> None:
        """Send a message on the stream or on the data connection."""
        with contextlib.suppress(*_BROKEN, ConnectionResetError):
            if self._stays or self._connection is None or ("both" in self.how and self._random.random() < 0.5):
                self._stays = max(0, self._stays - 1)
                await self.call.write(data)
                if self._port and self._connection is None and not self._stays:
                    await self._turn()
                return
            self._cut_in -= 1
            if self._cut_in == 0 and "cut" in self.how:
                # Only the begin of a frame is sent.
                frame = b"m" + len(data).to_bytes(4, "little") + data
                self._connection.send_secret(frame[: self._random.randrange(1, len(frame))])
                await asyncio.sleep(0.002)
                self._connection.close()
            elif data:
                await self._connection.send(data)

    def close(self) -> None:
        """End the data connection."""
        if self._connection is not None:
            self._connection.close()

    async def _turn(self) -> None:
        self._connection = await self._connect()
        self._connection.send_secret(self._secret)
        if "without waiting" not in self.how:
            await self._hear(self._connection)
        await self._connection.send(_HERE)
        if "twice" in self.how:
            second = await self._connect()
            try:
                second.send_secret(self._secret)
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await second.receive()
            except ConnectionResetError:
                return
            finally:
                second.close()
            raise ViolationError("the aggregator answered on a second data connection with one secret")

    async def _hear(self, connection: DataConnection) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                answer = pb.ExchangeResponse.FromString(bytes(await connection.receive()))
        except (ConnectionResetError, ProtocolError):
            # The stream has ended already.
            return
        if answer.WhichOneof("kind") != "taken":
            raise ViolationError(f"the aggregator says {answer.WhichOneof('kind')} first on a data connection")

    async def _connect(self) -> DataConnection:
        connection = DataConnection(1 << 20, keepalive=5)
        await asyncio.get_running_loop().create_connection(lambda: connection, self._host, self._port)
        return connection
