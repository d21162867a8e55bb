"""Log formatters for text and JSON. Each line has the job and the rank that it is about.

They come from the message's template, such as `job %s: rank %d joined`, from `extra`, or from the process if it is one
worker.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

#: Returns the job and rank for records that have none themselves.
Known = Callable[[], Mapping[str, object]]

#: A placeholder in a template, with the word before it if that is job or rank.
_PLACE: Final = re.compile(r"(?:\b(job|rank) )?%(?:%|[-+ #0]*\d*(?:\.\d+)?[a-z])")

_TEXT: Final = "%(asctime)s %(levelname)-7s %(message)s"


def _nothing() -> Mapping[str, object]:
    return {}


def subjects(record: logging.LogRecord) -> dict[str, object]:
    """Return the job and the rank that a record itself has."""
    found: dict[str, object] = {name: vars(record)[name] for name in ("job", "rank") if name in vars(record)}
    if not isinstance(record.msg, str) or not isinstance(record.args, tuple):
        return found
    places = [match[1] for match in _PLACE.finditer(record.msg) if not match[0].endswith("%%")]
    for name, value in zip(places, record.args, strict=False):
        if name is not None:
            found.setdefault(name, value)
    return found


class TextFormatter(logging.Formatter):
    """Format a record as one line of text. Line breaks in the message are escaped.

    Args:
        known: Returns the job and rank for records that have none themselves.
    """

    def __init__(self, known: Known = _nothing) -> None:
        super().__init__(_TEXT)
        self._known = known

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line, with unprintable characters escaped. The base class appends tracebacks."""
        own = subjects(record)
        if prefix := ", ".join(f"{name} {value}" for name, value in self._known().items() if name not in own):
            record.message = f"{prefix}: {record.message}"
        return "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().formatMessage(record)
        )


class JsonFormatter(logging.Formatter):
    """Format a record as one line of JSON.

    Args:
        known: Returns the job and rank for records that have none themselves.
    """

    def __init__(self, known: Known = _nothing) -> None:
        super().__init__()
        self._known = known

    def format(self, record: logging.LogRecord) -> str:
        """Return an object with the time, the level, the logger, the message, and the job and rank if there are any."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._known(),
            **subjects(record),
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        # default=str, because a value of any type must not prevent the line.
        return json.dumps(entry, default=str)
