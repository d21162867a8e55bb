"""Peers cannot forge log lines, and every line has the job and rank that it is about."""

import json
import logging
from typing import Any

import pytest

from psum.runtime import JsonFormatter, TextFormatter


def record(template: str, *arguments: object) -> logging.LogRecord:
    """Return a record for this template."""
    return logging.LogRecord("psum", logging.INFO, "file", 1, template, arguments, None)


def worker() -> dict[str, Any]:
    """Return what a process that is one worker knows about itself."""
    return {"job": "digits", "rank": 3}


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_what_a_peer_sends_stays_on_one_line(formatter: logging.Formatter) -> None:
    """Line breaks and control sequences are escaped. Letters of all languages are kept."""
    name = "job\n2026-01-01 00:00:00 ERROR all is lost\x1b[2J\r é"
    line = formatter.format(record("job %s: joined", name))
    assert line.isprintable()
    assert "joined" in line


def test_a_traceback_has_lines() -> None:
    """An exception of the aggregator itself is shown as usual."""
    try:
        raise ValueError("wrong")
    except ValueError as error:
        failed = record("it failed")
        failed.exc_info = (ValueError, error, None)
    assert TextFormatter().format(failed).endswith("it failed\nValueError: wrong")
    assert json.loads(JsonFormatter().format(failed))["exception"] == "ValueError: wrong"


@pytest.mark.parametrize(
    ("template", "arguments", "subjects"),
    [
        ("job %s: rank %d of %d joined, %s", ("a", 1, 2, "host"), {"job": "a", "rank": 1}),
        ("peer %s: refused, its token is not one of job %r", ("x", "a"), {"job": "a"}),
        ("%d %% of rank %d", (5, 2), {"rank": 2}),
        ("%5.1f s, rank %d", (0.5, 2), {"rank": 2}),
        ("listening on %s", ("127.0.0.1:1",), {}),
        ("job of 100 %", (), {}),
    ],
)
def test_json_has_the_job_and_the_rank_that_a_message_names(
    template: str, arguments: tuple[object, ...], subjects: dict[str, object]
) -> None:
    """They are separate fields, so that nobody has to parse a sentence."""
    entry = json.loads(JsonFormatter().format(record(template, *arguments)))
    assert {name: entry[name] for name in ("job", "rank") if name in entry} == subjects
    assert entry["level"] == "info"
    assert entry["time"].endswith("+00:00")


def test_json_has_what_is_told_beside_the_message() -> None:
    """`extra` gives the job and rank of a text from elsewhere. The text format does not add them."""
    told = logging.makeLogRecord({"msg": "%s", "args": ("job 'a' key 'w' waits",), "job": "a"})
    assert json.loads(JsonFormatter().format(told))["job"] == "a"
    assert TextFormatter().format(told).endswith(" job 'a' key 'w' waits")


def test_a_worker_says_who_it_is_in_every_line() -> None:
    """A rank in the message itself takes precedence, which may be another one."""
    lines = [record("no timeline"), record("rank %d lost its connection", 5)]
    told = [json.loads(JsonFormatter(worker).format(line)) for line in lines]
    assert [(entry["job"], entry["rank"]) for entry in told] == [("digits", 3), ("digits", 5)]
    texts = [TextFormatter(worker).format(line) for line in lines]
    assert texts[0].endswith("job digits, rank 3: no timeline")
    assert texts[1].endswith("job digits: rank 5 lost its connection")
