"""What travels on a data connection: payloads and messages, with the same sums as on the stream."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.client.transport.data_dialer import DialProspects
from psum.planes.tcp import limit_sending
from psum.wire import FAR_BATCH_BYTES
from tests.integration.many_sizes import few_sums, message_bytes, plane_of, sums
from tests.polling import wait_until


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
        sent = message_bytes(client, monkeypatch)
        client.store().push_pull("w", np.ones(4 << 20, np.float32))
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


@pytest.mark.parametrize("plane", ["direct", "shm", "inline"])
def test_the_status_says_how_payloads_cross(make_fleet: Callable[..., Any], plane: str) -> None:
    """The status names each worker's plane."""
    fleet = make_fleet(1)
    with fleet.worker(0, 1, plane=plane):
        wait_until(lambda: plane_of(fleet) == plane)


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
