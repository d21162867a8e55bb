"""A data port that cannot be reached, leads elsewhere or breaks is no obstacle: messages stay on the stream."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from psum import client as psum
from psum.aggregator.service.receiver import Receiver
from psum.client.transport import data_dialer
from psum.planes import SECRET_BYTES, DataConnection
from tests.integration.credential_files import Files
from tests.integration.many_sizes import few_sums, plane_of, sums
from tests.polling import wait_until


@pytest.mark.parametrize(("plane", "left", "told"), [("direct", "inline", "inline"), ("shm", "shm", "shm, stream")])
def test_a_port_that_cannot_be_reached_does_no_harm(
    make_fleet: Callable[..., Any], caplog: pytest.LogCaptureFixture, plane: str, left: str, told: str
) -> None:
    """As behind a firewall or a proxy: everything but shared memory stays on the stream. The log says why, and the
    status shows it."""
    fleet = make_fleet(1)
    fleet.thread.run(fleet.servers[0]._data_port.close(), 10)
    with fleet.worker(0, 1, plane=plane) as client:
        assert client.planes == (left,)
        assert plane_of(fleet) == told
        sums(client)
    assert "it cannot open a data connection to port" in caplog.text


Habit = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


async def closes(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """As a port-forward that leads nowhere does."""


async def reads_and_closes(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """As a sidecar does that finds out late."""
    await reader.read(1)


async def is_silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """As a load balancer without servers does."""
    while await reader.read(1 << 16):
        pass


async def echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends the secret back."""
    while data := await reader.read(1 << 16):
        writer.write(data)


async def speaks_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As another service on that port does."""
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await reader.read(1 << 16)


async def says_something_else(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends a message, but not the expected one."""
    await reader.read(1)
    writer.write(b"m\x02\0\0\0\x3a\0")
    await reader.read(1 << 16)


@contextlib.contextmanager
def workers(fleet: Any, plane: str) -> Iterator[list[psum.Client]]:
    """Both ranks of a job, closed in any case."""
    with contextlib.ExitStack() as stack:
        made = [fleet.worker(rank, 2, plane=plane) for rank in range(2)]
        for client in made:
            stack.callback(client.close, 1.0)
        yield made


class Door:
    """A port that accepts connections, and does something else with them than an aggregator would.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        accepted: How many connections were made.
    """

    def __init__(self, fleet: Any, habit: Habit) -> None:
        self.accepted = 0
        self._habit = habit
        self._fleet = fleet
        self._server = fleet.thread.run(self._start(), 10)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def lead_there(self) -> None:
        """Makes the aggregator name this port to its workers."""
        self._fleet.servers[0]._data_port.port = self.port

    def close(self) -> None:
        self._fleet.thread.run(self._end(), 10)

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _end(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        with contextlib.suppress(OSError):
            await self._habit(reader, writer)
        writer.transport.abort()


CLOSED = "accepted, and closed before the aggregator answered"


SILENT = "accepted, but the aggregator does not answer there"


SOMETHING = "accepted by something that is not this aggregator"


@pytest.mark.parametrize(
    ("habit", "reason", "plane"),
    [
        (closes, CLOSED, "direct"),
        (closes, CLOSED, "shm"),
        (reads_and_closes, CLOSED, "direct"),
        (is_silent, SILENT, "direct"),
        (is_silent, SILENT, "shm"),
        (echoes, SOMETHING, "direct"),
        (speaks_http, SOMETHING, "direct"),
        (says_something_else, f"{SOMETHING}: it says farewell", "direct"),
    ],
)
def test_a_port_that_leads_elsewhere_is_no_obstacle(
    make_fleet: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    habit: Habit,
    reason: str,
    plane: str,
) -> None:
    """An accepted connection alone counts for nothing: messages stay on the stream, from the first one on. Each worker
    tries once and says so once, also if its stream is opened again."""
    monkeypatch.setattr(data_dialer, "_PATIENCE_SECONDS", 0.3 if habit is is_silent else 5.0)
    fleet = make_fleet(1)
    inline = fleet.on_every_rank(2, few_sums, plane="inline", job="inline")
    door = Door(fleet, habit)
    door.lead_there()
    with contextlib.closing(door), workers(fleet, plane) as clients, ThreadPoolExecutor(2) as pool:
        assert [client.planes for client in clients] == [("shm" if plane == "shm" else "inline",)] * 2
        assert list(pool.map(few_sums, clients, timeout=60)) == inline
        assert [client.statistics().reconnects for client in clients] == [0, 0]
        fleet.cut()
        wait_until(lambda: all(client.statistics().reconnects == 1 for client in clients))
        list(pool.map(psum.Client.close, clients))
    said = [record.message for record in caplog.records if "only the stream" in record.message]
    assert len(said) == 2
    assert all(reason in line for line in said)
    assert door.accepted == 2


def test_a_port_that_leads_to_another_aggregator_is_no_obstacle(
    make_fleet: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The other aggregator does not know the secret, and gets nothing of this job."""
    fleet, other = make_fleet(1), make_fleet(1)
    fleet.servers[0]._data_port.port = other.servers[0]._data_port.port
    with fleet.worker(0, 1, plane="direct") as client:
        assert client.planes == ("inline",)
        few_sums(client)
    assert "closed before the aggregator answered; does that port lead to this aggregator's data port?" in caplog.text
    assert "its secret was not given out" in caplog.text


@pytest.mark.parametrize("habit", [closes, is_silent, speaks_http])
def test_nor_does_it_matter_with_tls(
    make_fleet: Callable[..., Any],
    files: Files,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    habit: Habit,
) -> None:
    """The TLS handshake fails there."""
    monkeypatch.setattr(data_dialer, "_PATIENCE_SECONDS", 0.5)
    fleet = make_fleet(1, **files.certificate("server", "127.0.0.1"))
    with contextlib.closing(Door(fleet, habit)) as door:
        door.lead_there()
        with fleet.worker(0, 1, plane="direct", tls_ca=files.ca) as client:
            assert client.planes == ("inline",)
            few_sums(client)
    assert "it cannot open a data connection to port" in caplog.text


def test_an_answer_that_comes_too_late_is_left_aside(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The aggregator has taken the secret after the worker gave up: both go on with the stream."""
    monkeypatch.setattr(data_dialer, "_PATIENCE_SECONDS", 0.2)
    first_on = Receiver._first_on

    async def late(self: Receiver, connection: DataConnection) -> memoryview | None:
        await asyncio.sleep(0.5)
        return await first_on(self, connection)

    monkeypatch.setattr(Receiver, "_first_on", late)
    fleet = make_fleet(1)
    with fleet.worker(0, 1, plane="direct") as client:
        assert client.planes == ("inline",)
        began = time.monotonic()
        while time.monotonic() - began < 0.6:
            few_sums(client)
        assert plane_of(fleet) == "inline"
        assert client.statistics().reconnects == 0


@pytest.mark.parametrize(
    ("plane", "noticed"),
    [("direct", True), ("shm", True), ("direct", False)],
    ids=["direct", "shm", "at the aggregator only"],
)
def test_a_data_connection_that_breaks_each_time_is_done_without(
    make_fleet: Callable[..., Any], caplog: pytest.LogCaptureFixture, plane: str, noticed: bool
) -> None:
    """It is given up the third time in a row: otherwise the stream would be opened again and again. No sum is lost.

    The aggregator tells the worker why it ends the stream: what is between them may end its own connection only.
    """
    fleet = make_fleet(1)
    inline = fleet.on_every_rank(2, few_sums, plane="inline", job="inline")
    behind = fleet.servers[0]._data_port.port

    async def cuts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forwards the secret, which makes the aggregator answer, and a little more."""
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", behind)
        there_writer.write(await reader.readexactly(SECRET_BYTES))
        writer.write(await there_reader.read(1 << 16))
        there_writer.write(await reader.read(100))
        await reader.read(100)
        there_writer.transport.abort()
        while not noticed and await reader.read(1 << 16):
            pass

    door = Door(fleet, cuts)
    door.lead_there()
    with contextlib.closing(door), workers(fleet, plane) as clients, ThreadPoolExecutor(2) as pool:
        assert list(pool.map(few_sums, clients, timeout=60)) == inline
        assert [client.statistics().reconnects for client in clients] == [3, 3]
        list(pool.map(psum.Client.close, clients))
    assert caplog.text.count("has only the stream") == 2
    assert "the data connection there breaks each time soon after it was opened" in caplog.text
    assert door.accepted == 6


def test_of_several_addresses_the_one_that_answers_is_taken(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host's first address may have no server, another aggregator, or a server that is silent."""
    fleet = make_fleet(1)
    port = fleet.servers[0]._data_port.port
    other = make_fleet(1, listen=("127.0.0.8:0",), data_port=port)
    with socket.create_server(("127.0.0.9", port)):

        async def addresses_of(_host: str, _port: int) -> list[str]:
            return ["127.0.0.7", "127.0.0.8", "127.0.0.9", "127.0.0.1"]

        monkeypatch.setattr(data_dialer, "addresses_of", addresses_of)
        with fleet.worker(0, 1, plane="direct") as client:
            assert client.planes == ("direct",)
            few_sums(client)
            assert plane_of(fleet) == "direct"
    assert not psum.fetch_status(other.addresses[0]).jobs


def test_no_address_that_answers_is_told_with_all_reasons(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each address with its own."""
    fleet = make_fleet(1)
    make_fleet(1, listen=("127.0.0.8:0",), data_port=fleet.servers[0]._data_port.port)

    async def addresses_of(_host: str, _port: int) -> list[str]:
        return ["127.0.0.7", "127.0.0.8"]

    monkeypatch.setattr(data_dialer, "addresses_of", addresses_of)
    with fleet.worker(0, 1, plane="direct") as client:
        assert client.planes == ("inline",)
    assert "127.0.0.8: it was accepted, and closed before the aggregator answered" in caplog.text
    assert "(127.0.0.7: " in caplog.text
