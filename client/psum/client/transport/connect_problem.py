"""Why a worker cannot connect to an aggregator, and when to log it."""

import math
from typing import Final

#: How long a worker waits for an aggregator before it logs the cause. It logs it again whenever that time has doubled.
_PATIENCE_SECONDS: Final = 5.0

#: The first and the longest time between two diagnoses of whether the two sides trust each other. A diagnosis counts
#: until the next one. An aggregator that is being started again accepts no connections at first.
_FIRST_DIAGNOSIS_SECONDS: Final = 0.25
_DIAGNOSIS_SECONDS: Final = 5.0


class ConnectProblem:
    """The reason why attempts to connect fail. A diagnosis counts more than gRPC's own words, which often say little.

    Args:
        begin: When the first attempt began, in seconds.

    Attributes:
        cause: The reason, empty before an attempt has failed.
    """

    def __init__(self, begin: float) -> None:
        self.cause = ""
        self._begin = begin
        self._log_after = begin + _PATIENCE_SECONDS
        self._diagnose_after = -math.inf
        self._diagnosis_seconds = _FIRST_DIAGNOSIS_SECONDS
        self._kind = ""
        """The kind of cause if only a person can remove it, else empty."""
        self._logged_kind = ""

    def should_diagnose(self, now: float) -> bool:
        """Whether it is time for a diagnosis."""
        return now >= self._diagnose_after

    def diagnosed(self, reason: str | None, now: float) -> None:
        """Notes a diagnosis: why the two sides do not trust each other, None if they do."""
        self._diagnose_after = now + self._diagnosis_seconds
        self._diagnosis_seconds = min(_DIAGNOSIS_SECONDS, 2 * self._diagnosis_seconds)
        self.cause = self._kind = reason or ""

    def refused(self, error: Exception) -> None:
        """Notes that the aggregator refused this worker, or that a file cannot be used."""
        self.cause = str(error)
        # The text may name a port, which differs each time.
        self._kind = type(error).__name__

    def failed(self, words: str) -> None:
        """Notes that an attempt failed, with these words of gRPC's."""
        if not self._kind:
            self.cause = words

    def should_log(self, now: float) -> bool:
        """Whether the log should name the cause now.

        A cause that only a person can remove is named at once, any other after some seconds. Each is named again
        whenever the time since then has doubled.
        """
        if self._kind and self._kind != self._logged_kind:
            self._logged_kind = self._kind
            return True
        if now < self._log_after:
            return False
        self._log_after = now + (now - self._begin)
        return True
