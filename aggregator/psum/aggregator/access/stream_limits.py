"""Limits how many streams each host may have open."""

from collections import Counter


class StreamLimits:
    """Counts open streams by host.

    Args:
        limit: How many streams a host may have open.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._streams: Counter[str] = Counter()

    def enter(self, peer: str) -> bool:
        """Counts a stream that begins. Returns False, and does not count it, if its host is at the limit."""
        host = host_of(peer)
        if self._streams[host] >= self.limit:
            return False
        self._streams[host] += 1
        return True

    def leave(self, peer: str) -> None:
        """Stops counting a stream that has ended."""
        host = host_of(peer)
        self._streams[host] -= 1
        if not self._streams[host]:
            del self._streams[host]


def host_of(peer: str) -> str:
    """The host in gRPC's name of a peer, such as ipv4:10.0.0.7:41234. All peers on unix sockets count as one host."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer.partition(":")[0]
