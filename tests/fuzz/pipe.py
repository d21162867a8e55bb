"""Fuzzes a data connection: whatever bytes come, it gives out what was sent, or says what is amiss."""

import socket
from collections import Counter
from collections.abc import Coroutine
from random import Random
from typing import Any, Final
from unittest import mock

from psum.planes import SECRET_BYTES, DataConnection
from psum.wire import MAX_MESSAGE_BYTES
from psum.wire.errors import ProtocolError
from tests.fuzz.cases import ViolationError
from tests.fuzz.mutation import Mutator

_MAX_WAITING_BYTES: Final = 50_000

#: Of a message, and of each payload that it announces.
_Parcel = tuple[bytes, list[bytes]]


class PipeTarget:
    """One end of a connection whose other end is wrong now and then."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    async def start(self) -> None:
        """Nothing is to be done."""

    async def feed(self, random: Random) -> None:
        """A connection's life."""
        secret = random.randbytes(SECRET_BYTES)
        parcels = [
            (_bytes(random), [_bytes(random) for _ in range(random.randrange(3))]) for _ in range(random.randrange(5))
        ]
        sent = data = secret + b"".join(written(parcel) for parcel in parcels)
        if random.random() < 0.7:
            data = Mutator(random, ()).change_bytes(data)
        pipe = DataConnection(_MAX_WAITING_BYTES, lambda shown: shown == secret, keepalive=5)
        transport = attached(pipe)
        here = deliver(random, pipe, transport, data)
        if data[:SECRET_BYTES] != secret[: len(data)] and here:
            raise ViolationError(f"{here} were taken without the secret")
        if data == sent and (transport.abort.called or here != parcels):
            raise ViolationError(f"of {len(parcels)} parcels came {len(here)}")
        self.outcomes[f"pipe: {'ended' if transport.abort.called else 'whole' if data == sent else 'open'}"] += 1

    async def settle(self) -> None:
        """Nothing is left."""

    async def stop(self) -> None:
        """Nothing is to be done."""


def attached(pipe: DataConnection) -> mock.Mock:
    """Gives a pipe a transport that only remembers."""
    transport = mock.Mock()
    with socket.socket() as unconnected:
        transport.get_extra_info = {"peername": ("192.0.2.1", 5), "socket": unconnected}.get
        pipe.connection_made(transport)
    return transport


def written(parcel: _Parcel) -> bytes:
    """What a pipe sends of it."""
    pipe = DataConnection(1, keepalive=5)
    transport = attached(pipe)
    message, payloads = parcel
    taken(pipe.send(message, [memoryview(payload) for payload in payloads]))
    return b"".join(call.args[0] for call in transport.write.call_args_list)


def deliver(random: Random, pipe: DataConnection, transport: mock.Mock, data: bytes) -> list[_Parcel]:
    """Gives a pipe bytes as an event loop does, and takes out what is whole, now and then or at the end.

    Raises:
        ViolationError: It sets too much memory aside, or goes on reading though nobody takes anything.
    """
    start, paused = 0, False
    frames: list[tuple[bytes, bytes]] = []
    while start < len(data) and not transport.abort.called:
        room = pipe.get_buffer(-1)
        if not 0 < len(room) <= MAX_MESSAGE_BYTES:
            raise ViolationError(f"room for {len(room)} bytes")
        count = min(len(room), random.choice((1, 4, 100, 100_000)), len(data) - start)
        room[:count] = data[start : start + count]
        pipe.buffer_updated(count)
        start += count
        paused = transport.pause_reading.call_count > transport.resume_reading.call_count
        if pipe._waiting_bytes > _MAX_WAITING_BYTES and not (paused or transport.abort.called):
            raise ViolationError(f"{pipe._waiting_bytes} bytes wait, and it goes on reading")
        while pipe._received and (paused or random.random() < 0.5):
            kind, frame = taken(pipe._next())
            frames.append((kind, bytes(frame)))
    while pipe._received:
        kind, frame = taken(pipe._next())
        frames.append((kind, bytes(frame)))
    if transport.abort.called:
        try:
            pipe._next().send(None)
        except ProtocolError:
            return []
        raise ViolationError("it ended the connection, and does not say why")
    parcels: list[_Parcel] = []
    for kind, content in frames:
        if kind == b"m":
            parcels.append((content, []))
        elif parcels:
            parcels[-1][1].append(content)
    return parcels


def taken(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise ViolationError("it waits for what is here")


def _bytes(random: Random) -> bytes:
    return random.randbytes(random.choice((1, 5, 300, 4096, 20_000)))
