"""Addresses of aggregators: `host:port`, `[ipv6]:port` or `unix:/path`."""

import contextlib
import ipaddress
import re

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:/\[\]\s]+):(\d{1,5})")


def parse_address(text: str) -> str:
    """Check an address and return it in gRPC's form.

    Raises:
        ValueError: The text is not an address.
    """
    text = text.strip()
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if not path:
            raise ValueError("expected a path after unix:")
        if len(path.encode()) > 107:
            raise ValueError(f"the path of a unix socket has {len(path.encode())} bytes; expected at most 107")
        return f"unix:{path}"
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise ValueError(f"{text!r} is not an address; expected host:port, [ipv6]:port or unix:/path")
    return text


def parse_destination(text: str) -> str:
    """Check an address to connect to, as `parse_address` does. Its port must not be 0.

    Raises:
        ValueError: The text is not such an address.
    """
    address = parse_address(text)
    if not address.startswith("unix:") and split_address(address)[1] == 0:
        raise ValueError(
            f"{address!r} has port 0, which only means 'any free port' in an aggregator's --listen; expected the port"
            " that the aggregator listens on, which is in its log and in the file of --announce"
        )
    return address


def split_address(address: str) -> tuple[str, int]:
    """Split an address into host and port. The host has no brackets. Unix sockets are not allowed."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """Join host and port to an address, with IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def canonical(address: str) -> str:
    """Return the canonical spelling of an address. Other text is returned unchanged.

    This does not resolve names: a host's name and its IP address stay different.
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
    """Return whether only this machine can reach the address, as with unix sockets and loopback addresses."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
