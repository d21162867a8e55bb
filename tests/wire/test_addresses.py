"""Addresses to connect to."""

import pytest

from psum.wire import join_address, parse_destination, split_address


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
