"""The `psum` command as a real process, and a look at what it leaves behind."""

import contextlib
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

#: How long anything in these tests may take.
PATIENCE_SECONDS = 30.0

_MARK = "TEST_PSUM_MARK"


class Command:
    """Starts `psum` with an environment variable by which all that it starts, however deep, is found again."""

    def __init__(self) -> None:
        self._mark = secrets.token_hex(8)
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **environ: str) -> "subprocess.Popen[str]":
        """Starts it with these arguments, and these variables on top of this process's own."""
        return self.start_writing_to(subprocess.PIPE, *arguments, **environ)

    def start_writing_to(self, stdout: int, *arguments: str, **environ: str) -> "subprocess.Popen[str]":
        """The same, with its output going to a file descriptor."""
        return self._start([], stdout, arguments, environ)

    def start_with(self, prefix: Sequence[str], *arguments: str, **environ: str) -> "subprocess.Popen[str]":
        """The same, by a command that becomes it."""
        return self._start(prefix, subprocess.PIPE, arguments, environ)

    def _start(
        self, prefix: Sequence[str], stdout: int, arguments: Sequence[str], environ: Mapping[str, str]
    ) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "psum.cli", *arguments],
            env={**os.environ, **environ, _MARK: self._mark},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        """Runs it to its end."""
        process = self.start(*arguments, **environ)
        out, error = process.communicate(timeout=PATIENCE_SECONDS)
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    def left(self) -> dict[int, str]:
        """The processes that run and were started by this, by process id with their command lines."""
        return {
            int(entry.name): command
            for entry in pathlib.Path("/proc").iterdir()
            if entry.name.isdecimal() and (command := self._command_line(entry))
        }

    def wait_until_nothing_is_left(self) -> None:
        """Waits, as init may take a moment to bury the orphans that were killed."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left := self.left():
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.02)

    def close(self) -> None:
        """Kills what runs, with all that it started."""
        for process in self.started:
            process.kill()
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def _command_line(self, entry: pathlib.Path) -> str:
        # A zombie has neither environment nor command line.
        try:
            if f"{_MARK}={self._mark}".encode() in (entry / "environ").read_bytes():
                return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            pass
        return ""


@pytest.fixture
def psum() -> Iterator[Command]:
    """The `psum` command; after each test nothing that it started is left."""
    command = Command()
    try:
        yield command
        command.wait_until_nothing_is_left()
    finally:
        command.close()


@pytest.fixture
def launch(psum: Command) -> "Callable[..., subprocess.CompletedProcess[str]]":
    """Runs `psum launch` to its end with a shell script or a Python program as the workers."""

    def run(
        *options: str, shell: str | None = None, python: str | None = None, **environ: str
    ) -> "subprocess.CompletedProcess[str]":
        worker = ["sh", "-c", shell] if shell is not None else [sys.executable, "-c", python or ""]
        return psum.run("launch", *options, "--", *worker, **environ)

    return run
