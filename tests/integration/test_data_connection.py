"""Workers on other hosts send large payloads on a data connection: same sums, and messages if there is none."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import trustme

from psum import client as psum
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.plane_choice import PlaneChoice
from psum.aggregator.service.receiver import Receiver
from psum.client.core.session import Session
from psum.client.transport import conversation, data_dialer
from psum.client.transport.data_dialer import DialProspects
from psum.client.transport.stream import Stream
from psum.planes import SECRET_BYTES, DataConnection
from psum.planes.tcp import limit_sending
from psum.v1 import aggregator_pb2 as pb
from psum.wire import FAR_BATCH_BYTES, decode, report_of
from tests.polling import wait_until


def sums(client: psum.Client, sizes: tuple[int, ...] = (3, 20_000, 700_000, 1_000_001), rounds: int = 4) -> list[bytes]:
    """The values after some rounds with keys of many sizes."""
    chance = np.random.default_rng(client.rank)
    store = client.store()
    values = [chance.standard_normal(size).astype(np.float32) for size in sizes]
    for _ in range(rounds):
        for future in [store.push_pull_async(i, value, priority=-i) for i, value in enumerate(values)]:
            future.result(20)
        for value in values:
            value *= np.float32(0.25)
    store.broadcast("b", values[2])
    return [value.tobytes() for value in values]


def few_sums(client: psum.Client) -> list[bytes]:
    """The same with less data."""
    return sums(client, (3, 20_000, 100_000), 2)


def test_the_sums_are_those_of_messages_bit_for_bit(make_fleet: Callable[..., Any]) -> None:
    """With two aggregators, also if each of three workers uses another plane."""
    inline = make_fleet(2).on_every_rank(3, sums, plane="inline")
    assert make_fleet(2).on_every_rank(3, sums, plane="direct") == inline
    fleet = make_fleet(2)
    clients = [fleet.worker(rank, 3, plane=plane) for rank, plane in enumerate(("shm", "inline", "direct"))]
    assert [client.planes for client in clients] == [("shm",) * 2, ("inline",) * 2, ("direct",) * 2]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(sums, clients, timeout=60)) == inline
        list(pool.map(psum.Client.close, clients))


def test_between_hosts_links_are_shared_and_messages_announce_less(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To another host, both sides limit what is under way, and a message announces 1 MiB of payloads; the sums are the
    same."""
    inline = make_fleet(2).on_every_rank(2, few_sums, plane="inline")
    limited = list[socket.socket]()

    def watched(connection: socket.socket, size: int) -> None:
        limited.append(connection)
        limit_sending(connection, size)

    monkeypatch.setattr("psum.planes.data_connection.limit_sending", watched)
    monkeypatch.setattr("psum.planes.data_connection.on_this_host", lambda peer, own: False)
    fleet = make_fleet(2)

    def work(client: psum.Client) -> list[bytes]:
        assert {window.scheduler.batch_bytes for window in client._session._windows} == {FAR_BATCH_BYTES}
        return few_sums(client)

    assert fleet.on_every_rank(2, work, plane="direct") == inline
    # Each of two workers and two aggregators sends on two connections.
    assert len({id(connection) for connection in limited}) == 8


def test_large_payloads_do_not_travel_in_messages(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages stay small with tensors of any size."""
    fleet = make_fleet(1)
    with fleet.worker(0, 1, plane="direct") as client:
        sent = []
        take: Callable[[int], bytes | None] = client._session.next_message

        def watched(aggregator: int) -> bytes | None:
            message = take(aggregator)
            sent.append(len(message or b""))
            return message

        monkeypatch.setattr(client._session, "next_message", watched)
        value = np.ones(4 << 20, np.float32)
        client.store().push_pull("w", value)
        assert sum(sent) < 10_000


@pytest.mark.parametrize("plane", ["direct", "shm"])
def test_messages_travel_on_it_too(make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, plane: str) -> None:
    """After it is open, a worker sends nothing on the stream any more, up to its goodbye."""
    fleet = make_fleet(1)
    clients = [fleet.worker(rank, 2, plane=plane) for rank in range(2)]
    for client in clients:
        monkeypatch.setattr(client._membership.connections[0].stream._call, "write", None)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(sums, clients, timeout=60))
        list(pool.map(psum.Client.close, clients))


def plane_of(fleet: Any) -> str:
    """How rank 0's payloads cross, as the aggregator's status says."""
    told = report_of(psum.fetch_status(fleet.addresses[0]))
    return str(told["jobs"][0]["workers"][0]["way"])


@pytest.mark.parametrize("plane", ["direct", "shm", "inline"])
def test_the_status_says_how_payloads_cross(make_fleet: Callable[..., Any], plane: str) -> None:
    """The status names each worker's plane."""
    fleet = make_fleet(1)
    with fleet.worker(0, 1, plane=plane):
        wait_until(lambda: plane_of(fleet) == plane)


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
    tmp_path: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    habit: Habit,
) -> None:
    """The TLS handshake fails there."""
    monkeypatch.setattr(data_dialer, "_PATIENCE_SECONDS", 0.5)
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    files = {name: str(tmp_path / f"{name}.pem") for name in ("tls_cert", "tls_key", "tls_ca")}
    issued.cert_chain_pems[0].write_to_path(files["tls_cert"])
    issued.private_key_pem.write_to_path(files["tls_key"])
    ca.cert_pem.write_to_path(files["tls_ca"])
    fleet = make_fleet(1, tls_cert=files["tls_cert"], tls_key=files["tls_key"])
    with contextlib.closing(Door(fleet, habit)) as door:
        door.lead_there()
        with fleet.worker(0, 1, plane="direct", tls_ca=files["tls_ca"]) as client:
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


@pytest.mark.parametrize("plane", ["direct", "shm"])
def test_a_data_connection_that_breaks_each_time_is_done_without(
    make_fleet: Callable[..., Any], caplog: pytest.LogCaptureFixture, plane: str
) -> None:
    """It is given up the third time in a row: otherwise the stream would be opened again and again. No sum is lost."""
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


def test_an_older_aggregator_does_not_answer(make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its welcome does not promise an answer, so the connection is used at once."""

    async def receive_first(_self: Receiver, connection: DataConnection) -> memoryview:
        return await connection.receive()

    monkeypatch.setattr(Receiver, "_first_on", receive_first)
    fleet = make_fleet(1)
    choose = PlaneChoice.choose

    def choose_without_answers(
        self: PlaneChoice, job: Any, hello: Any, connection: Any, welcome: Any, **given: Any
    ) -> Any:
        chosen = choose(self, job, hello, connection, welcome, **given)
        welcome.ClearField("data_answers")
        return chosen

    monkeypatch.setattr(PlaneChoice, "choose", choose_without_answers)
    inline = fleet.on_every_rank(2, few_sums, plane="inline", job="inline")
    assert fleet.on_every_rank(2, few_sums, plane="direct") == inline


@pytest.mark.parametrize("plane", ["direct", "shm"])
def test_what_was_sent_on_the_stream_is_handled_first(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, plane: str
) -> None:
    """The aggregator has said something before it knew of the data connection. It arrives late, when a sum is there
    already, and the worker hears it before the sum."""
    fleet = make_fleet(1)
    read, handle = Stream.read, Session.handle
    kinds: list[str | None] = []
    came = asyncio.Event()

    async def read_late(self: Stream) -> bytes | None:
        data = await read(self)
        if data is None or not decode(pb.ExchangeResponse, data)[0].HasField("welcome"):
            await came.wait()
        return data

    class Received(DataConnection):
        async def receive(self) -> memoryview:
            message = await super().receive()
            if decode(pb.ExchangeResponse, message)[0].HasField("result"):
                came.set()
            return message

    def note(self: Session, aggregator: int, message: pb.ExchangeResponse, *rest: Any) -> None:
        kinds.append(message.WhichOneof("kind"))
        handle(self, aggregator, message, *rest)

    def say_first(self: WorkerConnection, connection: DataConnection) -> None:
        self.queue.put_control(pb.ExchangeResponse(notice=pb.Notice(text="said on the stream")))
        self.filled.set()
        offer(self, connection)

    offer = WorkerConnection.offer
    monkeypatch.setattr(WorkerConnection, "offer", say_first)
    monkeypatch.setattr(data_dialer, "DataConnection", Received)
    monkeypatch.setattr(Stream, "read", read_late)
    monkeypatch.setattr(Session, "handle", note)
    with fleet.worker(0, 1, plane=plane) as client:
        client.store().push_pull("a", np.ones(100_000, np.float32))
    assert kinds.index("notice") < kinds.index("result")


def test_what_was_sent_on_the_stream_is_not_awaited_for_ever(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it does not come, the worker connects again, and gets its sum."""
    use = WorkerConnection.use_data_connection
    uses = 0

    def use_silently_at_first(self: WorkerConnection) -> None:
        nonlocal uses
        uses += 1
        use(self)
        if uses == 1:
            self.data_connection, self._upcoming = self._upcoming, None

    monkeypatch.setattr(WorkerConnection, "use_data_connection", use_silently_at_first)
    monkeypatch.setattr(conversation, "_FOLLOWS_SECONDS", 0.2)
    with make_fleet(1).worker(0, 1, plane="direct") as client:
        array = np.ones(100_000, np.float32)
        client.store().push_pull("a", array)
        assert array.tolist() == [1.0] * 100_000
    assert uses > 1


def test_an_aggregator_of_a_version_before_does_not_say_that_the_data_connection_follows(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker does not wait for that."""
    choose = PlaneChoice.choose

    def choose_as_before(self: PlaneChoice, job: Any, hello: Any, connection: Any, welcome: Any, **given: Any) -> Any:
        chosen = choose(self, job, hello, connection, welcome, **given)
        welcome.ClearField("data_follows")
        return chosen

    def use_at_once(self: WorkerConnection) -> None:
        assert self._offered is not None
        self.data_connection = self._offered
        self.plane.connected(self._offered)

    monkeypatch.setattr(PlaneChoice, "choose", choose_as_before)
    monkeypatch.setattr(WorkerConnection, "use_data_connection", use_at_once)
    fleet = make_fleet(1)
    inline = fleet.on_every_rank(2, few_sums, plane="inline", job="inline")
    assert fleet.on_every_rank(2, few_sums, plane="direct") == inline


@pytest.mark.parametrize("plane", ["direct", "shm"])
def test_an_older_worker_does_not_wait_for_an_answer(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, plane: str
) -> None:
    """It talks at once, and takes the answer for an empty message."""
    make = data_dialer._Attempt.make

    async def at_once(self: data_dialer._Attempt) -> DataConnection:
        self._welcome.ClearField("data_answers")
        return await make(self)

    monkeypatch.setattr(data_dialer._Attempt, "make", at_once)
    fleet = make_fleet(1)
    inline = fleet.on_every_rank(2, few_sums, plane="inline", job="inline")
    assert fleet.on_every_rank(2, few_sums, plane=plane) == inline


def test_a_data_connection_that_breaks_is_opened_anew_with_its_stream(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the middle of a payload from either side. Nothing is lost."""
    monkeypatch.setattr(DialProspects, "broke", lambda *_, **__: False)
    inline = make_fleet(1).on_every_rank(2, sums, plane="inline")
    fleet = make_fleet(1)
    clients = [fleet.worker(rank, 2, plane="direct") for rank in range(2)]
    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(sums, client) for client in clients]

        def cut() -> None:
            for client in clients:
                stream = client._membership.connections[0].stream
                if client._thread is not None and stream is not None and stream.data_connection is not None:
                    client._thread.call(stream.data_connection.close)

        for _ in range(5):
            time.sleep(0.02)
            cut()
        assert [result.result(60) for result in results] == inline
        list(pool.map(psum.Client.close, clients))


def test_it_is_encrypted_where_the_stream_is(make_fleet: Callable[..., Any], tmp_path: Any) -> None:
    """The same files are used, and connections without TLS are refused."""
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    files = {name: str(tmp_path / f"{name}.pem") for name in ("tls_cert", "tls_key", "tls_ca")}
    issued.cert_chain_pems[0].write_to_path(files["tls_cert"])
    issued.private_key_pem.write_to_path(files["tls_key"])
    ca.cert_pem.write_to_path(files["tls_ca"])
    fleet = make_fleet(1, tls_cert=files["tls_cert"], tls_key=files["tls_key"])
    inline = fleet.on_every_rank(2, sums, plane="inline", tls_ca=files["tls_ca"], job="inline")
    assert fleet.on_every_rank(2, sums, plane="direct", tls_ca=files["tls_ca"]) == inline
    with socket.create_connection(("127.0.0.1", fleet.servers[0]._data_port.port), 10) as connection:
        connection.sendall(bytes(SECRET_BYTES))
        assert_ended(connection)


def assert_ended(connection: socket.socket) -> None:
    """Asserts that the other side ends the connection."""
    connection.settimeout(10)
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass


@pytest.mark.parametrize(
    "said",
    [b"", b"GET / HTTP/1.1\n", bytes(SECRET_BYTES), bytes(1 << 20)],
)
def test_a_stranger_is_turned_away(make_fleet: Callable[..., Any], said: bytes) -> None:
    """A connection that sends nothing, too little, or an unknown secret is refused."""
    fleet = make_fleet(1, hello_timeout=0.3)
    with fleet.worker(0, 1, plane="direct") as client:
        with socket.create_connection(("127.0.0.1", fleet.servers[0]._data_port.port), 10) as connection:
            # It may be refused before it has sent everything.
            with contextlib.suppress(ConnectionError):
                connection.sendall(said)
            assert_ended(connection)
        sums(client)


def test_a_secret_is_good_once(make_fleet: Callable[..., Any]) -> None:
    """A second connection with it is turned away, and the first is not disturbed."""
    fleet = make_fleet(1)
    with fleet.worker(0, 1, plane="direct") as client:
        stream = client._membership.connections[0].stream
        assert stream is not None
        welcome = stream.welcome
        sums(client)
        with socket.create_connection(("127.0.0.1", welcome.data_port), 10) as connection:
            connection.sendall(welcome.data_secret)
            assert_ended(connection)
        sums(client)
