"""Whose handler of SIGTERM counts, and when."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from psum import client as psum
from psum.client import termination


@pytest.fixture(autouse=True)
def _default() -> Iterator[None]:
    """The signal is as a program finds it, and as it was after the test."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def handler() -> Any:
    return signal.getsignal(signal.SIGTERM)


def test_there_is_one_as_long_as_a_client_is_open() -> None:
    """From the first client of the process to the last."""
    with psum.connect(psum.Settings()):
        with psum.connect(psum.Settings()):
            assert handler() is termination._handle
        assert handler() is termination._handle
    assert handler() is signal.SIG_DFL


def test_none_is_left_by_a_client_that_could_not_connect() -> None:
    """The signal is then as before."""
    settings = psum.Settings(aggregators=("127.0.0.1:1",), connect_timeout=0.2)
    with pytest.raises(psum.ConnectError):
        psum.connect(settings)
    assert handler() is signal.SIG_DFL


@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "handled"])
def test_the_programs_own_is_left_alone(own: Any) -> None:
    """Whether it was there before, or came later."""
    signal.signal(signal.SIGTERM, own)
    with psum.connect(psum.Settings()):
        assert handler() is own
    assert handler() is own
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with psum.connect(psum.Settings()):
        signal.signal(signal.SIGTERM, own)
    assert handler() is own


PROGRAM = """
import os, signal, sys, threading, time
from psum import client as psum
from psum.client import termination
asked = threading.Event()
with psum.connect(psum.Settings()) as client:
    termination.postpone(client, asked.set, float(sys.argv[1]))
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(int(sys.argv[2])):
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
    print(asked.is_set(), flush=True)
    if sys.argv[3] == "leaves":
        termination.postpone(client, None)
    time.sleep(float(sys.argv[4]))
print("at its end", flush=True)
"""


@pytest.mark.parametrize(
    ("patience", "more", "then", "lasts", "status", "output"),
    [
        pytest.param("30", "0", "leaves", "0", 0, "True\nat its end\n", id="leaves"),
        pytest.param("1", "0", "leaves", "1.5", 0, "True\nat its end\n", id="lives on after it has left"),
        pytest.param("1", "0", "stays", "30", 143, "True\n", id="does not leave in time"),
        pytest.param("30", "1", "stays", "30", -signal.SIGTERM, "", id="is asked twice"),
    ],
)
def test_a_program_may_leave_by_itself(
    patience: str, more: str, then: str, lasts: str, status: int, output: str
) -> None:
    """The first signal asks it to. It ends as usual if it takes too long, or with the second signal."""
    command = [sys.executable, "-c", PROGRAM, patience, more, then, lasts]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stdout) == (status, output), ended.stderr


def test_a_closed_client_asks_nobody_to_leave() -> None:
    """And its thread, which would end the process, ends."""
    with psum.connect(psum.Settings()) as client:
        termination.postpone(client, lambda: None, 30.0)
        [thread] = [thread for thread in threading.enumerate() if thread.name == "psum-leaving"]
    thread.join(10.0)
    assert not thread.is_alive()
    assert termination._leaving is None


def test_a_program_is_asked_to_leave_once_though_another_thread_handles_the_signal() -> None:
    """The main thread is in a long call into C meanwhile, and runs the handler when it comes back."""
    signals = "os.kill(os.getpid(), signal.SIGTERM)\n    for"
    busy = "threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start(); KEY()\n    for"
    # About a second, without an end by the signal and without Python's lock.
    begin = "import hashlib; KEY = lambda: hashlib.pbkdf2_hmac('sha256', b'a', b'b', 3_000_000)"
    program = begin + PROGRAM.replace(signals, busy)
    command = [sys.executable, "-c", program, "30", "0", "leaves", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "True\nat its end\n"), ended.stderr


def test_a_program_whose_main_thread_handles_the_signal_at_the_last_moment_is_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread that would handle the signal in its place looks every 20 ms. It looks once more before it does so, and
    does not take its own signal for a second one, which would end the program."""
    asked: list[bool] = []
    ended: list[bool] = []
    for counter in ("_arrived", "_handled", "_late"):
        monkeypatch.setattr(termination, counter, 0)
    monkeypatch.setattr(termination, "_end_here", lambda: ended.append(True))
    clock = iter((0.0, 0.49, 0.51))
    time = SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: termination._handle())
    with psum.connect(psum.Settings()) as client:
        termination.postpone(client, lambda: asked.append(True), 30.0)
        monkeypatch.setattr(termination, "time", time)
        termination._stand_in()
    assert (asked, ended) == ([True], [])


def test_there_is_none_in_a_forked_child() -> None:
    """Such as the processes of a DataLoader, which are ended by this signal."""
    with psum.connect(psum.Settings()):
        child = os.fork()
        if child == 0:
            os._exit(0 if handler() is signal.SIG_DFL else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert handler() is termination._handle


def test_a_client_of_another_thread_is_told_of_once_the_main_thread_makes_one() -> None:
    """Only the main thread can have a handler."""
    made: list[psum.Client] = []
    thread = threading.Thread(target=lambda: made.append(psum.connect(psum.Settings())))
    thread.start()
    thread.join()
    assert handler() is signal.SIG_DFL
    with made[0], psum.connect(psum.Settings()):
        assert handler() is termination._handle
        assert set(termination._clients) >= set(made)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_program_with_an_event_loop_in_its_main_thread_ends(loop: str) -> None:
    """The loop has signals tell it in the same way as psum does, of which there is one in a process."""
    program = f"""
import asyncio, os, signal, threading, uvloop
import psum.client
async def main():
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM]).start()
    await asyncio.sleep(20)
with psum.client.connect(psum.client.Settings()):
    {loop}.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stderr) == (-signal.SIGTERM, "")
