"""What keeps a worker from an aggregator while it tries to connect, and when to say so."""

import math
from typing import Final

#: How long an aggregator may take to be there before its workers say that they wait; again when that doubles.
_PATIENCE_SECONDS: Final = 5.0

#: How soon, and in the end how often, it is found out whether the two sides trust each other. The result counts until
#: then. An aggregator that is being started again takes no connections at first.
_FIRST_DIAGNOSIS_SECONDS: Final = 0.25
_DIAGNOSIS_SECONDS: Final = 5.0


class ConnectProblem:
    """The reason why attempts to connect fail. gRPC's own words are often no reason; what was found out counts more.

    Args:
        begin: When the first attempt began, in seconds.

    Attributes:
        cause: The reason, empty before an attempt has failed.
    """

    def __init__(self, begin: float) -> None:
        self.cause = ""
        self._begin = begin
        self._say_after = begin + _PATIENCE_SECONDS
        self._diagnose_after = -math.inf
        self._diagnosis_seconds = _FIRST_DIAGNOSIS_SECONDS
        self._kind = ""
        """What only a person can change, as the cause is; empty where it is nothing of that kind."""
        self._said = ""

    def should_diagnose(self, now: float) -> bool:
        """Whether it is time to find out whether the two sides trust each other."""
        return now >= self._diagnose_after

    def diagnosed(self, reason: str | None, now: float) -> None:
        """What finding out came to: why they do not trust each other, None where they do."""
        self._diagnose_after = now + self._diagnosis_seconds
        self._diagnosis_seconds = min(_DIAGNOSIS_SECONDS, 2 * self._diagnosis_seconds)
        self.cause = self._kind = reason or ""

    def refused(self, error: Exception) -> None:
        """The aggregator has said why it does not take this worker, or a file cannot be used."""
        self.cause = str(error)
        # The text may name a port, which is another one each time.
        self._kind = type(error).__name__

    def failed(self, words: str) -> None:
        """An attempt has failed, with these words of gRPC's."""
        if not self._kind:
            self.cause = words

    def should_say(self, now: float) -> bool:
        """Whether the log should name the cause now: one that only a person can change at once, any other when it has
        lasted, and each again when that has doubled."""
        if self._kind and self._kind != self._said:
            self._said = self._kind
            return True
        if now < self._say_after:
            return False
        self._say_after = now + (now - self._begin)
        return True
