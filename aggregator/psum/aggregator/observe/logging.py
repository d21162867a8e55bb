"""The aggregator's log on standard error."""

import logging
import sys

from psum.aggregator.settings import Settings
from psum.runtime import JsonFormatter, TextFormatter


def set_up_logging(settings: Settings, process: int | None = None) -> None:
    """Sends psum's log to standard error, in the format and from the level of the settings.

    Args:
        settings: The settings.
        process: The number of this process if the aggregator has several; each line names it.
    """
    known = {} if process is None else {"process": process}
    handler = logging.StreamHandler(sys.stderr)
    formatter = JsonFormatter if settings.log_format == "json" else TextFormatter
    handler.setFormatter(formatter(lambda: known))
    log = logging.getLogger("psum")
    log.handlers = [handler]
    log.setLevel(settings.log_level.upper())
    log.propagate = False
