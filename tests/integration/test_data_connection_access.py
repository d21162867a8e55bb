"""Who may use a data port: encrypted where the stream is, and only those whom the aggregator gave a secret."""

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import pytest

from psum.planes import SECRET_BYTES
from tests.integration.credential_files import Files
from tests.integration.many_sizes import sums


def test_it_is_encrypted_where_the_stream_is(make_fleet: Callable[..., Any], files: Files) -> None:
    """The same files are used, and connections without TLS are refused."""
    fleet = make_fleet(1, **files.certificate("server", "127.0.0.1"))
    inline = fleet.on_every_rank(2, sums, plane="inline", tls_ca=files.ca, job="inline")
    assert fleet.on_every_rank(2, sums, plane="direct", tls_ca=files.ca) == inline
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
    fleet = make_fleet(1, hello_timeout=1.0)
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
