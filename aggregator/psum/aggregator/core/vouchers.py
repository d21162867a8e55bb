"""Which workers behind relays say for themselves that they live, so that a relay is not waited for in vain.

A relay that vanishes may be started again, and its workers wait for that. So its place is kept for long. But if its
host is gone, nobody comes. A worker whose relay is away tells the owners, past the relay, that it lives. Not every
worker can: a network policy may forbid it. So all do it now and then while nothing is wrong, and silence counts only of
those that were heard before.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from psum.aggregator.core.worker import Process, Worker

#: A worker that can tell an owner that it lives does so once a minute. One that was heard earlier may not any more.
RECENT_SECONDS: Final = 180.0


class Vouchers:
    """When the processes behind the relays of one job were last heard past their relays.

    Args:
        timeout: Seconds after which a silent worker is lost.
        relay_timeout: Seconds for which the place of a relay is kept while its workers live.
    """

    def __init__(self, timeout: float, relay_timeout: float) -> None:
        self._timeout = timeout
        self._relay_timeout = relay_timeout
        self._heard: dict[int, tuple[int, float]] = {}
        """The process that was heard last, and when, by rank."""

    def hear(self, rank: int, incarnation: int, now: float) -> None:
        """Notes that a process behind a relay has said that it lives."""
        self._heard[rank] = (incarnation, now)

    def kept_seconds(self, relay: Worker, living: Iterable[int]) -> float:
        """How long the place of a relay is kept from when it was last heard itself.

        A relay that is silent may only be stopped. Its workers notice that later than the end of a connection.

        Args:
            relay: The relay.
            living: The ranks of its group that are left.
        """
        processes = relay.processes
        last = [self._last(rank, processes) for rank in living]
        heard = [time for time in last if time is not None and time > relay.last_heard - RECENT_SECONDS]
        if not heard or len(heard) != len(last):
            return self._relay_timeout
        ended = relay.closed and not relay.connected
        patience = self._timeout if ended else 2 * self._timeout
        return min(self._relay_timeout, max(0.0, max(heard) - relay.last_heard) + patience)

    def leave_out(self, seconds: float, now: float) -> None:
        """Leaves out the last seconds, in which this process did not run."""
        self._heard = {rank: (number, min(now, time + seconds)) for rank, (number, time) in self._heard.items()}

    def _last(self, rank: int, processes: Mapping[int, Process]) -> float | None:
        """When the present process of a rank was heard last; None: never."""
        incarnation, time = self._heard.get(rank, (0, 0.0))
        return time if rank in processes and processes[rank][0] == incarnation else None
