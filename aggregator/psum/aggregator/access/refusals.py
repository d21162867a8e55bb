"""Counts and logs refused connections, so that no peer can fill the log by repeated attempts."""

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

#: One line is logged in this time for each host and kind of refusal.
_LOG_SECONDS: Final = 60.0

#: The most pairs of host and kind that are told apart.
_MAX_KNOWN: Final = 1000


class LimitedLog:
    """Logs at most one warning a minute for each kind and host. The next one says how many were left out.

    Args:
        log: The log.
        clock: The time in seconds.
    """

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._known: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()
        """The time of the last line and how many were left out since, by kind and host."""

    def warn(self, kind: str, host: str, text: str, *arguments: object) -> None:
        """Logs a warning about something that a host can repeat at will.

        Args:
            kind: What happened, in a word.
            host: The host that caused it.
            text: The line, with placeholders for the arguments.
            arguments: The arguments.
        """
        now = self._clock()
        last, left_out = self._known.get((kind, host), (-_LOG_SECONDS, 0))
        if now - last < _LOG_SECONDS:
            self._known[kind, host] = last, left_out + 1
            return
        self._known[kind, host] = now, 0
        self._known.move_to_end((kind, host))
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        if left_out:
            self._log.warning(f"{text} (and %d more times since the last such line)", *arguments, left_out)
        else:
            self._log.warning(text, *arguments)


class Refusals:
    """The connections to one port that were closed before they belonged to a worker.

    Args:
        log: The log.
    """

    def __init__(self, log: logging.Logger) -> None:
        self.counts: Counter[str] = Counter()
        """How many there were, by kind of refusal."""
        self._limited_log = LimitedLog(log)

    def note(self, kind: str, host: str, text: str, *arguments: object) -> None:
        """Counts and logs one; see LimitedLog.warn."""
        self.counts[kind] += 1
        self._limited_log.warn(kind, host, text, *arguments)
