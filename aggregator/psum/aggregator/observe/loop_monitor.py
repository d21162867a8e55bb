"""How late the event loop is, and what went through it in the last minutes."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from psum.runtime import Histogram

#: How often it is measured how late the loop is.
_BEAT_SECONDS: Final = 0.25

#: Over how long the worst is remembered.
_RECENT_SECONDS: Final = 10.0

#: How often the throughput is noted, and for how long it is remembered.
SAMPLE_SECONDS: Final = 2.0
_REMEMBERED_SECONDS: Final = 300.0

_BOUNDS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class LoopMonitor:
    """Beats on the running event loop from construction to `close`.

    Args:
        totals: Payload bytes received and sent until now.
    """

    def __init__(self, totals: Callable[[], tuple[int, int]]) -> None:
        self.lag = Histogram(_BOUNDS_SECONDS)
        """Seconds by which each beat was late."""
        self._totals = totals
        self._loop = asyncio.get_running_loop()
        self._recent: deque[float] = deque(maxlen=int(_RECENT_SECONDS / _BEAT_SECONDS))
        self._before = totals()
        self._noted_at = time.monotonic()
        self._rates: deque[tuple[float, float]] = deque(maxlen=int(_REMEMBERED_SECONDS / SAMPLE_SECONDS))
        # Not the loop's own time, which stands still within one of its turns.
        self._due = time.monotonic() + _BEAT_SECONDS
        self._timer = self._loop.call_later(_BEAT_SECONDS, self._beat)

    @property
    def recent_lag_seconds(self) -> float:
        """By how much a beat of the last seconds was late at most."""
        return max(self._recent, default=0.0)

    @property
    def throughput(self) -> list[tuple[float, float]]:
        """Payload bytes per second received and sent, over SAMPLE_SECONDS each, the oldest first."""
        return list(self._rates)

    def close(self) -> None:
        """Ends it."""
        self._timer.cancel()

    def _beat(self) -> None:
        now = time.monotonic()
        late = max(0.0, now - self._due)
        self.lag.observe(late)
        self._recent.append(late)
        if (passed := now - self._noted_at) >= SAMPLE_SECONDS:
            (received, sent), (received_before, sent_before) = totals, _ = self._totals(), self._before
            self._rates.append(((received - received_before) / passed, (sent - sent_before) / passed))
            self._before, self._noted_at = totals, now
        self._due = now + _BEAT_SECONDS
        self._timer = self._loop.call_later(_BEAT_SECONDS, self._beat)
