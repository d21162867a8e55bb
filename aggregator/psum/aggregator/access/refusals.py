"""Who was turned away: all are counted, and logged so that nobody can fill the log by trying again and again."""

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

#: Of what one host is refused for, one line in this time.
_LOG_SECONDS: Final = 60.0

#: Hosts and kinds of refusals that are kept apart.
_MAX_KNOWN: Final = 1000


class Sparing:
    """Logs warnings, of each kind and host one a minute; the next one says how many were left out.

    Args:
        log: Where.
        clock: The time in seconds.
    """

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._known: OrderedDict[tuple[str, str], list[float]] = OrderedDict()
        """When the last line was written, and how many were left out since, by kind and host."""

    def warn(self, kind: str, host: str, text: str, *arguments: object) -> None:
        """Something happened that a host may make happen again at once.

        Args:
            kind: What, in a word.
            host: Whose doing it is.
            text: The line, with places for the arguments.
            arguments: What stands in those places.
        """
        now = self._clock()
        last, left_out = self._known.get((kind, host), (-_LOG_SECONDS, 0.0))
        if now - last < _LOG_SECONDS:
            self._known[kind, host] = [last, left_out + 1]
            return
        self._known[kind, host] = [now, 0.0]
        self._known.move_to_end((kind, host))
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        if left_out:
            self._log.warning(f"{text} (and %d times more since it was said last)", *arguments, int(left_out))
        else:
            self._log.warning(text, *arguments)


class Refusals:
    """Connections to one port that were ended before they belonged to a worker.

    Args:
        log: Where they are logged.
    """

    def __init__(self, log: logging.Logger) -> None:
        self.counts: Counter[str] = Counter()
        """How many there were, by kind."""
        self._sparing = Sparing(log)

    def note(self, kind: str, host: str, text: str, *arguments: object) -> None:
        """One was ended; see Sparing.warn."""
        self.counts[kind] += 1
        self._sparing.warn(kind, host, text, *arguments)
