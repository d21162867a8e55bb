"""Prints every SECONDS what the links of hosts have carried: `python sampler.py SECONDS SWITCH HOST…`.

SWITCH and HOST are names of network namespaces. A line has the monotonic time, the number of packets that full queues
have dropped, and for each host the bytes sent and received. The program ends when it is killed or its parent ends.

The figures come from the queueing disciplines that limit the rates, by netlink (man 7 rtnetlink). They count the
headers of every packet on the wire. The interfaces' own counters do not, because they count large packets before these
are cut into segments.
"""

import ctypes
import os
import socket
import struct
import sys
import time
from typing import Final, NamedTuple

_RTM_NEWQDISC: Final = 36
_RTM_GETQDISC: Final = 38
_NLMSG_DONE: Final = 3
_NLM_F_REQUEST_DUMP: Final = 0x301
_TCA_STATS2: Final = 7
_TCA_STATS_BASIC: Final = 1
_TCA_STATS_QUEUE: Final = 3
_CLONE_NEWNET: Final = 0x40000000

#: struct nlmsghdr, struct tcmsg, struct nlattr.
_HEADER: Final = struct.Struct("=IHHII")
_TCMSG: Final = struct.Struct("=BBHiIII")
_ATTRIBUTE: Final = struct.Struct("=HH")


class Figures(NamedTuple):
    """Counters of the queueing discipline of an interface.

    Attributes:
        bytes: Bytes sent so far, including headers.
        drops: Packets dropped so far.
    """

    bytes: int
    drops: int


class Queues:
    """The queueing disciplines of one network namespace.

    Args:
        name: The namespace's name. The constructor moves this process into the namespace.
    """

    def __init__(self, name: str) -> None:
        # os.setns is new in Python 3.12.
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{name}", "rb") as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter {name}")
        # A socket stays in the namespace in which it was made.
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._names = dict(socket.if_nameindex())

    def figures(self) -> dict[str, Figures]:
        """Returns the counters of all interfaces, by their names."""
        request = _TCMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0)
        self._socket.send(_HEADER.pack(_HEADER.size + len(request), _RTM_GETQDISC, _NLM_F_REQUEST_DUMP, 0, 0) + request)
        found: dict[str, Figures] = {}
        while True:
            data = self._socket.recv(1 << 16)
            while data:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind == _NLMSG_DONE:
                    return found
                if kind == _RTM_NEWQDISC:
                    index = _TCMSG.unpack_from(data, _HEADER.size)[3]
                    found[self._names[index]] = _figures(data[_HEADER.size + _TCMSG.size : length])
                data = data[_aligned(length) :]


def _figures(attributes: bytes) -> Figures:
    statistics = _attributes(_attributes(attributes)[_TCA_STATS2])
    (sent,) = struct.unpack_from("=Q", statistics[_TCA_STATS_BASIC])
    # struct gnet_stats_queue: qlen, backlog, drops, requeues, overlimits.
    drops = struct.unpack_from("=5I", statistics[_TCA_STATS_QUEUE])[2]
    return Figures(sent, drops)


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while data:
        length, kind = _ATTRIBUTE.unpack_from(data)
        # The upper bits are flags.
        found[kind & 0x3FFF] = data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]
    return found


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def main() -> None:
    """Prints a line for every interval."""
    interval, switch, *names = float(sys.argv[1]), *sys.argv[2:]
    ports, hosts = Queues(switch), [Queues(name) for name in names]
    parent = os.getppid()
    # The sampler must not outlive a lab that was killed.
    while os.getppid() == parent:
        now = time.monotonic()
        into = ports.figures()
        pairs = [(queues.figures()["eth0"], into[f"port{host}"]) for host, queues in enumerate(hosts)]
        drops = sum(out.drops + in_.drops for out, in_ in pairs)
        print(now, drops, *(f"{out.bytes} {in_.bytes}" for out, in_ in pairs), flush=True)
        time.sleep(interval)


if __name__ == "__main__":
    main()
