"""Connections whose TLS handshake fails are counted and logged with their address, although gRPC reports nothing."""

import logging
import socket
from collections.abc import Collection

import pytest

from psum.aggregator.access.handshakes import Handshakes, Peer, connected

STRANGER, WORKER = ("10.0.0.7", 41000), ("10.0.0.8", 42000)


class Network:
    """The connected peers and the time; listing the peers takes some processor time, and may have to wait for it."""

    def __init__(self) -> None:
        self.open: set[Peer] = set()
        self.now = 100.0
        self.worked = 0.0
        self.cost = 0.0
        self.wait = 0.0
        self.looks = 0

    def peers(self, ports: Collection[int]) -> set[Peer]:
        assert ports == (50051,)
        self.looks += 1
        self.now += self.cost + self.wait
        self.worked += self.cost
        return set(self.open)


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def handshakes(network: Network) -> Handshakes:
    made = Handshakes(10.0, peers=network.peers, clock=lambda: network.now, work=lambda: network.worked)
    made.ports = (50051,)
    return made


def test_a_connection_that_is_gone_without_a_call_is_counted_and_named(
    handshakes: Handshakes, network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that makes a call or stays open does not count, and each counts once."""
    network.open = {STRANGER, WORKER}
    handshakes.begun()
    handshakes.called("ipv4:10.0.0.8:42000")
    network.open = {("10.0.0.9", 43000)}
    handshakes.begun()
    for _ in range(40):
        network.now += 0.6
        handshakes.tick()
    assert handshakes.refused.counts == {"handshake": 1}
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "a connection from 10.0.0.7 port 41000 was ended in its TLS handshake" in record.getMessage()


@pytest.mark.parametrize("name", ["ipv6:%5B::ffff:10.0.0.8%5D:42000", "ipv4:10.0.0.8:42000"])
def test_an_address_is_the_same_however_it_is_written(handshakes: Handshakes, network: Network, name: str) -> None:
    """gRPC's name of an IPv4 peer depends on the socket that it listens on."""
    network.open = {WORKER}
    handshakes.begun()
    handshakes.called(name)
    network.open = set()
    network.now += 5
    handshakes.tick()
    assert not handshakes.refused.counts


def test_an_address_that_comes_again_is_another_connection(handshakes: Handshakes, network: Network) -> None:
    """A refused connection counts although an earlier one from the same address was accepted."""
    network.open = {WORKER}
    handshakes.begun()
    handshakes.called("ipv4:10.0.0.8:42000")
    network.open = {STRANGER}
    handshakes.begun()
    network.open = {STRANGER, WORKER}
    handshakes.begun()
    network.open = set()
    network.now += 5
    handshakes.tick()
    assert handshakes.refused.counts == {"handshake": 2}


def test_any_number_of_handshakes_takes_little_time(handshakes: Handshakes, network: Network) -> None:
    """Where a look takes 10 ms, since there are thousands of connections, ten thousand handshakes in a second take a
    tenth of it."""
    network.cost = 0.01
    for _ in range(10_000):
        handshakes.begun()
        network.now += 0.0001
    assert network.looks < 12
    network.now += 10
    handshakes.begun()
    assert network.looks < 13


def test_no_handshake_is_missed_because_other_programs_keep_the_processors_busy(
    handshakes: Handshakes, network: Network
) -> None:
    """A look that waits for a processor for long is followed by others all the same."""
    network.wait = 0.1
    for port in range(3):
        network.open = {("10.0.0.7", port)}
        handshakes.begun()
    network.open = set()
    network.now += 5
    handshakes.tick()
    assert handshakes.refused.counts == {"handshake": 3}


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_system_says_who_is_connected(family: socket.AddressFamily, host: str) -> None:
    """The peers of the given ports, as long as they are connected."""
    with socket.socket(family) as listener, socket.socket(family) as peer:
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert connected((port,)) == set()
        peer.connect((host, port))
        with listener.accept()[0]:
            assert connected((port, 1)) == {peer.getsockname()[:2]}
            assert connected((1,)) == set()
        assert connected((port,)) == set()
