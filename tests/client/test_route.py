"""Where a worker connects to follows from its settings and its host's addresses alone."""

import socket
from collections.abc import Collection, Sequence
from typing import Any

import pytest

from psum.client import ConfigurationError, Elastic, Settings
from psum.client.relay_levels import Level, parse_levels
from psum.client.route import Route, own_address, route_of
from psum.v1 import aggregator_pb2 as pb
from psum.wire import PROTOCOL_VERSION
from psum.wire.errors import ConnectError

FLEET = ("10.0.0.1:50051", "10.0.0.2:50051")


def own(addresses: Sequence[str], *mine: str, name: str = "here") -> str | None:
    """The address that a host of these IP addresses finds its own."""
    return own_address(addresses, name, lambda host: host in mine)


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (FLEET, "10.0.0.2:50051"),
        (("10.0.0.2:2", "10.0.0.2:1"), "10.0.0.2:2"),
        (("[fd00::2]:1", "10.0.0.2:1"), "[fd00::2]:1"),
        (("10.0.0.1:1", "10.0.0.3:1"), None),
        (("there:1", "Here:1", "10.0.0.2:1"), "Here:1"),
        (("here.example:1", "localhost:1"), None),
        (("127.0.0.1:1", "[::1]:1", "0.0.0.0:1", "unix:/run/psum.sock"), None),
    ],
)
def test_the_first_of_this_hosts_addresses_is_found(addresses: tuple[str, ...], expected: str | None) -> None:
    """IP addresses and the host's own name count. What every host has, such as loopback, says nothing."""
    assert own(addresses, "10.0.0.2", "fd00::2", "127.0.0.1", "::1", "0.0.0.0") == expected


def test_a_host_that_can_bind_to_any_address_finds_none() -> None:
    """With net.ipv4.ip_nonlocal_bind, all hosts would take the first address in the list for their own."""
    assert own_address(FLEET, "here", lambda host: True) is None
    assert own_address(("[fd00::2]:1", *FLEET), "here", lambda host: host != "192.0.2.1") == FLEET[0]


def test_names_are_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up takes time, and may fail for one worker of a host and not for the next."""
    looked_up: list[str] = []
    system = socket.getaddrinfo

    def look_up(host: str, port: int, **named: int) -> object:
        if not named.get("flags", 0) & socket.AI_NUMERICHOST:
            looked_up.append(host)
        return system(host, port, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    addresses = ("no-such-host.invalid:1", "198.51.100.7:1", f"{socket.gethostname()}:7")
    settings = Settings(aggregators=addresses, num_workers=4, local_size=2)
    assert route_of(settings) == Route((addresses[2],), 2, found=True)
    assert looked_up == []


def route(settings: Settings, mine: Collection[str] = FLEET) -> Route:
    """The route on a host with these addresses."""
    return route_of(settings, lambda addresses: next((address for address in addresses if address in mine), None))


def test_a_relay_is_used_where_it_saves_something() -> None:
    """It needs several workers here, others elsewhere, another aggregator, and a plane that shares memory."""
    usual: dict[str, Any] = {"aggregators": FLEET, "num_workers": 4, "local_size": 2}
    assert route(Settings(**usual)) == Route(FLEET[:1], 2, found=True)
    assert route(Settings(**usual, plane="shm")).relay == FLEET[0]
    assert route(Settings(**usual, elastic=Elastic(1, 4))).relay == FLEET[0]
    flat = Route(FLEET)
    assert route(Settings(**usual), mine=()) == flat
    for change in (
        {"relay": "off"},
        {"local_size": 1},
        {"num_workers": 2},
        {"plane": "direct"},
        {"plane": "inline"},
        {"tls_ca": "ca.pem"},
    ):
        assert route(Settings(**usual | change)) == flat, change
    assert route(Settings(**usual | {"aggregators": FLEET[:1]})) == Route(FLEET[:1])
    assert (flat.relay, flat.group_size) == ("", 0)


def test_named_relays_are_used_as_they_are() -> None:
    """The nearest relay sums this node's workers unless a number says otherwise; each further one has its number."""
    usual: dict[str, Any] = {"aggregators": FLEET, "num_workers": 32, "local_size": 2}
    assert route(Settings(**usual, relay="near:1")) == Route(("near:1",), 2)
    assert route(Settings(**usual, relay="near:1/4,rack:1/16")) == Route(("near:1",), 4, (Level("rack:1", 16),))
    socket_route = route(Settings(**usual, relay="unix:/run/psum/8,unix:/run/rack/16"))
    assert socket_route == Route(("unix:/run/psum/8",), 2, (Level("unix:/run/rack", 16),))


def test_a_fleet_of_more_processes_changes_no_relay() -> None:
    """Only a worker without a relay connects to the processes."""
    more = (*FLEET, "10.0.0.2:50053")
    assert Route(FLEET).to(more) == Route(more)
    relayed = Route(("near:1",), 4, found=True)
    assert relayed.to(more) is relayed


def test_without_a_relay_a_hello_says_nothing_of_relays() -> None:
    """Its bytes are those of a worker that knows no relays."""
    hello = pb.Hello(protocol_version=PROTOCOL_VERSION, job="night")
    before = hello.SerializeToString()
    Route(FLEET).describe(hello)
    assert hello.SerializeToString() == before
    Route(("near:1",), 4, (Level("rack:1", 16),)).describe(hello)
    assert hello.group_size == 4
    assert [(relay.address, relay.group_size) for relay in hello.next_relays] == [("rack:1", 16)]


@pytest.mark.parametrize("text", ["auto", "off"])
def test_words_name_no_relay(text: str) -> None:
    """Only the host decides then, or nobody."""
    assert parse_levels(text) == ()


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("on", "expected auto, off or a relay's address"),
        ("", "expected auto, off or a relay's address"),
        ("near:0", "port 0"),
        ("near:1/0", "'near:1/0' does not end with the number of ranks"),
        ("near:1/all", "does not end with the number of ranks"),
        (
            "near:1,rack:1",
            "'rack:1' does not end with the number of ranks that this relay sums, such as rack-3:",
        ),
        ("near:1,unix:/run/rack", "does not end with the number of ranks"),
        ("near:1,/16", "expected host:port"),
    ],
)
def test_a_value_that_names_no_relay_is_refused(value: str, complaint: str) -> None:
    """The error says what was expected."""
    with pytest.raises(ValueError, match=complaint):
        parse_levels(value)


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"PSUM_AGGREGATORS": ""}, "a relay forwards to aggregators, and none are named; set PSUM_AGGREGATORS"),
        ({"PSUM_RELAY": "near:1/5"}, "relay near:1 would wait for 5 ranks .* and the job has 4"),
        (
            {"PSUM_RELAY": "near:1/3,rack:1/2"},
            "relay rack:1 would sum 2 ranks, fewer than the 3 of the relay",
        ),
        ({"PSUM_RELAY": "near:1,rack:1/4,near:1/4"}, "names a relay twice"),
        ({"PSUM_TOKEN_FILE": "/t"}, "to near:1 the token would travel unencrypted"),
    ],
)
def test_relays_that_cannot_work_are_refused(environ: dict[str, str], complaint: str) -> None:
    """The error says what is wrong with the relays together with the other settings."""
    usual = {"PSUM_AGGREGATORS": "a:1,b:1", "PSUM_NUM_WORKERS": "4", "PSUM_LOCAL_SIZE": "2", "PSUM_RELAY": "near:1"}
    with pytest.raises(ConfigurationError, match=complaint):
        Settings.from_environment(usual | environ)


def test_a_token_goes_to_the_relay_only() -> None:
    """A relay on this host may get it without TLS, though the aggregators are elsewhere."""
    environ = {"PSUM_AGGREGATORS": "a:1", "PSUM_NUM_WORKERS": "4", "PSUM_LOCAL_SIZE": "2", "PSUM_TOKEN_FILE": "/t"}
    settings = Settings.from_environment(environ | {"PSUM_RELAY": "unix:/run/psum.sock"})
    assert list(settings.warnings()) == []


def test_a_relay_for_one_worker_is_doubted() -> None:
    """Where a relay is named, the number of workers on the node has probably been forgotten."""
    environ = {"PSUM_AGGREGATORS": "a:1", "PSUM_NUM_WORKERS": "4", "PSUM_RELAY": "near:1"}
    (warning,) = Settings.from_environment(environ).warnings()
    assert warning.startswith("PSUM_RELAY=near:1: the number of workers on this node (PSUM_LOCAL_SIZE) is not set")
    for known in ({"PSUM_LOCAL_SIZE": "1"}, {"PSUM_RELAY": "near:1/1"}):
        assert list(Settings.from_environment(environ | known).warnings()) == []


@pytest.mark.parametrize("about", FLEET)
def test_an_error_of_a_relay_that_nobody_named_says_how_to_go_without(about: str) -> None:
    """Also if the relay cannot talk to another aggregator, as where TLS was set up before there were relays."""
    found, named = Route(FLEET[:1], 2, found=True), Route(FLEET[:1], 2)
    error = ConnectError("no trust", address=about)
    assert "PSUM_RELAY=off" in str(found.explained(error))
    assert found.explained(error).address == about
    assert named.explained(error) is error
