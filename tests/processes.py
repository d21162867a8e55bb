"""Processes that tests start: each ends with the block or the test that started it, also where that fails."""

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

#: The environment variable by which all that tests start, however deep, is found again.
_MARK: Final = "STARTED_BY_TESTS"

_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(command: Sequence[str], **options: Any) -> "Iterator[subprocess.Popen[Any]]":
    """Starts a command, and kills it at the end of the block. Popen's own block would wait for it, also for ever."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@dataclasses.dataclass(frozen=True)
class Left:
    """A process that runs.

    Attributes:
        pid: Its number.
        started: When it was started, in the system's clock ticks since boot.
        command: Its command line.
    """

    pid: int
    started: int
    command: str


class Moment:
    """Now, to be compared with when processes were started."""

    def __init__(self) -> None:
        self._children: set[int] = set()
        self._ticks = int(time.clock_gettime(time.CLOCK_BOOTTIME) * _CLOCK_TICKS)
        # A tick is long. Not every kernel has this file; then what was started within the tick counts as later.
        with contextlib.suppress(OSError):
            self._children = {
                int(pid)
                for task in pathlib.Path("/proc/self/task").iterdir()
                for pid in (task / "children").read_text().split()
            }

    def is_after(self, pid: int, started: int) -> bool:
        """Whether it came after the start of a process."""
        return started < self._ticks or (started == self._ticks and pid in self._children)


class Leftovers:
    """Finds what this process has started and what still runs of it, grandchildren and orphans included."""

    def __init__(self) -> None:
        self._mark = secrets.token_hex(8)
        os.environ[_MARK] = self._mark

    def running(self, since: Moment | None = None) -> list[Left]:
        """The processes that were started since a moment, by default all of them."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdecimal() and entry.name != str(os.getpid()):
                # A process may end while it is looked at.
                with contextlib.suppress(OSError):
                    # The command in parentheses may contain anything; field 22 is the start.
                    fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                    state, parent, started = fields[0], int(fields[1]), int(fields[19])
                    if state in b"ZX" or (since is not None and since.is_after(int(entry.name), started)):
                        continue
                    # What was forked has the environment that this process was started with.
                    if parent == os.getpid() or f"{_MARK}={self._mark}".encode() in (entry / "environ").read_bytes():
                        command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                        found.append(Left(int(entry.name), started, command))
        return found

    def end(self, since: Moment | None = None) -> list[Left]:
        """Kills the processes that were started since a moment, by default all of them; returns them."""
        ended: list[Left] = []
        # What is killed may just be starting another one.
        while left := [process for process in self.running(since) if process not in ended]:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            ended += left
        return ended
