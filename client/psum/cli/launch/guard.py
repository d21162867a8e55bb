"""A small process that ends the children of a launcher that was killed.

A launcher that receives SIGKILL cannot end its children. The guard reads from a pipe whose writing end only the
launcher has. When the pipe ends, the launcher has ended, and the guard ends all process groups that the launcher has
not reported as ended, including grandchildren. This file is also the guard's program. It needs only the standard
library.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from types import TracebackType
from typing import Final, Self

_GRACE_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 0.05


class Guard:
    """The launcher's side: reports the process groups that must end with it. A context manager."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        # In a new session, so that signals to the launcher's group do not end the guard.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    @property
    def children(self) -> set[int]:
        """The process ids that the launcher waits for itself: the leaders of the groups, and the guard."""
        return {self._process.pid, *self._groups}

    def watch(self, group: int) -> None:
        """Report that a process group was started."""
        self._groups.add(group)
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """Report that a process group has ended. The system may reuse its number."""
        self._groups.discard(group)
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        # The job goes on if the guard was killed.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode())


def group_runs(group: int) -> bool:
    """Return whether a process group has a running process. Zombies do not count."""
    # Close the iterator here. The garbage collector would warn later, in another place.
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal():
                # The process may end in the meantime.
                with contextlib.suppress(OSError), open(f"/proc/{entry.name}/stat", "rb") as file:
                    # The command stands in parentheses and may contain any character. State, parent and group follow.
                    state, _, found = file.read().rpartition(b")")[2].split()[:3]
                    if int(found) == group and state not in (b"Z", b"X"):
                        return True
    return False


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to every process of a group, if it has any."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        signal_group(group, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    while any(map(group_runs, groups)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    for group in groups:
        signal_group(group, signal.SIGKILL)


if __name__ == "__main__":
    _main()
