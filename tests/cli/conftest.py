"""The `psum` command as a real process, and a check that no process is left over."""

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

#: The longest time for any step of these tests.
PATIENCE_SECONDS = 30.0

_MARK = "TEST_PSUM_MARK"


class Command:
    """Start `psum` with an environment variable that marks all descendants, so that they can be found."""

    def __init__(self) -> None:
        self._mark = secrets.token_hex(8)
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **environ: str) -> "subprocess.Popen[str]":
        """Start it with these arguments and additional environment variables."""
        return self.start_writing_to(subprocess.PIPE, *arguments, **environ)

    def start_writing_to(self, stdout: int, *arguments: str, **environ: str) -> "subprocess.Popen[str]":
        """As `start`, with standard output going to a file descriptor."""
        return self._start([], stdout, arguments, environ)

    def start_with(self, prefix: Sequence[str], *arguments: str, **environ: str) -> "subprocess.Popen[str]":
        """As `start`, through a command that becomes `psum`, such as nohup."""
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
        """Return the running descendants' command lines by process id."""
        return {
            int(entry.name): command
            for entry in pathlib.Path("/proc").iterdir()
            if entry.name.isdecimal() and (command := self._command_line(entry))
        }

    def wait_until_nothing_is_left(self) -> None:
        """Wait for all descendants to end. Init may take a moment to reap killed orphans."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left := self.left():
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.02)

    def close(self) -> None:
        """Kill all descendants."""
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
    """The `psum` command. After each test, no descendant may be left."""
    command = Command()
    try:
        yield command
        command.wait_until_nothing_is_left()
    finally:
        command.close()


@pytest.fixture
def launch(psum: Command) -> "Callable[..., subprocess.CompletedProcess[str]]":
    """Run `psum launch` to its end with a shell script or a Python program as the workers."""

    def run(
        *options: str, shell: str | None = None, python: str | None = None, **environ: str
    ) -> "subprocess.CompletedProcess[str]":
        worker = ["sh", "-c", shell] if shell is not None else [sys.executable, "-c", python or ""]
        return psum.run("launch", *options, "--", *worker, **environ)

    return run
