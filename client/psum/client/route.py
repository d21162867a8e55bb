"""Where a worker connects to: to every aggregator, or to one relay that forwards to them.

All workers of a host must decide alike, and none can ask another. So the decision depends only on their settings and on
the host's own name and addresses. It looks nothing up in the network.
"""

import contextlib
import dataclasses
import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Final

from psum.client.declared_settings import DeclaredSettings
from psum.client.relay_levels import AUTO, Level
from psum.v1 import aggregator_pb2 as pb
from psum.wire import split_address
from psum.wire.errors import ConnectError

#: Addresses for documentation, which no host has. If a socket can be bound to one, as with net.ipv4.ip_nonlocal_bind,
#: it can be bound to any, and shows nothing.
_NOBODYS: Final = {4: "192.0.2.1", 6: "2001:db8::1"}

#: The planes on which a worker may share memory with an aggregator on its host.
_SHARING_PLANES: Final = ("auto", "shm")


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """A worker's connections, and the relays behind them.

    Attributes:
        connections: The addresses that the worker connects to: the aggregators', or the relay's.
        group_size: How many ranks the relay sums; 0 without a relay.
        next_relays: The relays that the relay forwards to, the nearest first.
        found: Whether the worker has found its relay by itself.
    """

    connections: tuple[str, ...]
    group_size: int = 0
    next_relays: tuple[Level, ...] = ()
    found: bool = False

    @property
    def relay(self) -> str:
        """The relay's address; empty without a relay."""
        return self.connections[0] if self.group_size else ""

    def to(self, aggregators: tuple[str, ...]) -> "Route":
        """The same route in a fleet of these aggregators, as it turned out to be."""
        return self if self.group_size else dataclasses.replace(self, connections=aggregators)

    def explained(self, error: ConnectError) -> ConnectError:
        """An error with what the user must know if a relay that nobody named has caused it."""
        if not self.found:
            return error
        which = "That" if error.address == self.relay else f"Relay {self.relay}"
        return ConnectError(
            f"{error} ({which} is the aggregator of this host, which its workers use as their relay; PSUM_RELAY=off on"
            " all of them goes without.)",
            address=error.address,
        )

    def describe(self, hello: pb.Hello) -> None:
        """Writes into a hello what the relay must know. Without a relay, nothing."""
        hello.group_size = self.group_size
        hello.next_relays.extend(
            pb.Relay(address=level.address, group_size=level.group_size or 0) for level in self.next_relays
        )


def route_of(settings: DeclaredSettings, own: Callable[[Sequence[str]], str | None] | None = None) -> Route:
    """Decides where a worker connects to.

    Args:
        settings: The worker's settings.
        own: Finds the first address in a list that is this host's own. By default, `own_address` with this host's name.
    """
    if settings.relays:
        nearest, *others = settings.relays
        return Route((nearest.address,), nearest.group_size or settings.local_size, tuple(others))
    if settings.relay == AUTO and _would_gain(settings):
        address = (own or _own_address_here)(settings.aggregators)
        if address is not None:
            return Route((address,), settings.local_size, found=True)
    return Route(settings.aggregators)


def own_address(addresses: Sequence[str], host_name: str, can_bind: Callable[[str], bool]) -> str | None:
    """The first address that is this host's own; None if there is none.

    Unix sockets and loopback addresses do not count: where they are in a list for several hosts, something there passes
    connections on to another host. Names count only if they are the host's own, since looking up others takes time,
    and may fail for one worker of a host and not for the next.

    Args:
        addresses: The addresses, in order.
        host_name: This host's name.
        can_bind: Whether a socket can be bound to an IP address.
    """
    proof: dict[int, bool] = {}
    for address in addresses:
        if address.startswith("unix:"):
            continue
        host, _ = split_address(address)
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            if host.lower() == host_name.lower() != "localhost":
                return address
            continue
        if ip.is_loopback or ip.is_unspecified:
            continue
        if ip.version not in proof:
            proof[ip.version] = not can_bind(_NOBODYS[ip.version])
        if proof[ip.version] and can_bind(host):
            return address
    return None


def _would_gain(settings: DeclaredSettings) -> bool:
    """Whether a relay on this host would save something: several workers here, others elsewhere, a shared memory.

    With TLS nobody knows here whether it has what it needs to trust the others.
    """
    return (
        1 < settings.local_size < settings.num_workers
        and len(settings.aggregators) > 1
        and settings.plane in _SHARING_PLANES
        and not settings.tls
    )


def _own_address_here(addresses: Sequence[str]) -> str | None:
    return own_address(addresses, socket.gethostname(), _can_bind)


def _can_bind(host: str) -> bool:
    """Whether this host has an IP address. Sends nothing."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, 0, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return True
    return False
