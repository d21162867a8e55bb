"""Notices that this process did not run for a while, as after SIGSTOP.

An aggregator that has lost such a worker meanwhile does not wait for it any more. It reuses the shared memory of sums
that the worker has been sent and has not read. So after a pause the worker reads none of them. It opens a new stream.
There it gets them again, or hears that it is lost.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

#: How often the time is noted within the limit.
_NOTES: Final = 5


class Pauses:
    """Notes the time until `stop`, on the running event loop.

    Args:
        limit: Pauses that are longer than this count, in seconds.
        clock: The time now, which must be right even if the event loop has not run since.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit = limit
        self._noticed = False
        self._ran = clock()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(limit / _NOTES, self._tick)

    @property
    def noticed(self) -> bool:
        """Whether there was a pause, even if it has only just ended."""
        now = self._clock()
        self._noticed = self._noticed or now - self._ran > self._limit
        self._ran = now
        return self._noticed

    def stop(self) -> None:
        """Notes the time no more."""
        self._timer.cancel()

    def _tick(self) -> None:
        if not self.noticed:
            self._timer = self._loop.call_later(self._limit / _NOTES, self._tick)
