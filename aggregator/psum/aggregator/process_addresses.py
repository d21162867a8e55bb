"""The addresses of the further processes of an aggregator, which follow from those of the first one.

A process takes two ports, for streams and for data. So with the usual pair of neighbouring ports, all processes
together have one range of ports without gaps: 50051 to 50058 for four processes.
"""

from typing import Final

from psum.wire import parse_address

_PORTS_EACH: Final = 2
_LAST_PORT: Final = 65535


def nth_port(port: int, number: int) -> int:
    """The port of the process with a number, from 0. Port 0, which stands for any free port, stays.

    Raises:
        ValueError: There is no such port.
    """
    if not port:
        return 0
    if (found := port + _PORTS_EACH * number) > _LAST_PORT:
        raise ValueError(f"process {number} would have port {found}, and ports go up to {_LAST_PORT}")
    return found


def nth_address(address: str, number: int) -> str:
    """The address of the process with a number, from 0.

    Raises:
        ValueError: There is no such address.
    """
    if not number:
        return address
    if address.startswith("unix:"):
        return parse_address(f"{address}.{number}")
    host, _, port = address.rpartition(":")
    return f"{host}:{nth_port(int(port), number)}"
