"""How many bytes a connection may have under way in the network, so that several share full links evenly.

Left alone, TCP fills the queues of a full link until packets are lost, and shares the link unevenly: one connection may
carry eight times as much as another for many seconds. A step needs its bytes on all of them, so it waits for the
slowest while other links idle. Here each connection keeps about the same number of bytes in the queues. So queues are
short, nothing is lost, and connections that share a link carry about the same.

On a fast network the same number of bytes waits in queues only for a moment. Then more may be under way, up to what the
kernel chooses by itself. If others fill the queues, whatever this process does, a low limit would leave nearly all of a
link to them. So a connection that gets much less than its share may have more under way, too.
"""

import dataclasses
from typing import Final

#: What all connections that share a link have under way on it at first, in one direction. Much more fills the queues of
#: a slow link; much less lets it run dry while processes do other things.
LINK_BYTES: Final = 768 << 10

#: The least for one connection: several packets, so that losses are noticed soon.
_LEAST_BYTES: Final = 16 << 10

#: The most. The kernel decides long before.
_MOST_BYTES: Final = 64 << 20

#: If what is under way waits in queues for less than the first, the link is not full, and much more may be under way;
#: for less than the second, a little more. Otherwise there may be less, down to the least.
_NO_QUEUE_SECONDS: Final = 0.0005
_SHORT_QUEUE_SECONDS: Final = 0.002

#: Which part of the limit is taken away at a time. Limits that grow by equal sizes and shrink by equal parts become
#: equal.
_SHRINKING: Final = 1 / 8

#: A connection that is slower by this factor than its share of the highest rate that it has had competes with others
#: who fill the queues.
_STARVED: Final = 8

#: How long it takes until half of the highest rate is forgotten.
_HALF_LIFE_SECONDS: Final = 60.0

#: How often the limit is looked at, unless two round trips take longer. Each time the limit stays the same, the
#: interval doubles, up to the longest one: a look wakes the process, and there are many with many connections.
_INTERVAL_SECONDS: Final = 0.025
_LONGEST_INTERVAL_SECONDS: Final = 0.1


def usual_share(part: float) -> float:
    """A connection's share of its link's bytes where each host has a worker and an aggregator.

    The link carries what the worker sends to the other hosts' aggregators, and as much that the aggregator sends to the
    other hosts' workers.

    Args:
        part: Which part of all bytes the aggregator sums, from 0 to 1.
    """
    # Two hosts have one connection from each worker. With a single worker nothing is known of others.
    return part / (2 * max(1.0 - part, part))


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """What the kernel tells of a connection.

    Attributes:
        acknowledged: Bytes that the other side has acknowledged so far.
        round_trip: A round trip lately, in seconds.
        shortest: The shortest round trip so far, in seconds.
    """

    acknowledged: int
    round_trip: float
    shortest: float


class SendLimit:
    """The limit of one connection. All times are in seconds of one clock.

    Args:
        share: The connection's share of the bytes that its link carries in one direction, from 0 to 1. The hosts at its
            ends may have different shares; it is the lesser one.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._least = max(int(LINK_BYTES * share), _LEAST_BYTES)
        self._since = 0.0
        self._before = Progress(0, 0.0, 0.0)
        self._highest_rate = 0.0
        """The highest rate lately, in bytes per second."""
        self._pause = _INTERVAL_SECONDS
        """Seconds until the next look, if two round trips take no longer."""
        self.size = self._least
        """The limit in bytes."""

    @property
    def interval(self) -> float:
        """Seconds until `move` should be called."""
        return max(self._pause, 2 * self._before.shortest)

    def begin(self, now: float, progress: Progress) -> None:
        """Notes that the connection has something to send from now on."""
        self._since, self._before = now, progress

    def move(self, now: float, progress: Progress) -> bool:
        """Sets the limit anew. The connection had something to send all the time since the last call.

        Returns:
            Whether the limit has changed.
        """
        before = self.size
        sent, seconds = progress.acknowledged - self._before.acknowledged, now - self._since
        queue = progress.round_trip - progress.shortest
        # Otherwise something else holds the connection back, such as the other side.
        limited = 2 * sent * progress.round_trip >= self.size * seconds
        rate = sent / seconds if seconds else 0.0
        self._highest_rate = max(rate, self._highest_rate * 0.5 ** (seconds / _HALF_LIFE_SECONDS))
        starved = limited and rate * _STARVED < self._highest_rate * self._share
        if queue >= _SHORT_QUEUE_SECONDS and not starved:
            self.size = max(int(self.size * (1 - _SHRINKING)), self._least)
        elif limited:
            more = self.size if queue < _NO_QUEUE_SECONDS else self._least
            self.size = min(self.size + more, _MOST_BYTES)
        changed = self.size != before
        self._pause = _INTERVAL_SECONDS if changed else min(2 * self._pause, _LONGEST_INTERVAL_SECONDS)
        self.begin(now, progress)
        return changed
