"""Processes that tests start. Each ends with its block or test, also on failure."""

import contextlib
import dataclasses
import os
import pathlib
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from tests.process_stat import stat_fields

#: The environment variable that marks all descendants of tests.
_MARK: Final = "STARTED_BY_TESTS"

_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")

#: PF_KTHREAD of the kernel's include/linux/sched.h.
_KERNEL_THREAD: Final = 0x00200000

#: How long a process may take to begin its program.
_EXEC_SECONDS: Final = 0.5


@contextlib.contextmanager
def running(command: Sequence[str], **options: Any) -> "Iterator[subprocess.Popen[Any]]":
    """Start a command, and kill it at the end of the block. Popen's own block would wait for it without a limit."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def with_descriptors(soft: int, command: Sequence[str], hard: int | None = None) -> list[str]:
    """Return a command that runs the given one with limits of open file descriptors. A preexec_fn would run Python
    between fork and exec, where another thread's lock may be held for ever."""
    limits = f"ulimit -S -n {soft}; ulimit -H -n {soft if hard is None else hard}"
    return ["sh", "-c", f'{limits}; exec "$@"', "sh", *command]


@dataclasses.dataclass(frozen=True)
class Left:
    """A running process.

    Attributes:
        pid: The process id.
        started: The time of its start, in clock ticks since boot.
        command: The command line. A killed process may lose it before it has ended.
    """

    pid: int
    started: int
    command: str = dataclasses.field(compare=False)


class Moment:
    """The present moment, for comparison with the start of processes."""

    def __init__(self) -> None:
        self._children: set[int] = set()
        self._ticks = int(time.clock_gettime(time.CLOCK_BOOTTIME) * _CLOCK_TICKS)
        # Several processes may start within one tick. Without this file, all of them count as started later.
        with contextlib.suppress(OSError):
            self._children = {
                int(pid)
                for task in pathlib.Path("/proc/self/task").iterdir()
                for pid in (task / "children").read_text().split()
            }

    def is_after(self, pid: int, started: int) -> bool:
        """Return whether this moment is after the start of a process."""
        return started < self._ticks or (started == self._ticks and pid in self._children)


def environment_of(process: pathlib.Path, flags: int) -> bytes:
    """Return the environment of a process, given its directory in /proc and its flags as the kernel has them."""
    environment = (process / "environ").read_bytes()
    deadline = time.monotonic() + _EXEC_SECONDS
    # While a process executes a new program, its environment reads as empty. A thread of the kernel never has one.
    while not environment and not flags & _KERNEL_THREAD and time.monotonic() < deadline:
        time.sleep(0.001)
        environment = (process / "environ").read_bytes()
    return environment


class Leftovers:
    """Find running descendants of this process, including orphans."""

    def __init__(self) -> None:
        self._mark = secrets.token_hex(8)
        os.environ[_MARK] = self._mark

    def running(self, since: Moment | None = None) -> list[Left]:
        """Return the processes that were started since a moment, or all."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdecimal() and entry.name != str(os.getpid()):
                # The process may end in the meantime.
                with contextlib.suppress(OSError):
                    fields = stat_fields(int(entry.name))
                    state, parent, started = fields[0], int(fields[1]), int(fields[19])
                    if state in "ZX" or (since is not None and since.is_after(int(entry.name), started)):
                        continue
                    # A forked child has the environment of this process's start, without the mark.
                    if parent == os.getpid() or f"{_MARK}={self._mark}".encode() in environment_of(
                        entry, int(fields[6])
                    ):
                        command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                        found.append(Left(int(entry.name), started, command))
        return found

    def end(self, since: Moment | None = None) -> list[Left]:
        """Kill and return the processes that were started since a moment, or all."""
        ended: list[Left] = []
        # A process may start another one just before it is killed.
        while left := [process for process in self.running(since) if process not in ended]:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            ended += left
        return ended
