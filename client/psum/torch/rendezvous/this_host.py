"""Which host this is, and by which address others reach it."""

import contextlib
import os
import pathlib
import socket
from typing import Final

#: An address for documentation, to which no host has a route of its own: the default route leads there.
_ANYWHERE: Final = "192.0.2.1"

#: Any port: nothing is sent.
_PORT: Final = 9


def identity() -> str:
    """What tells this host apart from others: its name, its boot, and its network.

    Containers on one machine have networks of their own, and the same boot.
    """
    boot, network = "", ""
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        network = os.readlink("/proc/self/ns/net")
    return f"{socket.gethostname()} {boot} {network}"


def address_towards(host: str) -> str:
    """The IP address by which this host reaches another one, or itself. Sends nothing.

    Args:
        host: A name or an IP address; empty: any host outside.

    Returns:
        The address; empty if there is no way there.
    """
    with contextlib.suppress(OSError, UnicodeError):
        for family, kind, _, _, where in socket.getaddrinfo(host or _ANYWHERE, _PORT, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
                probe.connect(where)
                # A link-local address carries the name of an interface, which means nothing elsewhere.
                return str(probe.getsockname()[0]).partition("%")[0]
    return ""
