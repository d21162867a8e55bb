"""The throughput of the last minutes, for the status page."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

#: The time that one sample covers, and for how long samples are kept.
SAMPLE_SECONDS: Final = 2.0
_KEEP_SECONDS: Final = 300.0


class Throughput:
    """Samples the throughput on the running event loop from construction to `close`.

    Args:
        totals: Returns the payload bytes received and sent until now.
    """

    def __init__(self, totals: Callable[[], tuple[int, int]]) -> None:
        self._totals = totals
        self._loop = asyncio.get_running_loop()
        self._rates: deque[tuple[float, float]] = deque(maxlen=int(_KEEP_SECONDS / SAMPLE_SECONDS))
        self._before = totals()
        self._sampled_at = time.monotonic()
        self._timer = self._loop.call_later(SAMPLE_SECONDS, self._sample)

    @property
    def rates(self) -> list[tuple[float, float]]:
        """Payload bytes per second received and sent, over SAMPLE_SECONDS each, the oldest first."""
        return list(self._rates)

    def close(self) -> None:
        """Stops."""
        self._timer.cancel()

    def _sample(self) -> None:
        now = time.monotonic()
        passed = now - self._sampled_at
        (received, sent), (received_before, sent_before) = totals, _ = self._totals(), self._before
        self._rates.append(((received - received_before) / passed, (sent - sent_before) / passed))
        self._before, self._sampled_at = totals, now
        self._timer = self._loop.call_later(SAMPLE_SECONDS, self._sample)
