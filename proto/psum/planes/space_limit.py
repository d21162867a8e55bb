"""How much of a file system psum takes, so that others who need room there find it.

Whoever writes to a shared memory file system that is full, such as a DataLoader's process that has mapped a file of
its own, is ended by SIGBUS. psum reserves its memory early and for long, so it has to leave room for what comes later.
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

#: How long another process's turn to reserve memory may take. Its turns are short: see Segment.reserve. An aggregator's
#: event loop may be what waits.
_TURN_SECONDS: Final = 0.1
_POLL_SECONDS: Final = 0.001

#: Where a directory cannot be locked: it cannot be read by this user, or its file system has no locks.
_NO_LOCK: Final = (errno.EACCES, errno.EPERM, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@dataclasses.dataclass(frozen=True, slots=True)
class Limit:
    """Up to where psum may fill a file system, whoever has filled it to there.

    A limit on what is in use by all, rather than by psum, needs no agreement between the processes that share the file
    system: what is free tells each of them the same.

    Attributes:
        percent: As a part of the file system, used where there is no size.
        bytes: As a size, None where it is a part.
    """

    percent: float = 50.0
    bytes: int | None = None

    def __str__(self) -> str:
        return f"{self.percent:g}%" if self.bytes is None else f"{self.bytes}"

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """Parses a part such as 50% or a size such as 2GiB.

        Raises:
            ValueError: It is neither; the text says what was expected.
        """
        if match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text):
            if float(match[1]) <= 100:
                return cls(percent=float(match[1]))
        else:
            with contextlib.suppress(ValueError):
                return cls(bytes=size(text))
        raise ValueError("expected a part of the file system from 0% to 100%, such as 50%, or a size such as 2GiB")

    def of(self, total: int) -> int:
        """How many bytes of a file system of this size may be in use."""
        return min(total, int(total * self.percent / 100) if self.bytes is None else self.bytes)


#: Half for psum, half for all others.
DEFAULT_LIMIT: Final = Limit()


def shortage(directory: str, wanted: int, limit: Limit) -> str | None:
    """Why so many bytes may not be taken in a directory, None where they may.

    A file system without a size of its own, as a tmpfs with size=0, has no end that anybody could run into: there is no
    limit then.

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
        " --shm-size, or an emptyDir of medium Memory), or raise PSUM_SHM_LIMIT where nobody else needs it"
    )


@contextlib.contextmanager
def turn(directory: str) -> Iterator[None]:
    """Holds up all other processes that reserve memory in a directory: what one of them finds free is still free when
    it takes it. Where the directory cannot be locked, or somebody keeps it locked, nobody is held up.

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
            yield
        finally:
            if locked:
                # Said, and not left to closing: a child that was forked meanwhile has the descriptor too.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Locks a directory; returns False where that cannot be done, or where another process keeps it locked."""
    deadline = time.monotonic() + _TURN_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                # Anybody can lock it. The limit is for the good of all, and not worth waiting for a stopped process.
                return False
            # A lock of a file has no waiting with a deadline.
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            if error.errno not in _NO_LOCK:
                raise
            return False
        else:
            return True


def _people(count: int) -> str:
    """A size for people."""
    return f"{count / 2**20:.1f} MiB" if count >= 1 << 20 else f"{count / 2**10:g} KiB"
