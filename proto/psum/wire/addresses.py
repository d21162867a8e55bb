"""Addresses of aggregators: `host:port`, `[ipv6]:port` or `unix:/path`."""

import contextlib
import ipaddress
import re

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:/\[\]\s]+):(\d{1,5})")


def parse_address(text: str) -> str:
    """Checks an address and returns it in the form that gRPC takes.

    Raises:
        ValueError: It is none.
    """
    text = text.strip()
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if not path:
            raise ValueError("expected a path after unix:")
        if len(path.encode()) > 107:
            raise ValueError(f"a unix socket's path has at most 107 bytes, this one has {len(path.encode())}")
        return f"unix:{path}"
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise ValueError(f"{text!r} is not an address; expected host:port, [ipv6]:port or unix:/path")
    return text


def parse_destination(text: str) -> str:
    """The same for an address to connect to, which has no port 0.

    Raises:
        ValueError: It is none.
    """
    address = parse_address(text)
    if not address.startswith("unix:") and split_address(address)[1] == 0:
        raise ValueError(
            f"{address!r} has port 0, which to an aggregator's --listen means any free port; expected the port that it"
            " listens on, which its log and --announce tell"
        )
    return address


def split_address(address: str) -> tuple[str, int]:
    """Host, without the brackets of IPv6, and port of an address that is no unix socket's."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """The address of a host and a port, with IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def canonical(address: str) -> str:
    """The one way in which addresses are written that mean the same; what is no address stays as it is.

    It does not look names up: a name and its address are two.
    """
    try:
        address = parse_address(address)
    except ValueError:
        return address
    if address.startswith("unix:"):
        return address
    host, port = split_address(address)
    with contextlib.suppress(ValueError):
        host = str(ipaddress.ip_address(host))
    return join_address(host.lower(), port)


def is_local(address: str) -> bool:
    """Whether only this machine can reach the address: a unix socket or a loopback address."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
