"""Addresses of aggregators."""

import pytest

from psum.wire import is_local, join_address, parse_address, parse_destination, split_address


@pytest.mark.parametrize("address", ["a:1", "[::1]:65535", "unix:/x", "unix:/x:0"])
def test_an_address_to_connect_to(address: str) -> None:
    """It is returned in gRPC's form."""
    assert parse_destination(f" {address}") == address


@pytest.mark.parametrize("address", ["a:0", "[::1]:00"])
def test_nobody_listens_on_port_0(address: str) -> None:
    """The error explains port 0 and says what was expected."""
    with pytest.raises(
        ValueError,
        match="means 'any free port' in an aggregator's --listen; expected the port that the aggregator listens on",
    ):
        parse_destination(address)


@pytest.mark.parametrize(("address", "parts"), [("a:1", ("a", 1)), ("[::1]:5", ("::1", 5))])
def test_host_and_port(address: str, parts: tuple[str, int]) -> None:
    """An address is split, and its parts give the address again."""
    assert split_address(address) == parts
    assert join_address(*parts) == address


@pytest.mark.parametrize(
    "text", ["127.0.0.1:50051", "localhost:0", "[::1]:80", "psum-0.psum:50051", "unix:/run/psum.sock"]
)
def test_addresses_are_accepted_as_they_are(text: str) -> None:
    """host:port, [ipv6]:port and unix:/path are addresses."""
    assert parse_address(f" {text} ") == text


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":50051", "host:99999", "::1:50051", "http://host:1", "unix:", "unix:" + "x" * 108]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """Other text raises ValueError."""
    with pytest.raises(ValueError, match=r"expected|at most"):
        parse_address(text)


def test_local_addresses_are_told_from_those_that_others_can_reach() -> None:
    """Loopback addresses and unix sockets are local. Names and other addresses are not."""
    assert all(map(is_local, ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/x"]))
    assert not any(map(is_local, ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "psum-0.psum:1"]))
