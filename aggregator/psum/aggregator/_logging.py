"""The aggregator's log: one line per event that matters, on standard error."""

import json
import logging
import sys
from typing import Final

from psum.aggregator._settings import Settings

_TEXT: Final = "%(asctime)s %(levelname)-7s %(message)s"


class TextFormatter(logging.Formatter):
    """Writes a record as one line of text; what peers send cannot make it look like two."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, with what cannot be printed as escapes; a traceback is added to it later."""
        return "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().formatMessage(record)
        )


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def set_up_logging(settings: Settings) -> None:
    """Sends psum's log to standard error, as the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    log = logging.getLogger("psum")
    log.handlers = [handler]
    log.setLevel(settings.log_level.upper())
    log.propagate = False
