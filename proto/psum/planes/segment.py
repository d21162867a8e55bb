"""Memory that processes of one host share: files in a directory that is kept in memory, such as /dev/shm.

A segment belongs to the process that made it. Only the same user can open its file, which has a random name. Its owner
holds a lock on it; `sweep` removes files without a lock, whose owners were killed. A file is sparse until memory is
reserved for it. Memory is reserved before it is written, because a write to a full file system ends the process with
SIGBUS. Reservations leave room for other processes, which a full file system would end in the same way.
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
import pathlib
import re
import secrets
import stat
from typing import Final, Self

from psum.planes.errors import PlaneError
from psum.planes.space_limit import DEFAULT_LIMIT, Limit, shortage, turn
from psum.runtime import mappings
from psum.runtime.file_descriptors import lack_of_descriptors

DEFAULT_DIRECTORY: Final = "/dev/shm"

_NAME: Final = re.compile(r"psum-[0-9a-f]{32}")

#: How much is reserved in one turn. Other processes wait for it, such as an aggregator's event loop, for milliseconds.
_TURN_BYTES: Final = 16 << 20

# FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE of Linux.
_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2


class SegmentError(PlaneError):
    """A segment could not be made, opened or given more memory; the text says why."""

    @classmethod
    def of(cls, what: str, error: Exception) -> Self:
        """The error for an exception of the system, and for what could not be done because of it."""
        lack = lack_of_descriptors(error)
        return cls(f"{what}: {lack or getattr(error, 'strerror', None) or error}", scarce=lack is not None)


class Segment:
    """A file of shared memory, mapped.

    Attributes:
        name: The name of its file, by which other processes open it.
        size: Its size in bytes. Parts that were not reserved take no memory.
        view: Its content, writable; empty after `close`. Slices of it stay valid as long as they are held.
    """

    def __init__(
        self, directory: str, name: str, descriptor: int, size: int, *, owned: bool, limit: Limit = DEFAULT_LIMIT
    ) -> None:
        self._directory = directory
        self._limit = limit
        self._descriptor = descriptor if owned else -1
        self._owned = owned
        self.name = name
        self.size = size
        self.view = memoryview(mmap.mmap(descriptor, size))

    def __repr__(self) -> str:
        return f"<Segment {self.name} of {self.size} bytes{' owned' if self._owned else ''}>"

    @classmethod
    def create(cls, directory: str, size: int, limit: Limit = DEFAULT_LIMIT) -> Self:
        """Makes a new segment, all zero.

        Args:
            directory: Where its file is made.
            size: Its size in bytes.
            limit: How full reservations may make the file system.

        Raises:
            SegmentError: There is no such directory, or its file system cannot hold segments.
        """
        name = f"psum-{secrets.token_hex(16)}"
        with contextlib.ExitStack() as undo:
            try:
                # It gets its name after it is locked, so that it never seems to be without an owner.
                descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR)
                undo.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(descriptor, size)
                folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                undo.callback(os.close, folder)
                os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
                undo.callback(os.unlink, f"{directory}/{name}")
                segment = cls(directory, name, descriptor, size, owned=True, limit=limit)
            except (OSError, ValueError) as error:
                raise SegmentError.of(f"no shared memory in {directory}", error) from None
            os.close(folder)
            undo.pop_all()
        return segment

    @classmethod
    def open(cls, directory: str, name: str) -> Self:
        """Opens another process's segment.

        Raises:
            SegmentError: There is no segment of that name that this user owns.
        """
        if not _NAME.fullmatch(name):
            raise SegmentError(f"{name!r} is not the name of a segment")
        try:
            descriptor = os.open(f"{directory}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SegmentError.of(f"{directory}/{name} cannot be opened", error) from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise SegmentError(f"{directory}/{name} is not a file of this user alone")
            # Only the owner needs the descriptor after mapping it.
            return cls(directory, name, descriptor, status.st_size, owned=False)
        except (OSError, ValueError) as error:
            raise SegmentError.of(f"{directory}/{name} cannot be mapped", error) from None
        finally:
            os.close(descriptor)

    def reserve(self, offset: int, size: int) -> None:
        """Reserves memory for a part of the segment, which may be written from then on. Reserves all of it or nothing.

        Args:
            offset: Where the part begins.
            size: Its size in bytes.

        Raises:
            SegmentError: There is not enough memory, or the limit does not allow it; the text says what there is.
        """
        done = 0
        try:
            while done < size:
                with turn(self._directory) as others_wait:
                    # Checks the whole rest, to fail before it takes memory that others could use.
                    if (reason := shortage(self._directory, size - done, self._limit)) is not None:
                        raise SegmentError(reason, scarce=True)
                    part = min(_TURN_BYTES, size - done)
                    os.posix_fallocate(self._descriptor, offset + done, part)
                done += part
                # Several processes may have found the same memory free. The last of them to take it notices, at least.
                if not others_wait and shortage(self._directory, size - done, self._limit) is not None:
                    raise SegmentError(
                        f"{size} bytes of shared memory could not be reserved in {self._directory}: other processes"
                        f" reserved memory there at the same time, so that PSUM_SHM_LIMIT={self._limit} does not leave"
                        " enough",
                        scarce=True,
                    )
        except (OSError, SegmentError) as error:
            _punch(self._descriptor, offset, done)
            if isinstance(error, SegmentError):
                raise
            reason = lack_of_descriptors(error) or error.strerror or str(error)
            raise SegmentError(
                f"{size} bytes of shared memory could not be reserved in {self._directory} ({reason})"
                f"{_free(self._directory)}",
                scarce=True,
            ) from None

    def give_back(self, offset: int, size: int) -> None:
        """Gives back memory that was reserved: what it held is gone in every process, and it must not be written to."""
        if self._descriptor >= 0:
            _punch(self._descriptor, offset, size)

    def separate(self, offset: int, size: int) -> bool:
        """Separates a part from the segment: what this process writes there is seen by no other process from now on.

        Slices of `view` stay valid, and other threads may write to them at the same time.

        Args:
            offset: Where the part begins: at a page.
            size: Its size in bytes.

        Returns:
            Whether it was separated. If not, the segment was closed, or there are too many mappings.
        """
        if self._descriptor < 0:
            return False
        return mappings.copy_on_write(mappings.address_of(self.view) + offset, size, self._descriptor, offset)

    def unlink(self) -> None:
        """Removes the name: no other process can open it any more, and the file goes with the last mapping."""
        with contextlib.suppress(OSError):
            os.unlink(f"{self._directory}/{self.name}")

    def close(self) -> None:
        """Closes it, and removes its name if this process owns it. The memory goes with the last view of it."""
        if self._owned:
            self.unlink()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self.view = memoryview(b"")


def sweep(directory: str) -> list[str]:
    """Removes the segments in a directory whose owners are gone, and returns their names."""
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
        # It is another user's, or gone already.
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def _punch(descriptor: int, offset: int, size: int) -> None:
    """Gives back memory that was reserved and is not used."""
    if size:
        # If the file system cannot do that, the memory goes with the file.
        fallocate = ctypes.CDLL(None).fallocate
        fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(size))


def _free(directory: str) -> str:
    """How much is free in a directory, as the end of a sentence."""
    try:
        status = os.statvfs(directory)
    except OSError:
        return ""
    return f"; {status.f_bavail * status.f_frsize} bytes are free there"
