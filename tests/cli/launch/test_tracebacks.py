"""The error that a program ended with, as its standard error shows it."""

import subprocess
import sys

import pytest

from psum.cli.launch.tracebacks import TracebackReader

TASKS = """
import asyncio
async def fail(): 1 / 0
async def main():
    async with asyncio.TaskGroup() as group: group.create_task(fail())
asyncio.run(main())
"""


def read(text: str) -> str:
    """What is found in these lines."""
    reader = TracebackReader()
    for line in text.splitlines():
        reader.feed(line)
    return reader.error


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("raise RuntimeError('no more data')", "RuntimeError: no more data"),
        ("raise RuntimeError", "RuntimeError"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two"),
        ("raise RuntimeError('x' * 400)", f"RuntimeError: {'x' * 286} …"),
        # The module is left out.
        ("import psum.client as p; raise p.ClosedError('closed')", "ClosedError: closed"),
        ("try: 1 / 0\nexcept Exception as error: raise ValueError('worse') from error", "ValueError: worse"),
        ("try: 1 / 0\nexcept Exception: raise ValueError('worse')", "ValueError: worse"),
        ("raise ExceptionGroup('several', [ValueError('one')])", "ExceptionGroup: several (1 sub-exception)"),
        (TASKS, "ZeroDivisionError: division by zero"),
        ("def f(n): f(n + 1)\nf(0)", "RecursionError: maximum recursion depth exceeded"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("import logging\ntry: 1 / 0\nexcept Exception: logging.exception('ending')\nexit(1)", "ZeroDivisionError: "),
        # What Python has to say of an object that fails while the program ends.
        ("class X:\n def __del__(self): 1 / 0\nx = X()\nraise KeyError('the cause')", "KeyError: 'the cause'"),
        ("print('fine')", ""),
        ("import sys; sys.exit('Error: not a traceback')", ""),
    ],
)
def test_the_exception_of_the_last_traceback(program: str, error: str) -> None:
    """Of real programs, by name and first line."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    found = read(done.stderr)
    assert found.startswith(error) if error else found == ""


def test_the_error_of_mxnet_which_has_a_traceback_of_its_own() -> None:
    """MXNet's library begins its text with one, of C++."""
    text = """Traceback (most recent call last):
  File "train.py", line 3, in <module>
    out.wait_to_read()
mxnet.base.MXNetError: Traceback (most recent call last):
  File "../src/operator/x.cc", line 12
MXNetError: Check failed: shapes differ
"""
    assert read(text) == "MXNetError: Check failed: shapes differ"


def test_a_traceback_long_ago_is_not_what_the_program_ended_with() -> None:
    """It went on after it."""
    text = "Traceback (most recent call last):\n  File\nOSError: tried again\n"
    assert read(text + "training\n" * 50) == "OSError: tried again"
    assert read(text + "training\n" * 51) == ""
