"""The moment at which a faulty aggregator turns from the stream to the data connection."""

import asyncio
import contextlib
from collections.abc import Iterable
from random import Random
from typing import Any, Final

from psum.planes import DataConnection
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode, encode
from psum.wire.errors import ProtocolError
from tests.fuzz.harness import ViolationError

#: The last message on the stream before the aggregator talks on the data connection.
_LAST_HERE: Final = encode(pb.ExchangeResponse(taken=pb.Taken()))

#: What it does. Only the first is right; after the second and the last one the client may go on too.
HOW: Final = (
    "says so first",
    "says so late",
    "says so on the data connection",
    "does not say so",
    "is cut in a frame",
    "talks on both",
)

#: Shorter payloads may be equal by chance.
_TELLING_BYTES: Final = 64


class Switch:
    """One stream to the aggregator, and the data connection that it may turn to.

    Args:
        random: Generator of all decisions.
        context: The stream's grpc.aio.ServicerContext.
        follows: Whether the welcome says that the stream will tell when the aggregator turns to the data connection.
    """

    def __init__(self, random: Random, context: Any, *, follows: bool) -> None:
        self.how = random.choice(HOW)
        self._random = random
        self._context = context
        self._follows = follows
        self._said = False
        self._early: list[bytes] = []
        """The payloads of results on the data connection that came before the stream had told of it."""

    async def turn(self, connection: DataConnection) -> None:
        """Turn to the data connection, on which the client's first message has come."""
        match self.how:
            case "says so late":
                asyncio.get_running_loop().call_later(0.02, lambda: asyncio.ensure_future(self._say()))
            case "says so on the data connection":
                await connection.send(_LAST_HERE)
            case "is cut in a frame":
                if self._random.random() < 0.5:
                    await self._say()
                # The client's end sees the begin of a message, or of its header.
                frame = b"m\xff\0\0\0" + bytes(40)
                connection.send_secret(frame[: self._random.randrange(1, len(frame))])
                await asyncio.sleep(0.005)
                connection.close()
            case "does not say so":
                pass
            case _:
                await self._say()

    async def send(self, connection: DataConnection, answer: bytes) -> None:
        """Send an answer on the data connection, or also on the stream."""
        if self.how == "talks on both" and self._random.random() < 0.5:
            await self._write(answer)
            return
        if self._follows and not self._said:
            self._early += _payloads(answer)
        await connection.send(answer)

    def check(self, arrays: Iterable[bytes]) -> None:
        """Check that nothing was taken that came before the stream had told of it, if the stream never did.

        Args:
            arrays: The contents of the client's arrays.

        Raises:
            ViolationError: Something was.
        """
        if self._said:
            return
        if any(payload in content for content in arrays for payload in self._early):
            raise ViolationError(f"the client took what came on the data connection of an aggregator that {self.how}")

    async def _say(self) -> None:
        # Before it is written: the client may be faster.
        self._said = True
        await self._write(_LAST_HERE)

    async def _write(self, data: bytes) -> None:
        # The client may have ended the stream. gRPC raises errors of several kinds for that, some of them its own.
        with contextlib.suppress(Exception):
            await self._context.write(data)


def _payloads(answer: bytes) -> list[bytes]:
    """Return the payload of a result, if it is long enough to be told from others."""
    try:
        _, payload = decode(pb.ExchangeResponse, answer)
    except ProtocolError:
        return []
    return [bytes(payload)] if len(payload) >= _TELLING_BYTES else []
