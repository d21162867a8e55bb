"""All processes of a launch end with it, whatever ends it: signals, processes that die, grace periods."""

import os
import pathlib
import re
import signal
import sys
import time
from typing import Any

import pytest

from tests.cli.launch.workers import WAIT, WAIT_DEAF, Launch, wait_until_ready
from tests.polling import PATIENCE_SECONDS, wait_until


def test_what_a_worker_started_ends_with_it(launch: Launch) -> None:
    """This holds even if it keeps the worker's output open."""
    done = launch("--workers", "1", shell="sleep 600 & echo done")
    assert (done.returncode, done.stdout) == (0, "[0] done\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything(psum: Any, number: signal.Signals) -> None:
    """Workers, their children and aggregators end. The fixture checks that no process is left."""
    process = psum.start("launch", "--workers", "2", "--aggregators", "2", "--", "sh", "-c", WAIT)
    wait_until_ready(process, 2)
    process.send_signal(number)
    assert process.wait() == 128 + number
    assert f"ending all processes on {number.name}" in process.stderr.read()


def test_a_signal_that_is_ignored_from_the_start_ends_nothing(psum: Any) -> None:
    """Under nohup, a launch outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = psum.start("launch", "--workers", "1", "--", "sh", "-c", WAIT)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_until_ready(process, 1)
    process.send_signal(signal.SIGHUP)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    assert process.stderr.read() == "psum: ending all processes on SIGTERM\n"


def test_signals_of_schedulers_are_passed_on_to_workers(psum: Any) -> None:
    """Slurm sends such a signal before a job's time is over, so that the program can save its state."""
    script = "trap 'echo saved; kill $!; exit 0' USR1; sleep 600 & echo ready; wait"
    process = psum.start("launch", "--workers", "2", "--", "sh", "-c", script)
    wait_until_ready(process, 2)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(PATIENCE_SECONDS) == 0
    assert sorted(process.stdout.read().splitlines()) == ["[0] saved", "[1] saved"]


#: A program that becomes the parent of all whose own parent has ended, as process 1 of a container is.
AS_INIT = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_as_process_1_it_leaves_no_zombies(psum: Any, tmp_path: pathlib.Path) -> None:
    """It reaps orphans while workers run. Its own children end as usual."""
    file, end = tmp_path / "orphans", tmp_path / "end"
    orphan = f"(setsid sh -c 'echo $$ >>{file}; exit 3' &)"
    script = f"{orphan}; {orphan}; {orphan}; echo ready; until [ -e {end} ]; do sleep 0.05; done; exit 4"
    process = psum.start_with([sys.executable, "-c", AS_INIT], "launch", "--workers", "1", "--", "sh", "-c", script)
    wait_until_ready(process, 1)
    wait_until(lambda: file.exists() and len(file.read_text().split()) == 3)
    wait_until(lambda: not any(pathlib.Path("/proc", pid).exists() for pid in file.read_text().split()))
    end.touch()
    assert process.wait(PATIENCE_SECONDS) == 4


def test_it_runs_where_the_end_of_children_is_ignored(psum: Any) -> None:
    """A parent that ignores SIGCHLD passes this on, and the system would then discard the status of workers."""
    ignore = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = psum.start_with([sys.executable, "-c", ignore], "launch", "--workers", "1", "--", "sh", "-c", "exit 7")
    assert process.wait(PATIENCE_SECONDS) == 7


def test_what_does_not_end_on_sigterm_is_killed_after_the_grace_period(psum: Any) -> None:
    """Processes that ignore SIGTERM do not outlive the launcher."""
    process = psum.start("launch", "--workers", "2", "--grace", "0.2", "--", "sh", "-c", WAIT_DEAF)
    wait_until_ready(process, 2)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM


def test_a_worker_that_is_stopped_ends_without_the_grace_period(launch: Launch, tmp_path: pathlib.Path) -> None:
    """SIGCONT lets a stopped worker handle SIGTERM."""
    file = tmp_path / "pid"
    stopped = f"until grep -q ') T ' /proc/$(cat {file})/stat; do :; done"
    script = f"if [ $PSUM_RANK = 0 ]; then echo $$ > {file}; kill -STOP $$; sleep 600; fi; {stopped}; exit 3"
    started = time.monotonic()
    done = launch("--workers", "2", "--grace", "25", shell=script)
    assert done.returncode == 3
    assert time.monotonic() - started < 15


def test_a_second_signal_does_not_wait_for_the_grace_period(psum: Any) -> None:
    """The grace period is longer here than the test may take."""
    process = psum.start("launch", "--workers", "2", "--grace", "3600", "--", "sh", "-c", WAIT_DEAF)
    wait_until_ready(process, 2)
    process.terminate()
    # Send the second signal after the launcher has handled the first.
    assert "ending all processes" in process.stderr.readline()
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM


def test_a_launcher_that_is_killed_leaves_nothing_running(psum: Any) -> None:
    """The guard ends its processes. The fixture checks that no process is left."""
    process = psum.start("launch", "--workers", "2", "--", "sh", "-c", WAIT)
    wait_until_ready(process, 2)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_an_aggregator_that_dies_ends_the_job(psum: Any) -> None:
    """The error names the aggregator."""
    process = psum.start("launch", "--workers", "2", "--aggregators", "2", "--", "sh", "-c", WAIT)
    wait_until_ready(process, 2)
    victim = next(pid for pid, command in psum.left().items() if "psum.cli aggregator" in command)
    os.kill(victim, signal.SIGKILL)
    assert process.wait() == 128 + signal.SIGKILL
    assert re.search(
        r"aggregator \d at 127\.0\.0\.1:\d+ was killed by SIGKILL while workers need it", process.stderr.read()
    )
