"""A pipe carries messages and payloads, whole and in order, however the network cuts them."""

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
    """Both ways at once, of all sizes, messages with and without payloads."""
    frames = [bytes([n]) * size for n, size in enumerate(SIZES)]

    async def send(pipe: DataConnection) -> None:
        for number, frame in enumerate(frames):
            await pipe.send(frame, [memoryview(f) for f in frames[:number]])

    async def receive(pipe: DataConnection) -> None:
        for number, frame in enumerate(frames):
            assert await pipe.receive() == frame
            for payload in frames[:number]:
                assert await pipe.receive_payload(len(payload)) == payload

    async with connected() as (one, other):
        await asyncio.gather(send(one), send(other), receive(other), receive(one))


def test_a_secret_is_not_shown_on_a_connection_that_broke_at_once() -> None:
    """uvloop would raise an error that nobody expects of a connection."""
    pipe = DataConnection(1 << 20, keepalive=10)
    pipe.close()
    with pytest.raises(ConnectionResetError, match="not open"):
        pipe.show(b"secret")


async def test_each_end_takes_one_descriptor() -> None:
    """A process that is short of them has none to spare for setting options, which are set all the same."""
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
        for pipe in (one, other):
            assert pipe._transport is not None
            options = pipe._transport.get_extra_info("socket")
            assert options.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
    one.close()
    other.close()
    server.close()


async def test_a_receiver_that_takes_nothing_stops_the_sender() -> None:
    """What is here may be little more than what may wait; nothing is lost by it."""
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
    """A payload of another size, one instead of a message, and a message instead of one."""
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
    """After all that came before it."""
    async with connected() as (one, other):
        await one.send(b"last")
        assert bytes(await other.receive()) == b"last"
        one.close()
        with pytest.raises(ConnectionResetError):
            await other.receive()
        with pytest.raises(ConnectionResetError):
            await other.send(b"too late")


def fed(pipe: DataConnection, data: bytes, cuts: list[int]) -> mock.Mock:
    """Gives a pipe bytes as an event loop does, in pieces that end at the cuts; returns its transport."""
    transport = attached(pipe)
    start = 0
    for end in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        while start < end and not transport.abort.called:
            room = pipe.get_buffer(-1)
            count = min(len(room), end - start)
            room[:count] = data[start : start + count]
            pipe.buffer_updated(count)
            start += count
    return transport


def written(frames: list[tuple[bytes, list[bytes]]]) -> bytes:
    """What a pipe sends for messages with payloads."""
    sender = DataConnection(1, keepalive=5)
    transport = attached(sender)
    for message, payloads in frames:
        assert_ends(sender.send(message, [memoryview(payload) for payload in payloads]))
    return b"".join(call.args[0] for call in transport.write.call_args_list)


def assert_ends(coroutine: Any) -> Any:
    """Runs a coroutine that has nothing to wait for."""
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    return end.value.value


Bytes = some.binary(min_size=1, max_size=9000)


@given(
    some.lists(some.tuples(Bytes, some.lists(Bytes, max_size=3)), max_size=6), some.lists(some.integers(0), max_size=20)
)
def test_it_does_not_matter_how_the_network_cuts(frames: list[tuple[bytes, list[bytes]]], cuts: list[int]) -> None:
    """The receiver takes the same messages and payloads out of the same bytes, in whatever pieces they come."""
    secret = bytes(range(SECRET_BYTES))
    pipe = DataConnection(1 << 30, lambda shown: shown == secret, keepalive=5)
    transport = fed(pipe, secret + written(frames), cuts)
    for message, payloads in frames:
        assert assert_ends(pipe.receive()) == message
        for payload in payloads:
            assert assert_ends(pipe.receive_payload(len(payload))) == payload
    assert not transport.abort.called


@given(some.binary(max_size=200), some.lists(some.integers(0), max_size=9))
def test_nothing_is_read_before_the_secret(data: bytes, cuts: list[int]) -> None:
    """Whatever a stranger sends: the connection ends with the first bytes that are not the secret."""
    pipe = DataConnection(1 << 30, lambda _: False, keepalive=5)
    transport = fed(pipe, data, cuts)
    assert transport.abort.called == (len(data) >= SECRET_BYTES)
    assert not pipe._received


@given(some.binary(min_size=5, max_size=200), some.lists(some.integers(0), max_size=9))
def test_bytes_that_are_no_frame_end_it(data: bytes, cuts: list[int]) -> None:
    """An unknown kind, a length of nothing or of more than may be; a waiting receiver hears of it in words."""
    pipe = DataConnection(1 << 30, keepalive=5)
    transport = fed(pipe, b"x" + data, cuts)
    assert transport.abort.called
    with pytest.raises(ProtocolError, match="which is none of psum's"):
        pipe.receive().send(None)


@pytest.mark.parametrize("header", [b"m\0\0\0\0", b"p\0\0\0\0", b"p\x01\0\0\x04", b"m\x01\0\0\x05"])
def test_a_frame_has_a_length_within_limits(header: bytes) -> None:
    """Nothing is set aside for one that is too long, by one byte or more."""
    assert fed(DataConnection(1 << 30, keepalive=5), header, []).abort.called


def test_what_was_closed_before_it_was_connected_ends_as_soon_as_it_is() -> None:
    """As a stranger that takes too long to shake hands for TLS."""
    pipe = DataConnection(1 << 20, lambda _: True, keepalive=5)
    pipe.close()
    assert attached(pipe).abort.called


def test_a_peer_that_is_gone_when_it_is_connected_does_no_harm() -> None:
    """As a port scanner's, which has no address any more."""
    pipe = DataConnection(1 << 20, lambda _: True, keepalive=5)
    transport = mock.Mock()
    transport.get_extra_info = {}.get
    pipe.connection_made(transport)
    assert transport.abort.called


def test_a_stranger_leaves_nothing_behind() -> None:
    """What it was refused with does not keep the pipe until somebody looks for circles."""

    def turned_away() -> weakref.ref[DataConnection]:
        pipe = DataConnection(1 << 20, lambda _: pipe is None, keepalive=5)
        assert not attached(pipe).abort.called
        data = b"not the secret, whatever it may be"
        pipe.get_buffer(-1)[: len(data)] = data
        pipe.buffer_updated(len(data))
        return weakref.ref(pipe)

    gc.collect()
    gc.disable()
    try:
        assert turned_away()() is None
    finally:
        gc.enable()
