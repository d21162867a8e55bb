"""What a worker logs, where and in which form. Uses real processes, since logging belongs to a whole process."""

import json
import os
import pathlib
import subprocess
import sys

#: How long a process may take.
PATIENCE_SECONDS = 30.0

#: One worker, which needs no aggregator. Its timeline cannot be written, which it warns about.
WORKER = """
import sys
import psum.client
{before}
with psum.client.connect():
    pass
{after}
"""


def run(directory: pathlib.Path, before: str = "", after: str = "", **environ: str) -> list[str]:
    """Runs a worker; returns the lines that it writes to standard error."""
    (directory / "taken").touch()
    environ |= {"PSUM_JOB": "digits", "PSUM_TRACE_DIR": str(directory / "taken")}
    done = subprocess.run(
        [sys.executable, "-c", WORKER.format(before=before, after=after)],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    return done.stderr.splitlines()


def test_by_default_a_worker_writes_text(tmp_path: pathlib.Path) -> None:
    """A line of text has the time, level, job and rank."""
    [line] = run(tmp_path)
    assert "WARNING job digits, rank 0: no timeline in " in line


def test_on_request_it_writes_json(tmp_path: pathlib.Path) -> None:
    """JSON has one object a line, even if the program has logging of its own."""
    lines = run(tmp_path, before="import logging; logging.basicConfig()", PSUM_LOG_FORMAT="json")
    [entry] = map(json.loads, lines)
    assert (entry["level"], entry["job"], entry["rank"]) == ("warning", "digits", 0)
    assert entry["message"].startswith("no timeline in ")


def test_the_level_is_obeyed(tmp_path: pathlib.Path) -> None:
    """A level of error hides warnings."""
    assert run(tmp_path, PSUM_LOG_LEVEL="error") == []


def test_a_program_that_logs_has_psums_lines_in_its_own_log(tmp_path: pathlib.Path) -> None:
    """A program's own handler gets each line once, whether it was set up before psum or after."""
    setup = "import logging; logging.basicConfig(format='mine: %(message)s')"
    again = "logging.getLogger('psum.client').warning('again')"
    lines = run(tmp_path, before=setup, after=again)
    assert [line[:20] for line in lines] == ["mine: no timeline in", "mine: again"]
    lines = run(tmp_path, after=f"{setup}; {again}")
    assert "job digits, rank 0: no timeline in" in lines[0]
    assert lines[1:] == ["mine: again"]
