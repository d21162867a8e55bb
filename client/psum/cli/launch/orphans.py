"""Wait for orphans. As process 1 of a container, a launcher becomes the parent of processes whose parent has ended."""

import contextlib
import os
from collections.abc import Collection


def reap(children: Collection[int]) -> None:
    """Wait for ended child processes that this process has not started itself.

    Args:
        children: The ids of processes that this process has started and waits for elsewhere.
    """
    for pid in _zombies(os.getpid()):
        if pid not in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _zombies(parent: int) -> list[int]:
    found = []
    # waitid would return the same zombie again until its own waiter has waited for it.
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal():
                # The process may end in the meantime.
                with contextlib.suppress(OSError), open(f"/proc/{entry.name}/stat", "rb") as file:
                    # The command stands in parentheses and may contain any character. Then come state and parent.
                    state, of = file.read().rpartition(b")")[2].split()[:2]
                    if state == b"Z" and int(of) == parent:
                        found.append(int(entry.name))
    return found
