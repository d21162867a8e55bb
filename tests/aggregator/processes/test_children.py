"""Processes of an aggregator that hang: the supervisor stays small, and ends in time."""

import asyncio
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from psum.aggregator import Settings
from psum.aggregator.processes import child as child_module
from psum.aggregator.processes.child import Child
from psum.aggregator.processes.orders import SOME_MISSING, STATUS, Order
from psum.aggregator.processes.shared_budget import Reservations

#: A process that says that it serves, and answers each question with all questions so far.
ANSWERS = """
import socket, sys
from psum.aggregator.processes.orders import Serves, packed, receive_now

connection = socket.socket(fileno=int(sys.argv[1]))
receive_now(connection)
connection.sendall(packed(Serves()))
heard = []
while True:
    heard.append(receive_now(connection))
    connection.sendall(packed(heard))
"""

#: A supervisor whose processes hang at their start.
SUPERVISES = """
from psum.aggregator import Settings
from psum.aggregator.processes import child, supervisor

child._MODULE = "hangs"
supervisor.supervise(Settings(listen=("127.0.0.1:0",), processes=2, grace=60.0))
"""


@pytest.fixture
def path(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A directory for modules that new interpreters find."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


async def test_a_stopped_process_is_not_asked_for_ever(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few questions wait for it. When it goes on, it answers them, and is told the latest news."""
    (path / "answers.py").write_text(ANSWERS)
    monkeypatch.setattr(child_module, "_MODULE", "answers")
    order = Order(Settings(), 0, [], Reservations.make(1).descriptor, os.getpid())
    process = Child(order)
    try:
        await asyncio.wait_for(process.serving.wait(), 20)
        process.signal(signal.SIGSTOP)
        for _ in range(50):
            with pytest.raises(TimeoutError):
                await process.ask(STATUS, 0.001)
        for news in ("old", SOME_MISSING):
            with pytest.raises(TimeoutError, match="16 earlier questions"):
                await process.tell(news, 0.001)
        assert len(process._answers) == 16
        process.signal(signal.SIGCONT)
        while process._answers:
            await asyncio.wait([process._answers[-1]])
        assert await process.ask(STATUS, 20) == [STATUS] * 16 + [SOME_MISSING, STATUS]
        await process.tell("new", 20)
        assert (await process.ask(STATUS, 20))[-2:] == ["new", STATUS]
    finally:
        process.signal(signal.SIGKILL)
        process.end(process._process.wait())
        await process.close()


def test_a_signal_ends_processes_that_hang_at_their_start(path: pathlib.Path) -> None:
    """They have no rounds to finish: neither the time for a start nor the grace period is waited for."""
    begun = path / "begun"
    (path / "hangs.py").write_text(f"import time\nopen({str(begun)!r}, 'a').close()\ntime.sleep(600)")
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISES], env={**os.environ, "PYTHONPATH": str(path)})
    try:
        end = time.monotonic() + 20
        while not begun.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        supervisor.terminate()
        assert supervisor.wait(20) == 0
    finally:
        supervisor.kill()
        supervisor.wait()
