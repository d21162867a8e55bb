"""Options of TCP connections, and what the kernel tells of them. They are Linux's."""

import contextlib
import ipaddress
import pathlib
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final

from psum.planes.send_limit import Progress

#: Congestion control without pacing, which every kernel has.
_WITHOUT_PACING: Final = b"reno"

#: Congestion controls that pace.
_WITH_PACING: Final = b"bbr"

#: Socket option since Linux 5.11, which Python's socket module lacks. With 0 the kernel chooses buffer sizes again.
_SO_BUF_LOCK: Final = 72

#: The size and fields of the kernel's struct tcp_info. Older kernels know fewer fields.
_INFO_BYTES: Final = 160
_ACKNOWLEDGED: Final = struct.Struct("=120xQ")
_ROUND_TRIP_MICROSECONDS: Final = struct.Struct("=68xI")
_SHORTEST_MICROSECONDS: Final = struct.Struct("=148xI")

#: The kernel keeps what it is to send in pieces of up to 64 KiB, which take 66,000 bytes with their overhead. It asks
#: for more when at most two thirds of the buffer are full. If the buffer is a multiple of one and a half pieces, two
#: thirds are a whole number of pieces. If it is slightly smaller, the kernel waits until one more is acknowledged, and
#: links of 200 Mbit/s idle for 4 % of the time. A buffer that holds a single piece stays as it is: with very many
#: connections to a host, more of them would fill the queues.
_PIECE_BYTES: Final = 66_000
_WAKING_BYTES: Final = 99_500

#: The kernel allows twice as many bytes as a program asks for, and counts its own overhead.
_LARGEST_BUFFER: Final = pathlib.Path("/proc/sys/net/core/wmem_max")


def on_this_host(peer: Sequence[Any], own: Sequence[Any] | None) -> bool:
    """Whether a connection between two socket addresses stays on this host. Its packets then go over the loopback."""
    return ipaddress.ip_address(peer[0].partition("%")[0]).is_loopback or (own is not None and own[0] == peer[0])


def probe_when_silent(connection: socket.socket, keepalive: float) -> None:
    """Probes the other side after so many seconds of silence, and breaks the connection as many seconds later."""
    # The kernel takes whole seconds up to some hours for the probes, and milliseconds of 31 bits for the time-out.
    seconds = max(1, min(round(keepalive), 32767))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1)
    # There are no probes while something is not acknowledged. A busy process may leave it unread for a while, and the
    # stream's own probes find out sooner that a host is gone.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 6000 * seconds)


def do_not_pace(connection: socket.socket) -> None:
    """Replaces a congestion control that paces. Where nothing is lost, pacing only takes time.

    On the loopback, BBR's takes a quarter of the processor time. On a network with short round trips, BBR takes a
    connection that had nothing to send for a while for one on a slow way.
    """
    # With another one it works as well.
    with contextlib.suppress(OSError):
        chosen = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        if chosen.startswith(_WITH_PACING):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _WITHOUT_PACING)


def progress_of(connection: socket.socket) -> Progress:
    """How far a connection is.

    Raises:
        OSError: It is broken, or the kernel is too old to tell.
    """
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    if len(info) < _INFO_BYTES:
        raise OSError("the kernel does not tell how far a connection is")
    (acknowledged,) = _ACKNOWLEDGED.unpack_from(info)
    (round_trip,) = _ROUND_TRIP_MICROSECONDS.unpack_from(info)
    (shortest,) = _SHORTEST_MICROSECONDS.unpack_from(info)
    return Progress(acknowledged, round_trip / 1e6, shortest / 1e6)


def limit_sending(connection: socket.socket, size: int) -> None:
    """Sets how many bytes the kernel takes of a connection until the other side has acknowledged some.

    Beyond what this system lets a program ask for, the kernel chooses.

    Raises:
        OSError: The connection is broken.
    """
    if size > _PIECE_BYTES:
        size = _WAKING_BYTES * max(round(size / _WAKING_BYTES), 1)
    # The kernel doubles the number. About half of the buffer's memory holds payload, but large packets waste little.
    if size // 2 <= _largest_buffer():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size // 2)
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _largest_buffer())
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)


def _largest_buffer() -> int:
    global _largest
    if _largest is None:
        try:
            _largest = int(_LARGEST_BUFFER.read_text())
        except (OSError, ValueError):
            # What Linux allows by default.
            _largest = 212_992
    return _largest


_largest: int | None = None
