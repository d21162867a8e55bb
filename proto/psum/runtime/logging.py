"""How lines of a log are written: as text or as JSON, each with the job and the rank that it is about.

They need not be given twice: a message's template names them, as `job %s: rank %d joined` does, and a process that is
one worker knows its own. Where the text comes from elsewhere, `extra` has them.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

#: What is known of every line, for what its own template does not name.
Known = Callable[[], Mapping[str, object]]

#: A place in a template, with the word before it.
_PLACE: Final = re.compile(r"(?:\b(job|rank) )?%(?:%|[-+ #0]*\d*(?:\.\d+)?[a-z])")

_TEXT: Final = "%(asctime)s %(levelname)-7s %(message)s"


def _nothing() -> Mapping[str, object]:
    return {}


def subjects(record: logging.LogRecord) -> dict[str, object]:
    """The job and the rank that a record is about, as far as it says so itself."""
    found: dict[str, object] = {name: vars(record)[name] for name in ("job", "rank") if name in vars(record)}
    if not isinstance(record.msg, str) or not isinstance(record.args, tuple):
        return found
    places = [match[1] for match in _PLACE.finditer(record.msg) if not match[0].endswith("%%")]
    for name, value in zip(places, record.args, strict=False):
        if name is not None:
            found.setdefault(name, value)
    return found


class TextFormatter(logging.Formatter):
    """Writes a record as one line of text; what peers send cannot make it look like two.

    Args:
        known: What of every line is known.
    """

    def __init__(self, known: Known = _nothing) -> None:
        super().__init__(_TEXT)
        self._known = known

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, with what cannot be printed as escapes; a traceback is added to it later."""
        named = subjects(record)
        if untold := ", ".join(f"{name} {value}" for name, value in self._known().items() if name not in named):
            record.message = f"{untold}: {record.message}"
        return "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().formatMessage(record)
        )


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON.

    Args:
        known: What of every line is known.
    """

    def __init__(self, known: Known = _nothing) -> None:
        super().__init__()
        self._known = known

    def format(self, record: logging.LogRecord) -> str:
        """An object with the time, the level, the logger, the message, and the job and the rank where there are any."""
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
        # Whatever it is, it must not keep a line from being written.
        return json.dumps(entry, default=str)
