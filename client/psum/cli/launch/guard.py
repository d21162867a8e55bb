"""A small process that ends the children of a launcher that was killed.

A launcher that gets SIGKILL can end nothing any more. The guard holds the reading end of a pipe whose writing end the
launcher alone has: when the pipe ends, the launcher has ended, and whatever process groups it has not called over are
ended too, grandchildren included. This file is also the program that the guard runs, on the standard library alone.
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
    """The launcher's end: says which process groups are to end with it. A context manager."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        # In a session of its own: what ends the launcher's group must not end the guard.
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
        """The processes that this one has started and waits for itself: the leaders of the groups, and the guard."""
        return {self._process.pid, *self._groups}

    def watch(self, group: int) -> None:
        """A process group was started."""
        self._groups.add(group)
        self._tell(f"+{group}\n")

    def forget(self, group: int) -> None:
        """A process group has ended; its number may soon be another's."""
        self._groups.discard(group)
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        # A guard that somebody killed is no reason to end the job.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode())


def group_runs(group: int) -> bool:
    """Whether a process group has a process that runs; one that has ended and was not waited for yet does not."""
    # Closed here: what is left to the collector warns at another time, of something else.
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal():
                # A process may end while it is looked at.
                with contextlib.suppress(OSError), open(f"/proc/{entry.name}/stat", "rb") as file:
                    # The command in parentheses may contain anything; then come state, parent and process group.
                    state, _, found = file.read().rpartition(b")")[2].split()[:3]
                    if int(found) == group and state not in (b"Z", b"X"):
                        return True
    return False


def signal_group(group: int, number: signal.Signals) -> None:
    """Sends a signal to every process of a group; nothing happens where it has none."""
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
