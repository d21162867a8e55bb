"""A data connection without a network: the fuzzer is its other end."""

import asyncio
from collections import deque
from collections.abc import Sequence
from random import Random
from typing import cast

from psum.aggregator.service.connection import WorkerConnection
from psum.planes import DataConnection
from psum.planes.direct import DirectAggregator
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, decode, encode, following_sizes, split, to_columns, to_rows
from psum.wire.errors import ProtocolError
from tests.fuzz.columns import lengths_of, well_formed
from tests.fuzz.following import moved_out
from tests.fuzz.harness import ViolationError
from tests.fuzz.streams import Attacker


class InMemoryData:
    """Stands in for psum.planes.DataConnection at an aggregator.

    Args:
        attacker: The stream that it belongs to.
        connection: The aggregator's state of this stream. It takes the data connection, on the plane direct.
    """

    far = False

    def __init__(self, attacker: Attacker, connection: WorkerConnection) -> None:
        self._attacker = attacker
        self._frames: deque[bytes | memoryview] = deque()
        self._filled = asyncio.Event()
        self._pushed: list[ShardRound] = []
        """The last contributions."""
        connection.plane = DirectAggregator()
        connection.offer(cast(DataConnection, self))

    def put(self, message: bytes, following: Sequence[bytes] = ()) -> None:
        """Send a message, and the payloads that follow it."""
        self._frames.append(message)
        self._frames.extend(map(memoryview, following))
        self._attacker.waiting_for_input.clear()
        self._filled.set()

    def put_moved(self, random: Random, message: pb.ExchangeRequest, payload: bytes, *, mistakes: bool) -> bytes:
        """Send a message. Contributions partly follow it, and some that were sent before come again.

        Args:
            random: Generator of all decisions.
            message: The message. One that is wrong by itself is sent as it is.
            payload: Its payload.
            mistakes: Whether other payloads may follow than are announced, and contributions to unknown keys come.

        Returns:
            The same message with all payloads in it.
        """
        columns = message.push.shards
        if not columns.ids or not well_formed(columns) or sum(lengths_of(columns)) != len(payload):
            self.put(data := encode(message, payload))
            return data
        message, payload = self._with_others(random, message, payload, unknown=mistakes and random.random() < 0.1)
        moved, inside, following = moved_out(random, message, payload)
        if mistakes and following and random.random() < 0.1:
            # The last one: those before it still are what was announced.
            following[-1:] = random.choice(([], [following[-1]] * 2, [following[-1] + b"x"]))
        self.put(encode(moved, inside), following)
        return encode(message, payload)

    def _with_others(
        self, random: Random, message: pb.ExchangeRequest, payload: bytes, *, unknown: bool
    ) -> tuple[pb.ExchangeRequest, bytes]:
        rows = to_rows(message.push.shards)
        entries = [(row, bytes(piece)) for row, piece in zip(rows, split(memoryview(payload), rows), strict=True)]
        # The aggregator still answers those, and counts none of them again.
        before = [row for row in self._pushed if row.round == rows[0].round]
        others = random.sample(before, min(len(before), random.randrange(3)))
        if unknown:
            others.append(rows[0]._replace(id=rows[0].id ^ 1))
        for row in others:
            entries.insert(random.randrange(len(entries) + 1), (row, random.randbytes(row.length)))
        self._pushed = [*self._pushed, *rows][-20:]
        changed = pb.ExchangeRequest(push=pb.Push(shards=to_columns([row for row, _ in entries])))
        return changed, b"".join(piece for _, piece in entries)

    async def send(self, message: bytes, payloads: Sequence[memoryview] = ()) -> None:
        """Receive an answer, which must announce what follows it."""
        answer, _ = decode(pb.ExchangeResponse, message)
        if following_sizes(answer.result.shards) != (sizes := list(map(len, payloads))):
            raise ViolationError(f"payloads of {sizes} bytes follow {answer}")
        await self._attacker.write(message)

    async def receive(self) -> memoryview:
        """Wait for the next message."""
        frame = await self._next()
        if isinstance(frame, memoryview):
            raise ProtocolError(f"a payload of {len(frame)} bytes that was not announced")
        return memoryview(frame)

    async def receive_payload(self, size: int) -> memoryview:
        """Wait for the next payload."""
        frame = await self._next()
        if isinstance(frame, bytes) or len(frame) != size:
            raise ProtocolError(f"a frame of {len(frame)} bytes where a payload of {size} was announced")
        return frame

    async def discard(self) -> None:
        """Ignore everything that comes."""
        while True:
            await self._next()

    def share_links(self, share: float) -> None:
        """Do nothing: there are no links."""

    def close(self) -> None:
        """Do nothing: the stream's end is enough."""

    async def _next(self) -> bytes | memoryview:
        while not self._frames:
            self._attacker.waiting_for_input.set()
            self._filled.clear()
            await self._filled.wait()
        return self._frames.popleft()
