"""The parts of an aggregator of several processes: ports, memory budget, pauses before another start."""

import socket
from collections.abc import Iterator

import pytest

from faults.aggregators import free_ports
from psum.aggregator import Settings
from psum.aggregator.processes.ports import Ports
from psum.aggregator.processes.restarts import Restarts
from psum.aggregator.processes.shared_budget import Reservations, SharedBudget
from psum.wire.errors import ConfigurationError


@pytest.fixture
def ports() -> Iterator[Ports]:
    """Ports that are free again after the test."""
    with Ports() as reserved:
        yield reserved


def test_each_process_has_ports_of_its_own(ports: Ports) -> None:
    """Free ports are chosen once. While nobody listens there, no other program gets them; a process can listen."""
    given = Settings(listen=("127.0.0.1:0", "unix:/tmp/s"), processes=3, threads=8, http="127.0.0.1:1")
    each = ports.reserve(given)
    assert [settings.listen[1] for settings in each] == ["unix:/tmp/s", "unix:/tmp/s.1", "unix:/tmp/s.2"]
    found = [int(settings.listen[0].split(":")[1]) for settings in each] + [settings.data_port for settings in each]
    assert len(set(found)) == 6
    assert 0 not in found
    # The threads are those of all together; the supervisor serves HTTP.
    assert {(settings.threads, settings.http) for settings in each} == {(2, "")}
    for port in found:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        socket.create_server(("127.0.0.1", port)).close()


def test_ports_that_are_given_rise_by_two(ports: Ports) -> None:
    """The usual pair of ports gives one range without gaps."""
    first, *others = free_ports(6)
    listen = (f"127.0.0.1:{first}", f"127.0.0.2:{first}")
    each = ports.reserve(Settings(listen=listen, data_port=first + 1, processes=3))
    assert [settings.listen for settings in each] == [
        (f"127.0.0.1:{port}", f"127.0.0.2:{port}") for port in (first, *others[1::2])
    ]
    assert [settings.data_port for settings in each] == others[::2]


def test_a_port_that_is_taken_is_named(ports: Ports) -> None:
    """Also one that only a further process needs."""
    first, *_, last = free_ports(3)
    text = rf"listen: cannot listen on 127.0.0.1:{last} .*in use already"
    with socket.create_server(("127.0.0.1", last)), pytest.raises(ConfigurationError, match=text):
        ports.reserve(Settings(listen=(f"127.0.0.1:{first}",), processes=2))


def test_the_budget_is_that_of_all_processes() -> None:
    """Together they reserve no more than the limit. What a process had is free again when it has ended."""
    reservations = Reservations.make(2)
    one, two = (SharedBudget(100, Reservations(reservations.descriptor, 2), number) for number in range(2))
    assert one.reserve(60)
    assert not two.reserve(41)
    assert two.reserve(40)
    assert (one.free_bytes, one.reserved_bytes, two.reserved_bytes) == (0, 60, 40)
    one.release(10)
    assert two.free_bytes == 10
    reservations[0] = 0
    assert two.free_bytes == 60
    unlimited = SharedBudget(0, reservations, 0)
    assert unlimited.reserve(1 << 60)


def test_pauses_grow_while_a_process_does_not_stay() -> None:
    """The first start comes at once, and so does one of a process that has served for long."""
    restarts = Restarts()
    assert [restarts.pause(0.5) for _ in range(10)] == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    assert [restarts.pause(60), restarts.pause(1)] == [0, 0.1]
    assert restarts.count == 12
