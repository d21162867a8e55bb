"""Connections whose bytes under way are limited share full links evenly, and keep fast ones full."""

import asyncio
import socket
from typing import Any

import pytest

from psum.planes import DataConnection
from psum.planes.send_limit import LINK_BYTES, Progress, SendLimit, usual_share
from psum.planes.tcp import do_not_pace, limit_sending, on_this_host, progress_of


class _Link:
    """Connections that each keep as many bytes under way on one link as their limits allow.

    Attributes:
        busy: Which connections have something to send.
        rates: The bytes per second of each.
    """

    def __init__(self, bytes_per_second: float, shortest: float, shares: list[float]) -> None:
        self._bytes_per_second = bytes_per_second
        self._shortest = shortest
        self._limits = [SendLimit(share) for share in shares]
        self._acknowledged = [0.0 for _ in shares]
        self._now = 0.0
        self.busy = [True for _ in shares]
        self.rates = [0.0 for _ in shares]

    @property
    def round_trip(self) -> float:
        """How long a byte takes there and its acknowledgement back."""
        return max(self._shortest, sum(self._under_way) / self._bytes_per_second)

    @property
    def queue_seconds(self) -> float:
        """How long a new byte waits in the link's queue."""
        return self.round_trip - self._shortest

    @property
    def _under_way(self) -> list[int]:
        return [limit.size if busy else 0 for limit, busy in zip(self._limits, self.busy, strict=True)]

    def run(self, seconds: float) -> None:
        """Lets the busy connections send for a time."""
        for limit, acknowledged in zip(self._limits, self._acknowledged, strict=True):
            limit.begin(self._now, Progress(int(acknowledged), self._shortest, self._shortest))
        interval = self._limits[0].interval
        looks = [self._now + limit.interval for limit in self._limits]
        for _ in range(round(seconds / interval)):
            self._now += interval
            round_trip = self.round_trip
            self.rates = [under_way / round_trip for under_way in self._under_way]
            for number, limit in enumerate(self._limits):
                self._acknowledged[number] += self.rates[number] * interval
                # Sums of intervals are not exact.
                if self.busy[number] and self._now >= looks[number] - interval / 2:
                    limit.move(self._now, Progress(int(self._acknowledged[number]), round_trip, self._shortest))
                    looks[number] = self._now + limit.interval


def test_a_limit_that_stays_is_looked_at_less_often() -> None:
    """On a full link the interval grows from 25 to 100 ms. As soon as the limit moves, it is 25 ms again."""
    limit = SendLimit(1 / 3)
    now, acknowledged = 0.0, 0.0
    intervals = []

    def look(waiting: float) -> bool:
        nonlocal now, acknowledged
        now += limit.interval
        acknowledged += limit.size / (0.0001 + waiting) * limit.interval
        moved = limit.move(now, Progress(int(acknowledged), 0.0001 + waiting, 0.0001))
        intervals.append(limit.interval)
        return moved

    assert [look(0.02) for _ in range(4)] == [False] * 4
    assert look(0.0)
    assert intervals == [0.05, 0.1, 0.1, 0.1, 0.025]


def test_a_connection_among_others_that_fill_the_queues_is_not_starved() -> None:
    """With queues of 20 ms, which it did not make, a connection that is used to a fast link sends more again."""
    shortest, queue, interval = 0.0001, 0.02, 0.025
    limit = SendLimit(1 / 3)
    now, acknowledged, rate = 0.0, 0.0, 0.0

    def run(looks: int, waiting: float, most: float) -> None:
        nonlocal now, acknowledged, rate
        for _ in range(looks):
            now += interval
            rate = min(limit.size / (shortest + waiting), most)
            acknowledged += rate * interval
            limit.move(now, Progress(int(acknowledged), shortest + waiting, shortest))

    run(40, 0.0, 1.25e9)
    assert rate == 1.25e9
    run(400, queue, 1.25e9)
    assert 1.25e9 / 3 / 8 * 0.7 < rate < 1.25e9 / 3


@pytest.mark.parametrize("mbit", [50, 200, 1000, 10_000])
def test_connections_come_to_share_a_full_link_evenly(mbit: int) -> None:
    """A connection that had the link for itself gets no more than five others that join it."""
    link = _Link(mbit * 1e6 / 8, 0.0001, [1 / 4] * 6)
    link.busy = [True] + 5 * [False]
    link.run(2)
    assert link.rates[0] == pytest.approx(mbit * 1e6 / 8)

    link.busy = 6 * [True]
    link.run(2)

    assert max(link.rates) <= 1.02 * min(link.rates)


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_queues_are_short(hosts: int) -> None:
    """With a worker and an aggregator on each host, the queue of a full link of 200 Mbit/s stays below 35 ms."""
    link = _Link(25e6, 0.0001, [usual_share(1 / hosts)] * 2 * (hosts - 1))

    link.run(2)

    assert sum(link.rates) == pytest.approx(25e6)
    assert link.queue_seconds <= 0.035


def test_connections_of_unequal_shares_share_a_link_in_proportion() -> None:
    """An aggregator that takes three times as many bytes gets three times as much of a full link."""
    link = _Link(25e6, 0.0001, [1 / 4, 3 / 4])

    link.run(2)

    assert link.rates[1] == pytest.approx(3 * link.rates[0], rel=0.02)


def test_a_long_way_is_kept_full() -> None:
    """On a link of 1 Gbit/s with round trips of 50 ms, the limit grows until the link is full, within 2 s."""
    link = _Link(125e6, 0.05, [1.0])

    link.run(2)

    assert sum(link.rates) >= 0.95 * 125e6


def test_one_of_very_many_connections_may_still_send_several_packets() -> None:
    """With a thousand workers, each connection has room for more packets than TCP needs to notice a loss."""
    assert SendLimit(1 / 1000).size >= 10 * 1500


def test_which_connections_stay_on_this_host() -> None:
    """A connection to an own address goes over the loopback, whatever the address."""
    assert on_this_host(("127.0.0.1", 1), ("127.0.0.1", 2))
    assert on_this_host(("::1", 1, 0, 0), None)
    assert on_this_host(("10.1.1.1", 1), ("10.1.1.1", 2))
    assert not on_this_host(("10.1.1.2", 1), ("10.1.1.1", 2))
    assert not on_this_host(("10.1.1.2", 1), None)


@pytest.mark.parametrize(("before", "after"), [(b"bbr", b"reno"), (b"cubic", b"cubic")])
def test_only_a_congestion_control_that_paces_is_replaced(before: bytes, after: bytes) -> None:
    """BBR is replaced. Others stay as the system has chosen."""
    with socket.socket() as connection:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, before)
        except OSError:
            pytest.skip(f"this kernel or user may not use {before.decode()}")
        do_not_pace(connection)
        chosen = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        assert chosen.rstrip(b"\0") == after


class _Elsewhere:
    """A transport that claims to lead to another host. All else is the real transport's."""

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 1) if name == "peername" else self._transport.get_extra_info(name, default)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Far(DataConnection):
    """A data connection that takes the other side for another host."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connection = transport.get_extra_info("socket")
        super().connection_made(_Elsewhere(transport))  # type: ignore[arg-type]


async def test_a_connection_to_another_host_limits_what_is_under_way() -> None:
    """Sending a payload limits the kernel's send buffer, and everything still arrives."""
    before, during, received = await _sent(_Far)

    assert during < before
    assert during <= 4 * LINK_BYTES
    assert received


async def test_a_connection_within_a_host_has_no_limit() -> None:
    """The loopback has no links to share."""
    before, during, received = await _sent(_Near)

    assert during >= before
    assert received


class _Near(DataConnection):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connection = transport.get_extra_info("socket")
        super().connection_made(transport)


async def _sent(kind: type[_Far] | type[_Near]) -> tuple[int, int, bool]:
    """Sends 8 MiB; returns the send buffer's size before and during, and whether all of it arrived."""
    payload = bytes(range(256)) * (1 << 15)
    loop = asyncio.get_running_loop()
    made: asyncio.Future[DataConnection] = loop.create_future()

    def make() -> DataConnection:
        made.set_result(DataConnection(1 << 20, keepalive=5))
        return made.result()

    server = await loop.create_server(make, "127.0.0.1", 0)
    _, sender = await loop.create_connection(lambda: kind(1 << 20, keepalive=5), *server.sockets[0].getsockname())
    receiver = await made
    try:
        sender.share_links(1 / 4)
        before = sender.connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        sending = loop.create_task(sender.send(b"message", [memoryview(payload)]))
        async with asyncio.timeout(20):
            assert bytes(await receiver.receive()) == b"message"
            during = sender.connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            received = bytes(await receiver.receive_payload(len(payload))) == payload
            await sending
        return before, during, received
    finally:
        sender.close()
        receiver.close()
        server.close()


@pytest.mark.parametrize("pieces", [1, 2, 3, 4])
def test_the_kernel_asks_for_more_before_a_piece_too_many_is_acknowledged(pieces: int) -> None:
    """Two thirds of the buffer hold this number of pieces, as the kernel counts them, also if the limit is smaller."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        limit_sending(one, pieces * (96 << 10))

        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) * 2 // 3 // 65_994 == pieces


def test_a_small_limit_is_kept() -> None:
    """Many connections to one host have less under way than a piece each, and more would fill the queues."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        limit_sending(one, 54_000)

        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 54_000


def test_a_large_limit_is_left_to_the_kernel() -> None:
    """A limit beyond what this system allows a program does not hold a fast connection back."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        limit_sending(one, 64 << 10)
        small = one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        limit_sending(one, 1 << 30)

        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > small
        assert progress_of(one).acknowledged >= 0
