"""The log cannot be written to by those whom it is about."""

import logging

import pytest

from psum.aggregator._logging import JsonFormatter, TextFormatter


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_what_a_peer_sends_stays_on_one_line(formatter: logging.Formatter) -> None:
    """Neither a forged line nor a terminal's control sequence gets through; letters of all languages do."""
    name = "job\n2026-01-01 00:00:00 ERROR all is lost\x1b[2J\r é"
    record = logging.LogRecord("psum", logging.INFO, "file", 1, "job %s: joined", (name,), None)
    line = formatter.format(record)
    assert line.isprintable()
    assert "joined" in line


def test_a_traceback_has_lines() -> None:
    """An exception of the aggregator's own is shown as usual."""
    try:
        raise ValueError("wrong")
    except ValueError as error:
        record = logging.LogRecord("psum", logging.ERROR, "file", 1, "it failed", (), (ValueError, error, None))
    assert TextFormatter().format(record).endswith("it failed\nValueError: wrong")
