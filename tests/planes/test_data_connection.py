"""A data connection carries messages and payloads completely and in order, however the network cuts them."""

import asyncio
import gc
import socket
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as some

from psum.planes import SECRET_BYTES, DataConnection
from psum.wire.errors import ProtocolError
from tests.fuzz.data_connection import attached
from tests.scarcity import descriptors_left

SIZES = [1, 4, 5, 6, 4090, 4096, 65_536, 3_000_000, 1, 5_000_000]


@asynccontextmanager
async def connected(max_waiting_bytes: int = 1 << 20) -> AsyncIterator[tuple[DataConnection, DataConnection]]:
    """Two ends of a connection."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[DataConnection] = loop.create_future()

    def make() -> DataConnection:
        made.set_result(DataConnection(max_waiting_bytes, keepalive=5))
        return made.result()

    server = await loop.create_server(make, "127.0.0.1", 0)
    _, one = await loop.create_connection(
        lambda: DataConnection(max_waiting_bytes, keepalive=5), *server.sockets[0].getsockname()
    )
    other = await made
    try:
        async with asyncio.timeout(20):
            yield one, other
    finally:
        one.close()
        other.close()
        server.close()


async def test_messages_and_payloads_come_in_order() -> None:
    """Messages with and without payloads of all sizes arrive, in both directions at once."""
    frames = [bytes([n]) * size for n, size in enumerate(SIZES)]

    async def send(connection: DataConnection) -> None:
        for number, frame in enumerate(frames):
            await connection.send(frame, [memoryview(f) for f in frames[:number]])

    async def receive(connection: DataConnection) -> None:
        for number, frame in enumerate(frames):
            assert await connection.receive() == frame
            for payload in frames[:number]:
                assert await connection.receive_payload(len(payload)) == payload

    async with connected() as (one, other):
        await asyncio.gather(send(one), send(other), receive(other), receive(one))


def test_a_secret_is_not_shown_on_a_connection_that_broke_at_once() -> None:
    """Otherwise uvloop would raise an unexpected error."""
    connection = DataConnection(1 << 20, keepalive=10)
    connection.close()
    with pytest.raises(ConnectionResetError, match="not open"):
        connection.send_secret(b"secret")


async def test_each_end_takes_one_descriptor() -> None:
    """Options are set even if the process may open no more files."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[DataConnection] = loop.create_future()

    def make() -> DataConnection:
        made.set_result(DataConnection(1 << 20, keepalive=7))
        return made.result()

    server = await loop.create_server(make, "127.0.0.1", 0)
    with descriptors_left(2):
        _, one = await loop.create_connection(
            lambda: DataConnection(1 << 20, keepalive=7), *server.sockets[0].getsockname()
        )
        async with asyncio.timeout(20):
            other = await made
            await one.send(b"m")
            assert bytes(await other.receive()) == b"m"
        for connection in (one, other):
            assert connection._transport is not None
            options = connection._transport.get_extra_info("socket")
            assert options.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
    one.close()
    other.close()
    server.close()


async def test_a_receiver_that_takes_nothing_stops_the_sender() -> None:
    """Hardly more is read than may wait, and nothing is lost."""
    payload = memoryview(bytes(5_000_000))
    async with connected() as (one, other):
        many = asyncio.gather(*(one.send(b"m", [payload]) for _ in range(20)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(many), 0.5)
        for _ in range(20):
            assert bytes(await other.receive()) == b"m"
            assert await other.receive_payload(len(payload)) == payload
        await many


async def test_what_was_not_announced_is_an_error() -> None:
    """A payload of another size is refused; so is a payload instead of a message, and the reverse."""
    async with connected() as (one, other):
        await one.send(b"m", [memoryview(b"abc"), memoryview(b"d")])
        await one.send(b"again")
        assert bytes(await other.receive()) == b"m"
        with pytest.raises(ProtocolError, match="payload of 3 bytes where a payload of 4 was announced"):
            await other.receive_payload(4)
        with pytest.raises(ProtocolError, match="payload of 1 bytes that was not announced"):
            await other.receive()
        with pytest.raises(ProtocolError, match="message of 5 bytes where a payload of 5 was announced"):
            await other.receive_payload(5)


async def test_its_end_is_an_error_for_both_sides() -> None:
    """The end is reported after everything that came before it."""
    async with connected() as (one, other):
        await one.send(b"last")
        assert bytes(await other.receive()) == b"last"
        one.close()
        with pytest.raises(ConnectionResetError):
            await other.receive()
        with pytest.raises(ConnectionResetError):
            await other.send(b"too late")


def fed(connection: DataConnection, data: bytes, cuts: list[int]) -> mock.Mock:
    """Gives a data connection bytes as an event loop does, in pieces that end at the cuts; returns its transport."""
    transport = attached(connection)
    start = 0
    for end in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        while start < end and not transport.abort.called:
            room = connection.get_buffer(-1)
            count = min(len(room), end - start)
            room[:count] = data[start : start + count]
            connection.buffer_updated(count)
            start += count
    return transport


def written(frames: list[tuple[bytes, list[bytes]]]) -> bytes:
    """The bytes that a data connection sends for messages with payloads."""
    sender = DataConnection(1, keepalive=5)
    transport = attached(sender)
    for message, payloads in frames:
        assert_ends(sender.send(message, [memoryview(payload) for payload in payloads]))
    return b"".join(call.args[0] for call in transport.write.call_args_list)


def assert_ends(coroutine: Any) -> Any:
    """Runs a coroutine that does not wait."""
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    return end.value.value


Bytes = some.binary(min_size=1, max_size=9000)


@given(
    some.lists(some.tuples(Bytes, some.lists(Bytes, max_size=3)), max_size=6), some.lists(some.integers(0), max_size=20)
)
def test_it_does_not_matter_how_the_network_cuts(frames: list[tuple[bytes, list[bytes]]], cuts: list[int]) -> None:
    """The receiver reads the same messages and payloads from the same bytes, in whatever pieces they come."""
    secret = bytes(range(SECRET_BYTES))
    connection = DataConnection(1 << 30, lambda shown: shown == secret, keepalive=5)
    transport = fed(connection, secret + written(frames), cuts)
    for message, payloads in frames:
        assert assert_ends(connection.receive()) == message
        for payload in payloads:
            assert assert_ends(connection.receive_payload(len(payload))) == payload
    assert not transport.abort.called


@given(some.binary(max_size=200), some.lists(some.integers(0), max_size=9))
def test_nothing_is_read_before_the_secret(data: bytes, cuts: list[int]) -> None:
    """Whatever a stranger sends, the connection ends with the first bytes that are not the secret."""
    connection = DataConnection(1 << 30, lambda _: False, keepalive=5)
    transport = fed(connection, data, cuts)
    assert transport.abort.called == (len(data) >= SECRET_BYTES)
    assert not connection._received


@given(some.binary(min_size=5, max_size=200), some.lists(some.integers(0), max_size=9))
def test_bytes_that_are_no_frame_end_it(data: bytes, cuts: list[int]) -> None:
    """A frame with an unknown kind, no length or too much is refused, and a waiting receiver is told why."""
    connection = DataConnection(1 << 30, keepalive=5)
    transport = fed(connection, b"x" + data, cuts)
    assert transport.abort.called
    with pytest.raises(ProtocolError, match="which psum does not know"):
        connection.receive().send(None)


@pytest.mark.parametrize("header", [b"m\0\0\0\0", b"p\0\0\0\0", b"p\x01\0\0\x04", b"m\x01\0\0\x05"])
def test_a_frame_has_a_length_within_limits(header: bytes) -> None:
    """No memory is allocated for a frame that is too long, even by one byte."""
    assert fed(DataConnection(1 << 30, keepalive=5), header, []).abort.called


def test_what_was_closed_before_it_was_connected_ends_as_soon_as_it_is() -> None:
    """As happens to a stranger that takes too long for its TLS handshake."""
    connection = DataConnection(1 << 20, lambda _: True, keepalive=5)
    connection.close()
    assert attached(connection).abort.called


def test_a_peer_that_is_gone_when_it_is_connected_does_no_harm() -> None:
    """As happens with a port scanner's connection, which has no address any more."""
    connection = DataConnection(1 << 20, lambda _: True, keepalive=5)
    transport = mock.Mock()
    transport.get_extra_info = {}.get
    connection.connection_made(transport)
    assert transport.abort.called


def test_a_stranger_leaves_nothing_behind() -> None:
    """The error of a refused connection does not keep the connection until the collector finds a circle."""

    def turned_away() -> weakref.ref[DataConnection]:
        connection = DataConnection(1 << 20, lambda _: connection is None, keepalive=5)
        assert not attached(connection).abort.called
        data = b"not the secret, whatever it may be"
        connection.get_buffer(-1)[: len(data)] = data
        connection.buffer_updated(len(data))
        return weakref.ref(connection)

    gc.collect()
    gc.disable()
    try:
        assert turned_away()() is None
    finally:
        gc.enable()
