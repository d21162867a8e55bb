"""The status of a program that another rank's failure ends."""

import os
import subprocess
import sys
from typing import Any

import pytest

from psum.client import PEER_FAULT_STATUS

PROGRAM = """
import sys
from psum.client import WorkerLostError, exit_status
fault = WorkerLostError("rank 1 of job 'j' vanished", ranks=[1])
exit_status.note(fault, int(sys.argv[1]))
"""


def run(text: str, rank: int = 0, *options: str, **given: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *options, "-c", PROGRAM + text, str(rank)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, **given)


@pytest.mark.parametrize(
    "text",
    [
        "raise fault",
        "raise RuntimeError(f'MXNetError: {fault}, traceback: …')",
        "try: raise fault\nexcept WorkerLostError as error: raise ValueError('no sum') from error",
    ],
    ids=["itself", "within another's text", "what another error came from"],
)
def test_an_error_of_another_rank_has_a_status_of_its_own(text: str) -> None:
    """Whatever it comes out as; the error is shown as ever, and exit handlers run."""
    ended = run("import atexit; atexit.register(print, 'exit')\n" + text)
    assert ended.returncode == PEER_FAULT_STATUS == 75
    assert ended.stdout == "exit\n"
    assert ended.stderr.startswith("Traceback")
    assert "rank 1 of job 'j' vanished" in ended.stderr
    assert "excepthook" not in ended.stderr


@pytest.mark.parametrize(
    ("text", "rank", "status"),
    [("raise fault", 1, 1), ("raise ValueError('of its own')", 0, 1), ("sys.exit(3)", 0, 3), ("pass", 0, 0)],
)
def test_other_ends_have_their_own(text: str, rank: int, status: int) -> None:
    """What is this rank's own fault, another error, an exit, or an error that the program has caught."""
    assert run(text, rank).returncode == status


def test_the_programs_own_hook_shows_the_error() -> None:
    """The status is the same."""
    text = "sys.excepthook = lambda *_: print('shown')\nexit_status.note(fault, 0)\nraise fault"
    ended = run(text)
    assert (ended.returncode, ended.stdout, ended.stderr) == (75, "shown\n", "")


def test_a_programs_hook_that_calls_the_one_before_shows_the_error_once() -> None:
    """Also if another failure is reported after the program has wrapped psum's hook, which must not call itself."""
    text = """
def show(*error, before=sys.excepthook):
    print("shown")
    before(*error)
sys.excepthook = show
exit_status.note(fault, 0)
raise fault
"""
    ended = run(text)
    assert (ended.returncode, ended.stdout) == (75, "shown\n")
    assert ended.stderr.count("Traceback") == 1
    assert "excepthook" not in ended.stderr


def test_a_failure_may_be_reported_while_the_error_is_looked_up() -> None:
    """Each key of a job fails with its own text, so psum's thread may still note failures when the program ends."""
    text = """
class Text(str):
    def __contains__(self, reported):
        exit_status.note(WorkerLostError("key 'w' failed", ranks=[1]), 0)
        return False
class Other(Exception):
    def __str__(self):
        return Text("no sum")
raise Other from fault
"""
    ended = run(text)
    assert ended.returncode == 75
    assert "excepthook" not in ended.stderr


def test_an_interactive_session_goes_on() -> None:
    """An error ends nothing there."""
    ended = run("raise fault", 0, "-i", input="print(1 + 1)\n", env=os.environ | {"PYTHONSTARTUP": ""})
    assert "2" in ended.stdout
    assert ended.returncode != 75
