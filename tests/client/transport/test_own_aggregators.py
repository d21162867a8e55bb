"""Which aggregators run on this host, as their addresses show."""

import socket

import pytest

from psum.client.transport import own_aggregators as module
from psum.client.transport.own_aggregators import own_aggregators


async def test_this_host_s_name_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lead to a loopback address here. Sockets and loopback addresses by themselves show nothing, as they may
    lead to a proxy; nor do other hosts' addresses and unknown names."""

    async def addresses_of(host: str, port: int) -> list[str]:
        known = {"me": ["192.0.2.7", "127.0.1.1"], "other": ["192.0.2.7"]}
        if host not in known:
            raise OSError("no such name")
        return known[host]

    monkeypatch.setattr(module, "addresses_of", addresses_of)
    addresses = ["unix:/run/a", "127.0.0.1:1", "me:1", "other:1", "nobody:1", "localhost:1", "[::1]:1"]
    assert await own_aggregators(addresses) == {2}


async def test_an_interface_s_address_is_this_host_s() -> None:
    """Where this machine has an address that others can reach, it is its own; an address nearby is not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no route to other machines")
        mine = probe.getsockname()[0]
    assert await own_aggregators([f"{mine}:1", "192.0.2.1:1", "[2001:db8::1]:1"]) == {0}
