"""How soon a process is started again after it has ended."""

from typing import Final

#: A process that ran for this long has started well: the next one starts at once.
_STEADY_SECONDS: Final = 10.0

_FIRST_PAUSE_SECONDS: Final = 0.1
_LAST_PAUSE_SECONDS: Final = 10.0


class Restarts:
    """Decides about one process. It is started again as often as it ends, with longer and longer pauses.

    Attributes:
        count: How often it was started again.
    """

    def __init__(self) -> None:
        self.count = 0
        self._pause = 0.0

    def pause(self, lived_seconds: float) -> float:
        """The seconds to wait before the next start, given how long the process has run."""
        self.count += 1
        pause = 0.0 if lived_seconds >= _STEADY_SECONDS else self._pause
        self._pause = min(_LAST_PAUSE_SECONDS, max(_FIRST_PAUSE_SECONDS, 2 * pause))
        return pause
