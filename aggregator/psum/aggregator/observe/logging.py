"""The aggregator's log on standard error."""

import logging
import sys

from psum.aggregator.settings import Settings
from psum.runtime import JsonFormatter, TextFormatter


def set_up_logging(settings: Settings) -> None:
    """Sends psum's log to standard error, in the format and from the level of the settings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    log = logging.getLogger("psum")
    log.handlers = [handler]
    log.setLevel(settings.log_level.upper())
    log.propagate = False
