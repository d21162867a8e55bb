"""Memory that processes of one host share: files in a directory that is kept in memory, such as /dev/shm.

A segment belongs to the process that made it. Its file can be opened by the same user only, has a random name, and is
locked as long as its owner lives: what an owner that was killed left behind is known by its free lock, and `sweep`
removes it. A file is sparse until memory is reserved for it, so that no write can find the directory full, which would
end the process.
"""

import contextlib
import fcntl
import mmap
import os
import pathlib
import re
import secrets
import stat
from typing import Final, Self

DEFAULT_DIRECTORY: Final = "/dev/shm"

_NAME: Final = re.compile(r"psum-[0-9a-f]{32}")


class SegmentError(Exception):
    """A segment could not be made, opened or given more memory; the text says why."""


class Segment:
    """A piece of shared memory.

    Attributes:
        name: The name of its file, by which others open it.
        size: Its size in bytes; what was not reserved takes no memory.
        view: Its content. A view of it that somebody keeps keeps the memory, whatever becomes of the file.
    """

    def __init__(self, directory: str, name: str, descriptor: int, size: int, *, owned: bool) -> None:
        self._directory = directory
        self._descriptor = descriptor if owned else -1
        self._owned = owned
        self.name = name
        self.size = size
        self.view = memoryview(mmap.mmap(descriptor, size))

    def __repr__(self) -> str:
        return f"<Segment {self.name} of {self.size} bytes{' owned' if self._owned else ''}>"

    @classmethod
    def create(cls, directory: str, size: int) -> Self:
        """A new segment, all zero.

        Raises:
            SegmentError: There is no such directory, or its file system cannot hold one.
        """
        name = f"psum-{secrets.token_hex(16)}"
        with contextlib.ExitStack() as undo:
            try:
                # It gets its name when it is locked: nobody ever sees it without an owner.
                descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR)
                undo.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, size)
                place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                undo.callback(os.close, place)
                os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=place, dst_dir_fd=place, follow_symlinks=True)
                undo.callback(os.unlink, f"{directory}/{name}")
                segment = cls(directory, name, descriptor, size, owned=True)
            except (OSError, ValueError) as error:
                raise SegmentError(f"no shared memory in {directory}: {error}") from None
            os.close(place)
            undo.pop_all()
        return segment

    @classmethod
    def open(cls, directory: str, name: str) -> Self:
        """Another process's segment.

        Raises:
            SegmentError: There is none of that name that this user owns.
        """
        if not _NAME.fullmatch(name):
            raise SegmentError(f"{name!r} is no name of a segment")
        try:
            descriptor = os.open(f"{directory}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SegmentError(f"{directory}/{name} cannot be opened: {error.strerror}") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise SegmentError(f"{directory}/{name} is not a file of this user alone")
            # Only an owner needs more than the mapping.
            return cls(directory, name, descriptor, status.st_size, owned=False)
        except (OSError, ValueError) as error:
            raise SegmentError(f"{directory}/{name} cannot be mapped: {error}") from None
        finally:
            os.close(descriptor)

    def reserve(self, offset: int, size: int) -> None:
        """Makes sure that there is memory for a part, which may be written from then on.

        Raises:
            SegmentError: There is not; the text says what there is.
        """
        try:
            os.posix_fallocate(self._descriptor, offset, size)
        except OSError as error:
            raise SegmentError(
                f"{size} bytes of shared memory are not to be had in {self._directory} ({error.strerror});"
                f" {_free(self._directory)} bytes are free there"
            ) from None

    def unlink(self) -> None:
        """Takes the name away: nobody else can open it any more, and it goes with those who have."""
        with contextlib.suppress(OSError):
            os.unlink(f"{self._directory}/{self.name}")

    def close(self) -> None:
        """Lets go of it, and of its name where it is this process's own. The memory goes with the last view of it."""
        if self._owned:
            self.unlink()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self.view = memoryview(b"")


def sweep(directory: str) -> list[str]:
    """Removes segments whose owners are gone; returns their names."""
    swept = []
    with contextlib.suppress(OSError):
        for path in pathlib.Path(directory).iterdir():
            if _NAME.fullmatch(path.name) and _abandoned(path):
                with contextlib.suppress(OSError):
                    path.unlink()
                    swept.append(path.name)
    return swept


def _abandoned(path: pathlib.Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        # Another user's, or gone already.
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def _free(directory: str) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
