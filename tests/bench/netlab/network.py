"""Hosts behind one switch. Each is a network namespace with a link of a given rate and its own shared memory."""

import contextlib
import dataclasses
from types import TracebackType
from typing import Final, Self

from tests.bench.netlab.namespaces import LabError, inside, ip, make, processes, read, remove, shared_memory, tc

#: The network of all hosts' addresses, which begin at .1.
_NETWORK: Final = "10.77.0"

MAX_HOSTS: Final = 250

#: How many seconds a link takes to send a full queue.
_QUEUE_SECONDS: Final = 0.04

#: A link's burst: what it carries in 2 ms, but at least one large packet as TCP makes it, with all headers.
_LEAST_BURST_BYTES: Final = 72 << 10
_BURST_SECONDS: Final = 0.002

CONGESTION_CONTROLS: Final = ("cubic", "reno", "bbr")


@dataclasses.dataclass(frozen=True)
class TcpCounters:
    """Counts of the problems of a host's TCP connections.

    Attributes:
        retransmitted: Segments that were sent again.
        timeouts: Retransmission timeouts. During each, a connection sends nothing for 200 ms or longer.
    """

    retransmitted: int
    timeouts: int


class Network:
    """Hosts and their links. As a context manager, it removes all of them at its end.

    Links have the same rate in both directions. Their only delay is that of their queues, which hold up to 40 ms.

    Args:
        hosts: How many hosts to make.
        mbit: The rate of each link in each direction, in 10^6 bits per second.
        congestion_control: TCP's congestion control on all hosts.

    Raises:
        LabError: There are too few or too many hosts, or this user or machine cannot have network namespaces.
    """

    def __init__(self, hosts: int, mbit: float, congestion_control: str = "cubic") -> None:
        if not 1 <= hosts <= MAX_HOSTS:
            raise LabError(f"there can be 1 to {MAX_HOSTS} hosts, not {hosts}")
        self.mbit = mbit
        self.bytes_per_second = mbit * 1e6 / 8
        self._congestion_control = congestion_control
        self._stack = contextlib.ExitStack()
        self._names: list[str] = []
        self._switch = ""
        with contextlib.ExitStack() as stack:
            self._switch = self._namespace("switch", stack)
            ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
            ip("-n", self._switch, "link", "set", "br0", "up")
            for host in range(hosts):
                self._names.append(self._namespace(f"host{host}", stack))
                self._connect(host)
                shared_memory(self._names[host]).mkdir(mode=0o700)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills all processes on the hosts, and removes the hosts."""
        self._stack.close()

    def __len__(self) -> int:
        """The number of hosts."""
        return len(self._names)

    def address(self, host: int) -> str:
        """A host's IP address."""
        return f"{_NETWORK}.{host + 1}"

    def inside(self, host: int, *command: str) -> list[str]:
        """Wraps a command so that it runs on a host. The started process becomes the command itself."""
        return inside(self._names[host], *command)

    @property
    def namespaces(self) -> list[str]:
        """The names of the namespaces of the switch and of the hosts."""
        return [self._switch, *self._names]

    def port(self, host: int) -> str:
        """The switch's end of a host's link."""
        return f"port{host}"

    def shared_memory(self, host: int) -> str:
        """A directory in memory that only this host's processes share."""
        return str(shared_memory(self._names[host]))

    def processes(self, host: int) -> list[int]:
        """The ids of the processes that run on a host."""
        return processes(self._names[host])

    def tcp_counters(self, host: int) -> TcpCounters:
        """The counters over all connections that a host has had."""
        snmp = _counters(read(self._names[host], "/proc/net/snmp"))
        netstat = _counters(read(self._names[host], "/proc/net/netstat"))
        return TcpCounters(snmp["Tcp:RetransSegs"], netstat["TcpExt:TCPTimeouts"])

    def received(self, host: int) -> int:
        """Bytes that a host's interface has received so far."""
        lines = read(self._names[host], "/proc/net/dev").splitlines()
        return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("eth0:"))

    def cut(self, host: int) -> None:
        """Takes a host's link down. Both ends notice, as when a cable is unplugged."""
        ip("-n", self._switch, "link", "set", self.port(host), "down")

    def mend(self, host: int) -> None:
        """Brings the link up again."""
        ip("-n", self._switch, "link", "set", self.port(host), "up")

    def separate(self, one: int, other: int) -> None:
        """Drops everything between two hosts. Nobody is told."""
        for here, there in ((one, other), (other, one)):
            ip("-n", self._names[here], "route", "add", "blackhole", f"{self.address(there)}/32")

    def reunite(self, one: int, other: int) -> None:
        """Carries everything between two hosts again that were separated."""
        for here, there in ((one, other), (other, one)):
            ip("-n", self._names[here], "route", "delete", "blackhole", f"{self.address(there)}/32")

    def destroy(self, host: int) -> None:
        """Removes a host with all its processes. No packet tells the other hosts."""
        ip("-n", self._switch, "link", "delete", self.port(host))
        remove(self._names[host])

    def _namespace(self, kind: str, stack: contextlib.ExitStack) -> str:
        name = make(kind)
        stack.callback(remove, name)
        return name

    def _connect(self, host: int) -> None:
        name, port = self._names[host], self.port(host)
        ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        burst = max(_LEAST_BURST_BYTES, int(self.bytes_per_second * _BURST_SECONDS))
        queue = burst + int(self.bytes_per_second * _QUEUE_SECONDS)
        for namespace, device in ((name, "eth0"), (self._switch, port)):
            shape = ("tbf", "rate", f"{self.mbit:g}mbit", "burst", str(burst), "limit", str(queue))
            tc("-n", namespace, "qdisc", "add", "dev", device, "root", *shape)
        ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
        ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", "eth0", "up")
        # A namespace may not use every congestion control of the machine as its default, but a route may.
        route = ("route", "replace", f"{_NETWORK}.0/24", "dev", "eth0", "src", self.address(host))
        ip("-n", name, *route, "congctl", self._congestion_control)


def _counters(text: str) -> dict[str, int]:
    """Parses /proc/net/snmp or /proc/net/netstat: each line of names is followed by a line of values."""
    found = {}
    lines = text.splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        group, *fields = names.split()
        found.update({f"{group}{field}": int(value) for field, value in zip(fields, values.split()[1:], strict=True)})
    return found
