"""A worker's log, on standard error where the program has not said where its own goes.

A library leaves a program's logging alone. But a worker that loses its aggregator has to be heard of, and whoever reads
the lines of hundreds of workers has to know which one said what.
"""

import logging
import sys
from collections.abc import Mapping

from psum.client.settings import Settings
from psum.runtime import JsonFormatter, TextFormatter

_workers: set[tuple[str, int]] = set()
"""Jobs and ranks that this process has had: mostly one."""


class _Fallback(logging.Handler):
    """Writes what no handler of the program's does, also where the program sets its logging up only later."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record."""
        if not logging.getLogger().handlers:
            print(self.format(record), file=sys.stderr, flush=True)


def set_up_logging(settings: Settings) -> None:
    """Has psum log as a worker's settings say.

    A level that the program has given to the logger psum stays, and so does its handler.
    """
    _workers.add((settings.job, settings.rank))
    log = logging.getLogger("psum")
    if log.level == logging.NOTSET:
        log.setLevel(settings.log_level.upper())
    if log.handlers:
        return
    if settings.log_format == "json":
        # Asked for in so many words: the program's own handlers would write each line once more, in another form.
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonFormatter(_worker))
        log.propagate = False
    else:
        handler = _Fallback()
        handler.setFormatter(TextFormatter(_worker))
    log.addHandler(handler)


def _worker() -> Mapping[str, object]:
    """This process's job and rank; nothing where it is several workers, of which any may have said it."""
    if len(_workers) != 1:
        return {}
    [(job, rank)] = _workers
    return {"job": job, "rank": rank}
