"""Measures how late the event loop is."""

import asyncio
import time
from collections import deque
from typing import Final

from psum.runtime import Histogram

#: How often the lag is measured.
_INTERVAL_SECONDS: Final = 0.25

#: The time over which the highest lag is remembered.
_RECENT_SECONDS: Final = 10.0

_BOUNDS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class LoopMonitor:
    """Measures the lag of the running event loop from construction to `close`."""

    def __init__(self) -> None:
        self.lag = Histogram(_BOUNDS_SECONDS)
        """Seconds by which each timer of the monitor was late."""
        self._loop = asyncio.get_running_loop()
        self._recent: deque[float] = deque(maxlen=int(_RECENT_SECONDS / _INTERVAL_SECONDS))
        # Not the loop's own clock, which stands still within one of its turns.
        self._due = time.monotonic() + _INTERVAL_SECONDS
        self._timer = self._loop.call_later(_INTERVAL_SECONDS, self._measure)

    def recent_lag_seconds(self) -> float:
        """The highest lag of the last seconds."""
        return max(self._recent, default=0.0)

    def close(self) -> None:
        """Stops."""
        self._timer.cancel()

    def _measure(self) -> None:
        now = time.monotonic()
        late = max(0.0, now - self._due)
        self.lag.observe(late)
        self._recent.append(late)
        self._due = now + _INTERVAL_SECONDS
        self._timer = self._loop.call_later(_INTERVAL_SECONDS, self._measure)
