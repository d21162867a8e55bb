"""Ends this process with the one that started it, and clears up after that."""

import asyncio
import contextlib
import ctypes
import dataclasses
import os
import signal
import sys
from typing import Final

from psum.planes import sweep

#: prctl(2): the signal that this process gets when its parent ends.
_PR_SET_PDEATHSIG: Final = 1

#: How long a parent may take to end after the kernel has sent the signal.
_ENDING_SECONDS: Final = 3.0

_POLL_SECONDS: Final = 0.01


def end_with(parent: int, number: signal.Signals) -> None:
    """Makes the kernel send this process a signal when its parent has ended, however that ended.

    The parent is the thread that started this process: it must live as long as its process. If the parent has ended
    already, this ends the process at once and says so on standard error. Without the permission to ask the kernel, it
    changes nothing else.

    The kernel sends the signal for each thread of the parent that was the last one's successor, so it may come several
    times.

    Args:
        parent: The parent's process id.
        number: The signal.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        # Mostly nobody reads it, because the parent has just ended.
        with contextlib.suppress(OSError):
            text = f"this process ends: process {parent}, with which it should end, has ended or did not start it"
            os.write(sys.stderr.fileno(), f"{text}\n".encode())
        os._exit(1)


@dataclasses.dataclass(frozen=True, slots=True)
class Parent:
    """The process that started this one, with which this one ends: the kernel then sends SIGTERM.

    Attributes:
        pid: Its process id.
    """

    pid: int

    def watch(self) -> None:
        """Asks the kernel for the signal. See `end_with`."""
        end_with(self.pid, signal.SIGTERM)

    async def ended(self) -> None:
        """Waits after the signal until all threads of the parent have ended, for some seconds at most: then nothing
        locks the shared memory that it has left, and no further signal comes."""
        give_up = asyncio.get_running_loop().time() + _ENDING_SECONDS
        # The system does not report it.
        while os.getppid() == self.pid and asyncio.get_running_loop().time() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)

    @staticmethod
    def clear_up(shm_directory: str) -> None:
        """Removes the shared memory that killed processes have left there."""
        sweep(shm_directory)
