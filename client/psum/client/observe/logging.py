"""A worker's log, on standard error if the program has set up no logging of its own.

A library leaves a program's logging alone. But a worker that loses its aggregator must say so, and among the lines of
hundreds of workers each line must tell which worker wrote it.
"""

import logging
import sys
from collections.abc import Mapping

from psum.client.settings import Settings
from psum.runtime import JsonFormatter, TextFormatter

_workers: set[tuple[str, int]] = set()
"""The jobs and ranks that this process has had, usually one."""


class _Fallback(logging.Handler):
    """Writes records until the program has a handler of its own, which may come later than this one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record."""
        if not logging.getLogger().handlers:
            print(self.format(record), file=sys.stderr, flush=True)


def set_up_logging(settings: Settings) -> None:
    """Sets up psum's logging as a worker's settings say.

    It keeps the level and the handlers that the program has given to the logger psum.
    """
    _workers.add((settings.job, settings.rank))
    log = logging.getLogger("psum")
    if log.level == logging.NOTSET:
        log.setLevel(settings.log_level.upper())
    if log.handlers:
        return
    if settings.log_format == "json":
        # The user has asked for this form. The program's own handlers would write each line again in another form.
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonFormatter(_worker))
        log.propagate = False
    else:
        handler = _Fallback()
        handler.setFormatter(TextFormatter(_worker))
    log.addHandler(handler)


def _worker() -> Mapping[str, object]:
    """Returns this process's job and rank; nothing if it is several workers: any may have logged the line."""
    if len(_workers) != 1:
        return {}
    [(job, rank)] = _workers
    return {"job": job, "rank": rank}
