"""Workers on other hosts send large payloads on a data connection: same sums, and messages where it cannot be."""

import contextlib
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import trustme

from psum import client as psum
from psum.wire import SECRET_BYTES, report_of
from tests.polling import wait_until


def sums(client: psum.Client) -> list[bytes]:
    """What some rounds of keys of many sizes give."""
    chance = np.random.default_rng(client.rank)
    store = client.store()
    values = [chance.standard_normal(size).astype(np.float32) for size in (3, 20_000, 700_000, 1_000_001)]
    for _ in range(4):
        for future in [store.push_pull_async(i, value, priority=-i) for i, value in enumerate(values)]:
            future.result(20)
        for value in values:
            value *= np.float32(0.25)
    store.broadcast("b", values[2])
    return [value.tobytes() for value in values]


def test_the_sums_are_those_of_messages_bit_for_bit(make_fleet: Callable[..., Any]) -> None:
    """On two aggregators, also where each of three workers uses another plane."""
    inline = make_fleet(2).on_every_rank(3, sums, plane="inline")
    assert make_fleet(2).on_every_rank(3, sums, plane="direct") == inline
    fleet = make_fleet(2)
    clients = [fleet.worker(rank, 3, plane=plane) for rank, plane in enumerate(("shm", "inline", "direct"))]
    assert [client.planes for client in clients] == [("shm",) * 2, ("inline",) * 2, ("direct",) * 2]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(sums, clients, timeout=60)) == inline
        list(pool.map(psum.Client.close, clients))


def test_large_payloads_do_not_travel_in_messages(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the messages have is little, whatever the tensors' size."""
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
    """Once it is open, a worker says nothing on the stream any more, to its goodbye."""
    fleet = make_fleet(1)
    clients = [fleet.worker(rank, 2, plane=plane) for rank in range(2)]
    for client in clients:
        monkeypatch.setattr(client._links[0]._call, "write", None)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(sums, clients, timeout=60))
        list(pool.map(psum.Client.close, clients))


def way(fleet: Any) -> str:
    """How rank 0's payloads cross, as the aggregator's status says."""
    told = report_of(psum.fetch_status(fleet.addresses[0]))
    return str(told["jobs"][0]["workers"][0]["way"])


@pytest.mark.parametrize("plane", ["direct", "shm", "inline"])
def test_the_status_says_how_payloads_cross(make_fleet: Callable[..., Any], plane: str) -> None:
    """For each worker."""
    fleet = make_fleet(1)
    with fleet.worker(0, 1, plane=plane):
        wait_until(lambda: way(fleet) == plane)


@pytest.mark.parametrize(("plane", "left", "told"), [("direct", "inline", "inline"), ("shm", "shm", "shm, stream")])
def test_a_port_that_cannot_be_reached_is_no_obstacle(
    make_fleet: Callable[..., Any], caplog: pytest.LogCaptureFixture, plane: str, left: str, told: str
) -> None:
    """As behind a firewall or a proxy: messages stay on the stream, with all that memory does not share; the log says
    why, and the status that it is so."""
    fleet = make_fleet(1)
    fleet.thread.run(fleet.servers[0]._data_port.close(), 10)
    with fleet.worker(0, 1, plane=plane) as client:
        assert client.planes == (left,)
        assert way(fleet) == told
        sums(client)
    assert "it cannot open a data connection to port" in caplog.text


def test_a_data_connection_that_breaks_is_opened_anew_with_its_stream(make_fleet: Callable[..., Any]) -> None:
    """In the midst of payloads, either side's: nothing is lost."""
    inline = make_fleet(1).on_every_rank(2, sums, plane="inline")
    fleet = make_fleet(1)
    clients = [fleet.worker(rank, 2, plane="direct") for rank in range(2)]
    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(sums, client) for client in clients]

        def cut() -> None:
            for client in clients:
                if client._thread is not None and client._links[0]._pipe is not None:
                    client._thread.call(client._links[0]._pipe.close)

        for _ in range(5):
            time.sleep(0.02)
            cut()
        assert [result.result(60) for result in results] == inline
        list(pool.map(psum.Client.close, clients))


def test_it_is_encrypted_where_the_stream_is(make_fleet: Callable[..., Any], tmp_path: Any) -> None:
    """With the same files; without TLS nothing is taken there."""
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    files = {name: str(tmp_path / f"{name}.pem") for name in ("tls_cert", "tls_key", "tls_ca")}
    issued.cert_chain_pems[0].write_to_path(files["tls_cert"])
    issued.private_key_pem.write_to_path(files["tls_key"])
    ca.cert_pem.write_to_path(files["tls_ca"])
    fleet = make_fleet(1, tls_cert=files["tls_cert"], tls_key=files["tls_key"])
    inline = fleet.on_every_rank(2, sums, plane="inline", tls_ca=files["tls_ca"], job="inline")
    assert fleet.on_every_rank(2, sums, plane="direct", tls_ca=files["tls_ca"]) == inline
    with socket.create_connection(("127.0.0.1", fleet.servers[0]._data_port.port), 10) as stranger:
        stranger.sendall(bytes(SECRET_BYTES))
        assert_ended(stranger)


def assert_ended(stranger: socket.socket) -> None:
    """The other side ends the connection, whatever it may say before."""
    stranger.settimeout(10)
    try:
        while stranger.recv(4096):
            pass
    except ConnectionResetError:
        pass


@pytest.mark.parametrize(
    "said",
    [b"", b"GET / HTTP/1.1\n", bytes(SECRET_BYTES), bytes(1 << 20)],
)
def test_a_stranger_is_turned_away(make_fleet: Callable[..., Any], said: bytes) -> None:
    """Who says nothing or too little, or shows a secret that was not given out, whatever follows it."""
    fleet = make_fleet(1, hello_timeout=0.3)
    with fleet.worker(0, 1, plane="direct") as client:
        with socket.create_connection(("127.0.0.1", fleet.servers[0]._data_port.port), 10) as stranger:
            # It may be turned away before it has said all.
            with contextlib.suppress(ConnectionError):
                stranger.sendall(said)
            assert_ended(stranger)
        sums(client)


def test_a_secret_is_good_once(make_fleet: Callable[..., Any]) -> None:
    """A second connection with it is turned away, and the first is not disturbed."""
    fleet = make_fleet(1)
    with fleet.worker(0, 1, plane="direct") as client:
        welcome = client._links[0].welcome
        assert welcome is not None
        sums(client)
        with socket.create_connection(("127.0.0.1", welcome.data_port), 10) as stranger:
            stranger.sendall(welcome.data_secret)
            assert_ended(stranger)
        sums(client)
