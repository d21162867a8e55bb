"""Finding the exception that ended a program in its standard error."""

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
    """Return the exception that is found in these lines."""
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
        # The exception's module is removed.
        ("import psum.client as p; raise p.ClosedError('closed')", "ClosedError: closed"),
        ("try: 1 / 0\nexcept Exception as error: raise ValueError('worse') from error", "ValueError: worse"),
        ("try: 1 / 0\nexcept Exception: raise ValueError('worse')", "ValueError: worse"),
        ("raise ExceptionGroup('several', [ValueError('one')])", "ExceptionGroup: several (1 sub-exception)"),
        (TASKS, "ZeroDivisionError: division by zero"),
        ("def f(n): f(n + 1)\nf(0)", "RecursionError: maximum recursion depth exceeded"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("import logging\ntry: 1 / 0\nexcept Exception: logging.exception('ending')\nexit(1)", "ZeroDivisionError: "),
        # Python also reports an object whose destructor fails at exit.
        ("class X:\n def __del__(self): 1 / 0\nx = X()\nraise KeyError('the cause')", "KeyError: 'the cause'"),
        ("print('fine')", ""),
        ("import sys; sys.exit('Error: not a traceback')", ""),
    ],
)
def test_the_exception_of_the_last_traceback(program: str, error: str) -> None:
    """Real programs' exceptions are found by name and first line of text."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    found = read(done.stderr)
    assert found.startswith(error) if error else found == ""


def test_the_error_of_mxnet_which_has_a_traceback_of_its_own() -> None:
    """The text of MXNet's errors begins with a C++ traceback."""
    text = """Traceback (most recent call last):
  File "train.py", line 3, in <module>
    out.wait_to_read()
mxnet.base.MXNetError: Traceback (most recent call last):
  File "../src/operator/x.cc", line 12
MXNetError: Check failed: shapes differ
"""
    assert read(text) == "MXNetError: Check failed: shapes differ"


def test_a_traceback_long_ago_is_not_what_the_program_ended_with() -> None:
    """The program went on after the traceback."""
    text = "Traceback (most recent call last):\n  File\nOSError: tried again\n"
    assert read(text + "training\n" * 50) == "OSError: tried again"
    assert read(text + "training\n" * 51) == ""
