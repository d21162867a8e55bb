"""Buries orphans: as process 1 of a container, a launcher is the parent of all whose own parent has ended."""

import contextlib
import os
from collections.abc import Collection


def bury(children: Collection[int]) -> None:
    """Waits for processes that have ended and have this one as their parent, without having been started by it.

    Args:
        children: The processes that this one has started and waits for elsewhere.
    """
    for pid in _zombies(os.getpid()):
        if pid not in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _zombies(parent: int) -> list[int]:
    found = []
    # waitid would name one that ended, and the same one again as long as somebody else is to wait for it.
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal():
                # A process may end while it is looked at.
                with contextlib.suppress(OSError), open(f"/proc/{entry.name}/stat", "rb") as file:
                    # The command in parentheses may contain anything; then come state and parent.
                    state, of = file.read().rpartition(b")")[2].split()[:2]
                    if state == b"Z" and int(of) == parent:
                        found.append(int(entry.name))
    return found
