"""How long connected workers of an elastic job have been silent.

A worker that lives sends something several times within the time-out, if only an empty message. So silence shows that
its process, its host or the network between does not work, although no connection was closed. The same silence may have
its cause on this side. Time in which this process did not run, or in which it heard nobody, does not count.
"""

from collections.abc import Collection
from typing import Final

from psum.aggregator.core.worker import Worker

#: A worker sends something at least so many times within the time-out.
BEATS: Final = 5

#: Time-outs are checked several times a second. If they were not for this long, this process did not run.
_PAUSE_SECONDS: Final = 1.0


class Silence:
    """The silence of one job's workers.

    Args:
        timeout: Seconds after which a silent worker is lost.
        own_network_works: Whether something else shows that this side's network works, so that the silence of all
            counts.
    """

    def __init__(self, timeout: float, *, own_network_works: bool = False) -> None:
        self.beat = timeout / BEATS
        """The time in which a worker that lives sends something, in seconds."""
        self._timeout = timeout
        self._own_network_works = own_network_works
        self.checked: float | None = None
        """When `pass_time` was last called; None: never."""

    def pass_time(self, workers: Collection[Worker], now: float) -> float:
        """Takes note of the time, and shifts `last_heard` of connected workers by what does not count as silence.

        Returns:
            For how long this process did not run, in seconds; 0 if it ran. Nobody can have been late in that time.
        """
        before, self.checked = self.checked, now
        if before is None:
            return 0.0
        connected = [worker for worker in workers if worker.connected]
        passed = now - before
        # After two missed beats of everybody, the network of this side is the likely cause.
        all_quiet = not self._own_network_works and all(self.is_quiet(worker, now) for worker in connected)
        paused = passed > _PAUSE_SECONDS
        if paused or all_quiet:
            for worker in connected:
                worker.last_heard = min(now, worker.last_heard + passed)
        return passed if paused else 0.0

    def is_quiet(self, worker: Worker, now: float) -> bool:
        """Whether a worker has missed two signs of life."""
        return now - worker.last_heard > 2 * self.beat

    def silent(self, workers: Collection[Worker], now: float) -> list[Worker]:
        """The connected workers that have been silent for longer than the time-out. Those that have left may be."""
        return [
            worker
            for worker in workers
            if worker.connected and not worker.left and now - worker.last_heard > self._timeout
        ]
