"""How much of a shared memory file system psum takes, so that other programs find room there.

SIGBUS ends a process that writes to a mapped file when the file system is full, such as a worker process of a
DataLoader. psum reserves memory early and keeps it long, so it leaves room for what comes later.
"""

import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from typing import Final

from psum.runtime.parsers import size

#: How long to wait for another process's turn to reserve memory. Turns are short, see Segment.reserve, and an
#: aggregator's event loop may be what waits.
_TURN_SECONDS: Final = 0.1
_POLL_SECONDS: Final = 0.001

#: Errors of a directory that cannot be locked: this user may not read it, or its file system has no locks.
_NO_LOCK: Final = (errno.EACCES, errno.EPERM, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """How full psum may make a file system.

    The limit counts what all programs use, not only psum. So the processes that share the file system need not agree
    on anything: each of them sees how much is free.

    Attributes:
        percent: The limit as a part of the file system, used if `bytes` is None.
        bytes: The limit in bytes, None if it is a part.
    """

    percent: float = 50.0
    bytes: int | None = None

    def __str__(self) -> str:
        return f"{self.percent:g}%" if self.bytes is None else f"{self.bytes}"

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """Parses a part such as 50% or a size such as 2GiB.

        Raises:
            ValueError: The text is neither; the error says what was expected.
        """
        if match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text):
            if float(match[1]) <= 100:
                return cls(percent=float(match[1]))
        else:
            with contextlib.suppress(ValueError):
                return cls(bytes=size(text))
        raise ValueError("expected a part of the file system from 0% to 100%, such as 50%, or a size such as 2GiB")

    def of(self, total: int) -> int:
        """How many bytes of a file system of this size may be used."""
        return min(total, int(total * self.percent / 100) if self.bytes is None else self.bytes)


#: psum leaves half of the file system to others.
DEFAULT_LIMIT: Final = Limit()


def shortage(directory: str, wanted: int, limit: Limit) -> str | None:
    """Why this many bytes may not be taken in a directory, None if they may.

    A file system without a size of its own, such as a tmpfs with size=0, cannot become full, so it has no limit.

    Raises:
        OSError: There is no such directory.
    """
    status = os.statvfs(directory)
    total, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    left_to_others = total - limit.of(total)
    if not total or free - wanted >= left_to_others:
        return None
    return (
        f"{_people(wanted)} more do not fit in {directory}: {_people(free)} of its {_people(total)} are free,"
        f" and psum leaves {_people(left_to_others)} to others (PSUM_SHM_LIMIT={limit}). Make it larger (docker run"
        " --shm-size, or an emptyDir of medium Memory), or raise PSUM_SHM_LIMIT if no other program needs it"
    )


@contextlib.contextmanager
def turn(directory: str) -> Iterator[bool]:
    """Makes other processes that reserve memory in a directory wait, so that what this one finds free stays free.

    Yields whether they do. If the directory cannot be locked, or another process keeps it locked, nobody waits.

    Raises:
        OSError: There is no such directory, or no file descriptor for it.
    """
    descriptor = -1
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _NO_LOCK:
            raise
    try:
        locked = descriptor >= 0 and _lock(descriptor)
        try:
            yield locked
        finally:
            if locked:
                # Explicit: closing does not unlock it while a child that was forked meanwhile has the descriptor.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Locks a directory; returns False if it cannot be locked, or if another process keeps it locked."""
    deadline = time.monotonic() + _TURN_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                # Any process can lock it. The limit is not worth waiting for a process that is stopped.
                return False
            # File locks cannot be waited for with a deadline.
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            if error.errno not in _NO_LOCK:
                raise
            return False
        else:
            return True


def _people(count: int) -> str:
    """A size in bytes, for people."""
    return f"{count / 2**20:.1f} MiB" if count >= 1 << 20 else f"{count / 2**10:g} KiB"
