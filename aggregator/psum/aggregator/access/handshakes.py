"""Counts and logs failed TLS handshakes on gRPC's port.

gRPC reports neither that a handshake failed nor who the peer was. But it asks for the certificate when a handshake
begins, and it passes on the calls of accepted connections. So at each handshake the operating system is asked which
peers are connected. A connection that is gone later, without a call, was refused or closed by the peer.
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

#: A connection that is gone counts as refused if it made no call for this long after its handshake began.
_SETTLED_SECONDS: Final = 1.0

#: The share of a processor that listing the system's connections may take, and the most seconds of it in a row. There
#: may be tens of thousands of connections, and any number of handshakes.
_SHARE: Final = 0.02
_AT_ONCE_SECONDS: Final = 0.05

_TEXT: Final = (
    "a connection from %s port %d was ended in its TLS handshake, or the peer closed it before it made a call. A"
    " handshake fails if a certificate is required and the peer sends none or one of another authority, if the peer"
    " does not trust this aggregator's certificate, or if it does not speak TLS. GRPC_VERBOSITY=info in the environment"
    " makes gRPC log the reason"
)


class Handshakes:
    """The connections to TLS ports that have begun a handshake. Its methods may be called in any thread.

    Args:
        patience: Seconds after which gRPC ends a handshake.
        peers: Returns the peers that are connected to any of the given ports; None if the system does not tell.
        clock: The time in seconds.
        work: The processor time of the calling thread in seconds.
    """

    def __init__(
        self,
        patience: float,
        *,
        peers: "Callable[[Collection[int]], set[Peer] | None] | None" = None,
        clock: Callable[[], float] = time.monotonic,
        work: Callable[[], float] = time.thread_time,
    ) -> None:
        self.ports: tuple[int, ...] = ()
        """The ports with TLS; empty before they are bound."""
        self.refused = Refusals(_log)
        self._patience = patience
        self._peers = connected if peers is None else peers
        self._clock = clock
        self._work = work
        self._lock = threading.Lock()
        self._begun: dict[Peer, float] = {}
        """Connections that have made no call yet, with the time when they were first seen."""
        self._known: set[Peer] = set()
        """Connections that have made a call, or have been open for long: they were accepted."""
        self._spent = 0.0
        """Processor seconds spent on listing connections, less the share of the time that has passed since."""
        self._spent_at = clock()

    def begun(self) -> None:
        """Notes that a handshake begins. gRPC calls it in a thread of its own."""
        with self._lock:
            if (found := self._list()) is not None:
                self._known &= found
                for peer in found - self._known:
                    self._begun.setdefault(peer, self._clock())

    def called(self, peer: str) -> None:
        """Notes that an accepted connection has made a call, by gRPC's name of the peer."""
        if self.ports and (known := _parse(peer)) is not None:
            with self._lock:
                self._begun.pop(known, None)
                self._known.add(known)

    def tick(self) -> None:
        """Counts and logs the connections that are gone. Call it several times a second."""
        now = self._clock()
        with self._lock:
            due = [peer for peer, since in self._begun.items() if now - since >= _SETTLED_SECONDS]
            found = self._list() if due else None
            if found is None:
                return
            gone = [peer for peer in due if peer not in found]
            for peer in due:
                if peer not in found or now - self._begun[peer] > 2 * self._patience:
                    # A connection that has been open for this long was accepted.
                    self._known.add(peer)
                    del self._begun[peer]
            self._known &= found
        for host, port in gone:
            self.refused.note("handshake", host, _TEXT, host, port)

    def _list(self) -> set[Peer] | None:
        """The connected peers; None if the system does not tell, or was asked too often."""
        begin = self._clock()
        self._spent = max(0.0, self._spent - _SHARE * (begin - self._spent_at))
        self._spent_at = begin
        if not self.ports or self._spent > _AT_ONCE_SECONDS:
            return None
        worked = self._work()
        found = self._peers(self.ports)
        # Not the time that has passed: where other programs keep the processors busy, handshakes would go unseen.
        self._spent += self._work() - worked
        return found


# Address and port of both sides, and the state: established, or closed by the other side only.
_ROW: Final = rb"^ *\d+: [0-9A-F]+:(?:%s) ([0-9A-F]+):([0-9A-F]{4}) 0[18] "


def connected(ports: Collection[int]) -> set[Peer] | None:
    """The peers that are connected to any of these ports of this host; None if the system does not tell."""
    row = re.compile(_ROW % b"|".join(b"%04X" % port for port in ports), re.MULTILINE)
    found: set[Peer] = set()
    for table in ("tcp", "tcp6"):
        try:
            content = pathlib.Path("/proc/self/net", table).read_bytes()
        except FileNotFoundError:
            # For example tcp6 while IPv6 is off.
            continue
        except OSError:
            return None
        for address, port in row.findall(content):
            # The table has words of four bytes in the byte order of this machine.
            words = struct.unpack(f">{len(address) // 8}I", bytes.fromhex(address.decode()))
            family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
            found.add((_plain(socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))), int(port, 16)))
    return found


def _parse(peer: str) -> Peer | None:
    """gRPC's name of a peer, such as ipv6:%5B::1%5D:41234, as an address and a port; None for a unix socket."""
    kind, _, rest = urllib.parse.unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    with contextlib.suppress(ValueError):
        if kind in ("ipv4", "ipv6"):
            return _plain(host.strip("[]")), int(port)
    return None


def _plain(host: str) -> str:
    """The canonical form of an address: without a zone, and an IPv4 address that is mapped to IPv6 as IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)
