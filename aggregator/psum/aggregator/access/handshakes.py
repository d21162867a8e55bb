"""Handshakes of TLS that came to nothing on gRPC's port.

gRPC's library tells nobody in this process of a handshake that fails, nor whose it was. What it does is ask for the
certificate when a handshake begins, and pass on the calls of connections that it has let in. So the system is asked
then who is connected: a connection that is gone later, without a call, was refused, or went away by itself.
"""

import contextlib
import ipaddress
import logging
import pathlib
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable, Collection
from typing import Final

from psum.aggregator.access.refusals import Refusals

_log = logging.getLogger(__name__)

Peer = tuple[str, int]
"""An address and a port."""

#: How long a connection that is gone may have been without a call before it is said to have been refused.
_SETTLED_SECONDS: Final = 1.0

#: The share of time that looking at the system's connections may take, and how many seconds at once: there may be tens
#: of thousands, and any number of handshakes.
_SHARE: Final = 0.02
_AT_ONCE_SECONDS: Final = 0.05

_TEXT: Final = (
    "a connection from %s port %d was ended in its TLS handshake, or left before it made a call. A handshake fails if"
    " the peer brings no certificate and one is asked for, or one of another authority, if it does not trust this"
    " aggregator's, or does not speak TLS. Which it was, gRPC tells its own log: GRPC_VERBOSITY=info in the environment"
)


class Handshakes:
    """Connections that have begun a handshake.

    Args:
        patience: Seconds after which gRPC ends a handshake.
        peers: Who is connected to any of these ports, None where the system does not say.
        clock: The time in seconds.
    """

    def __init__(
        self,
        patience: float,
        *,
        peers: "Callable[[Collection[int]], set[Peer] | None] | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ports: tuple[int, ...] = ()
        """The ports with TLS, once they are known."""
        self.refused = Refusals(_log)
        self._patience = patience
        self._peers = connected if peers is None else peers
        self._clock = clock
        self._lock = threading.Lock()
        self._begun: dict[Peer, float] = {}
        """Connections that have made no call yet, and since when they are known."""
        self._known: set[Peer] = set()
        """Those of which nothing more is to be learnt."""
        self._spent = 0.0
        """Seconds that were spent on looking, less those that were earned meanwhile."""
        self._earned_until = clock()

    def begun(self) -> None:
        """A handshake begins. From any thread."""
        with self._lock:
            if (found := self._look()) is not None:
                self._known &= found
                for peer in found - self._known:
                    self._begun.setdefault(peer, self._clock())

    def called(self, peer: str) -> None:
        """A connection that was let in has made a call; the name of its peer is gRPC's."""
        if self.ports and (known := _parse(peer)) is not None:
            with self._lock:
                self._begun.pop(known, None)
                self._known.add(known)

    def tick(self) -> None:
        """Time passes: counts and logs the connections that are gone."""
        now = self._clock()
        with self._lock:
            due = [peer for peer, since in self._begun.items() if now - since >= _SETTLED_SECONDS]
            found = self._look() if due else None
            if found is None:
                return
            gone = [peer for peer in due if peer not in found]
            for peer in due:
                if peer not in found or now - self._begun[peer] > 2 * self._patience:
                    # One that is open for so long was let in.
                    self._known.add(peer)
                    del self._begun[peer]
            self._known &= found
        for host, port in gone:
            self.refused.note("handshake", host, _TEXT, host, port)

    def _look(self) -> set[Peer] | None:
        """Who is connected; None where that is not known, or was asked for too often."""
        begin = self._clock()
        self._spent = max(0.0, self._spent - _SHARE * (begin - self._earned_until))
        self._earned_until = begin
        if not self.ports or self._spent > _AT_ONCE_SECONDS:
            return None
        found = self._peers(self.ports)
        self._spent += self._clock() - begin
        return found


# Address and port of both sides, and the state: established, or ended by the other side alone.
_ROW: Final = rb"^ *\d+: [0-9A-F]+:(?:%s) ([0-9A-F]+):([0-9A-F]{4}) 0[18] "


def connected(ports: Collection[int]) -> set[Peer] | None:
    """Who is connected to any of these ports of this host; None where the system does not say."""
    row = re.compile(_ROW % b"|".join(b"%04X" % port for port in ports), re.MULTILINE)
    found: set[Peer] = set()
    for table in ("tcp", "tcp6"):
        try:
            content = pathlib.Path("/proc/self/net", table).read_bytes()
        except FileNotFoundError:
            # As tcp6 where IPv6 is switched off.
            continue
        except OSError:
            return None
        for address, port in row.findall(content):
            # Words of four bytes in the byte order of this machine.
            words = struct.unpack(f">{len(address) // 8}I", bytes.fromhex(address.decode()))
            family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
            found.add((_plain(socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))), int(port, 16)))
    return found


def _parse(peer: str) -> Peer | None:
    """What gRPC calls a peer, such as ipv6:%5B::1%5D:41234, as an address and a port; None for a unix socket."""
    kind, _, rest = urllib.parse.unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    with contextlib.suppress(ValueError):
        if kind in ("ipv4", "ipv6"):
            return _plain(host.strip("[]")), int(port)
    return None


def _plain(host: str) -> str:
    """An address in one of the ways in which it can be written: without a zone, one of IPv4 as such."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)
