"""The handling of processes in tests/conftest.py, tested by running pytest."""

import pathlib
import subprocess
import sys
import time

import pytest

from tests.process_stat import is_running
from tests.processes import environment_of, running

ROOT = pathlib.Path(__file__).parent.parent


def run_pytest(directory: pathlib.Path, program: str, shell: str = "") -> "subprocess.CompletedProcess[str]":
    """Run tests with the configuration of this directory, after some shell commands."""
    file = directory / "test_it.py"
    file.write_text(program)
    command = [sys.executable, "-m", "pytest", "-q", "-c", "pyproject.toml", "--noconftest", "-p", "tests.conftest"]
    command += ["-p", "no:cacheprovider", str(file)]
    return subprocess.run(
        ["sh", "-c", f'{shell}\nexec "$@"', "sh", *command], cwd=ROOT, capture_output=True, text=True, timeout=50
    )


def test_what_a_failed_test_started_is_ended_and_what_tests_share_is_not(tmp_path: pathlib.Path) -> None:
    """This also holds for a process in its own session whose parent has ended."""
    done = run_pytest(
        tmp_path,
        """
import pathlib, subprocess, pytest

@pytest.fixture(scope="module")
def shared():
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()

@pytest.fixture
def file(tmp_path_factory):
    return tmp_path_factory.getbasetemp() / "pid"

def test_fails(shared, file):
    subprocess.run(["sh", "-c", f"setsid sleep 600 & echo $! >{file}"], check=True)
    raise AssertionError("on purpose")

def test_meets_nothing(shared, file):
    stat = pathlib.Path("/proc", file.read_text().strip(), "stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
    assert shared.poll() is None
""",
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "on purpose" in done.stdout
    assert "left running" not in done.stdout


def test_tests_that_pass_and_leave_something_running_fail_the_run(tmp_path: pathlib.Path) -> None:
    """The process is named and ended."""
    program = 'import subprocess\ndef test_it(): subprocess.Popen("exec sleep 601 & true", shell=True).wait()'
    done = run_pytest(tmp_path, program)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.endswith(" sleep 601")]
    assert "left running by tests, and killed:" in done.stdout
    assert not is_running(int(line.split()[0]))


def test_the_environment_of_a_process_that_just_begins_its_program_is_awaited(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment it reads as empty, as that of a kernel's thread always does."""
    environment = tmp_path / "environ"
    environment.write_bytes(b"")
    # It begins while it is waited for.
    monkeypatch.setattr(time, "sleep", lambda _: environment.write_bytes(b"NAME=value"))
    assert environment_of(tmp_path, flags=0) == b"NAME=value"
    environment.write_bytes(b"")
    assert environment_of(tmp_path, flags=0x00200000) == b""


@pytest.mark.parametrize("shell", ["", "trap '' INT TERM HUP QUIT"])
def test_processes_of_tests_heed_signals_however_the_tests_were_started(tmp_path: pathlib.Path, shell: str) -> None:
    """Under nohup or in the background of a script, tests ignore signals, but processes that they start do not."""
    done = run_pytest(
        tmp_path,
        f"""
import os, signal, subprocess, sys

def test_it():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if {bool(shell)}:
            os.kill(os.getpid(), number)
        program = f"import os, time; os.kill(os.getpid(), {{int(number)}}); time.sleep(30)"
        assert subprocess.run([sys.executable, "-c", program]).returncode == -number
""",
        shell,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_block_that_fails_does_not_wait_for_its_process() -> None:
    """The test shows its error, not a timeout."""
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError), running(["sleep", "600"]) as process:
        _ = 1 / 0
    assert process.returncode == -9
    assert time.monotonic() - started < 10
