"""Fuzzes a data connection: for any bytes it must deliver what was sent, or raise ProtocolError."""

import socket
from collections import Counter
from collections.abc import Coroutine
from random import Random
from typing import Any, Final
from unittest import mock

from psum.planes import SECRET_BYTES, DataConnection
from psum.wire import MAX_MESSAGE_BYTES
from psum.wire.errors import ProtocolError
from tests.fuzz.harness import ViolationError
from tests.fuzz.mutation import Mutator

_MAX_WAITING_BYTES: Final = 50_000

#: A message, and the payloads that it announces.
_Transfer = tuple[bytes, list[bytes]]


class DataConnectionTarget:
    """The receiving end of a data connection whose sender may be faulty."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    async def start(self) -> None:
        """Do nothing: each input has its own connection."""

    async def feed(self, random: Random) -> None:
        """Feed one connection with transfers, in most cases with a mistake."""
        secret = random.randbytes(SECRET_BYTES)
        transfers = [
            (_bytes(random), [_bytes(random) for _ in range(random.randrange(3))]) for _ in range(random.randrange(5))
        ]
        sent = data = secret + b"".join(encoded(transfer) for transfer in transfers)
        if random.random() < 0.7:
            data = Mutator(random, ()).change_bytes(data)
        connection = DataConnection(_MAX_WAITING_BYTES, lambda shown: shown == secret, keepalive=5)
        transport = attached(connection)
        received = deliver(random, connection, transport, data)
        if data[:SECRET_BYTES] != secret[: len(data)] and received:
            raise ViolationError(f"{received} were accepted without the secret")
        if data == sent and (transport.abort.called or received != transfers):
            raise ViolationError(f"{len(received)} of {len(transfers)} transfers arrived")
        outcome = "ended" if transport.abort.called else "whole" if data == sent else "open"
        self.outcomes[f"data_connection: {outcome}"] += 1

    async def settle(self) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do nothing."""


def attached(connection: DataConnection) -> mock.Mock:
    """Attach a mock transport, which records calls, to a connection. Return it."""
    transport = mock.Mock()
    with socket.socket() as unconnected:
        transport.get_extra_info = {"peername": ("192.0.2.1", 5), "socket": unconnected}.get
        connection.connection_made(transport)
    return transport


def encoded(transfer: _Transfer) -> bytes:
    """Return the bytes that a connection sends for a transfer."""
    connection = DataConnection(1, keepalive=5)
    transport = attached(connection)
    message, payloads = transfer
    run_without_waiting(connection.send(message, [memoryview(payload) for payload in payloads]))
    return b"".join(call.args[0] for call in transport.write.call_args_list)


def deliver(random: Random, connection: DataConnection, transport: mock.Mock, data: bytes) -> list[_Transfer]:
    """Pass bytes to a connection as an event loop does. Return the transfers that it delivers.

    Raises:
        ViolationError: It allocates too much memory, does not pause reading, or aborts without an error.
    """
    start, paused = 0, False
    frames: list[tuple[bytes, bytes]] = []
    while start < len(data) and not transport.abort.called:
        room = connection.get_buffer(-1)
        if not 0 < len(room) <= MAX_MESSAGE_BYTES:
            raise ViolationError(f"it allocates a buffer of {len(room)} bytes")
        count = min(len(room), random.choice((1, 4, 100, 100_000)), len(data) - start)
        room[:count] = data[start : start + count]
        connection.buffer_updated(count)
        start += count
        paused = transport.pause_reading.call_count > transport.resume_reading.call_count
        if connection._waiting_bytes > _MAX_WAITING_BYTES and not (paused or transport.abort.called):
            raise ViolationError(f"{connection._waiting_bytes} bytes wait, and it does not pause reading")
        while connection._received and (paused or random.random() < 0.5):
            kind, frame = run_without_waiting(connection._next())
            frames.append((kind, bytes(frame)))
    while connection._received:
        kind, frame = run_without_waiting(connection._next())
        frames.append((kind, bytes(frame)))
    if transport.abort.called:
        try:
            connection._next().send(None)
        except ProtocolError:
            return []
        raise ViolationError("it ended the connection without an error")
    transfers: list[_Transfer] = []
    for kind, content in frames:
        if kind == b"m":
            transfers.append((content, []))
        elif transfers:
            transfers[-1][1].append(content)
    return transfers


def run_without_waiting(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that must not wait. Return its result."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise ViolationError("it waits although data is available")


def _bytes(random: Random) -> bytes:
    return random.randbytes(random.choice((1, 5, 300, 4096, 20_000)))
