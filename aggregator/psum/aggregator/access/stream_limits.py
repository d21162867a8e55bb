"""How many streams each host has open, so that none can have them all."""

from collections import Counter


class StreamLimits:
    """Counts streams by the host that they come from.

    Args:
        limit: How many a host may have.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._streams: Counter[str] = Counter()

    def enter(self, peer: str) -> bool:
        """A stream begins; returns False, and does not count it, where its host has as many as it may have."""
        host = host_of(peer)
        if self._streams[host] >= self.limit:
            return False
        self._streams[host] += 1
        return True

    def leave(self, peer: str) -> None:
        """A stream that was counted has ended."""
        host = host_of(peer)
        self._streams[host] -= 1
        if not self._streams[host]:
            del self._streams[host]


def host_of(peer: str) -> str:
    """The host in gRPC's name of a peer, such as ipv4:10.0.0.7:41234; all processes on a unix socket are one."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer.partition(":")[0]
