"""Which aggregators run on this worker's host, as far as addresses show.

An address that is not found does not count, nor does that of another pod on the same node. Unix sockets and loopback
addresses do not either: in a list with others, they usually lead to a proxy, and all workers would claim the aggregator
behind it.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

from psum.client.transport.data_dialer import addresses_of
from psum.wire import is_local, split_address

#: How long names may take to be looked up. The worker has just connected to them.
_LOOKUP_SECONDS: Final = 3.0


async def own_aggregators(addresses: Sequence[str]) -> frozenset[int]:
    """The indices of the addresses that belong to this host's interfaces."""
    own = await asyncio.gather(*(_is_own(address) for address in addresses))
    return frozenset(index for index, is_own in enumerate(own) if is_own)


async def _is_own(address: str) -> bool:
    if is_local(address):
        return False
    host, port = split_address(address)
    # TimeoutError is one of its kinds.
    with contextlib.suppress(OSError):
        async with asyncio.timeout(_LOOKUP_SECONDS):
            return any(_has_interface(found, port) for found in await addresses_of(host, port))
    return False


def _has_interface(host: str, port: int) -> bool:
    """Whether this host has an IP address. Sends nothing.

    It talks to its own addresses from the same address. That a socket can be bound would show less: on some hosts,
    sockets can be bound to any address (net.ipv4.ip_nonlocal_bind).
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.suppress(OSError, ValueError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        ours, theirs = probe.getsockname()[0], probe.getpeername()[0]
        return bool(ours == theirs) or ipaddress.ip_address(theirs).is_loopback
    return False
