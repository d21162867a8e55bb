"""Shared memory that grows as blocks of it are allocated."""

import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from psum.planes.segment import Segment, SegmentError
from psum.planes.space_limit import DEFAULT_LIMIT, Limit

#: The address space of a segment. Only allocated blocks take memory.
_ADDRESS_SPACE_BYTES: Final = 1 << 38

#: Every block begins at a page, so that memory can be reserved for each block alone.
_PAGE_BYTES: Final = 4096


class Block(NamedTuple):
    """A block of shared memory.

    Attributes:
        offset: Its offset in the segment, in bytes.
        view: Its content, writable.
    """

    offset: int
    view: memoryview


class GrowingSegment:
    """Allocates blocks, and never takes one back: blocks are reused by their owners as long as the segment exists.

    Args:
        directory: Where shared memory is kept.
        lacking: Told once when there is not enough memory, with what was wanted and what there is.
        limit: How full psum may make the file system.

    Raises:
        SegmentError: There is no shared memory in the directory.
    """

    def __init__(self, directory: str, lacking: Callable[[SegmentError], None], limit: Limit = DEFAULT_LIMIT) -> None:
        self._segment = Segment.create(directory, _ADDRESS_SPACE_BYTES, limit)
        self._lacking = lacking
        self._end = 0
        self._full = False
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The name by which other processes open it."""
        return self._segment.name

    def allocate(self, size: int) -> Block | None:
        """A block of this many bytes, at least 1; None if there is not enough memory. From any thread."""
        with self._lock:
            offset = self._end
            if self._full or offset + size > self._segment.size:
                return None
            try:
                self._segment.reserve(offset, size)
            except SegmentError as error:
                self._full = True
                self._lacking(error)
                return None
            self._end += -(-size // _PAGE_BYTES) * _PAGE_BYTES
            return Block(offset, self._segment.view[offset : offset + size])

    def unlink(self) -> None:
        """Removes its name only. Takes no lock, so a signal handler may call it."""
        self._segment.unlink()

    def close(self) -> None:
        """Removes its name, so that no other process can open it. The memory goes with the last view of it."""
        with self._lock:
            self._full = True
            self._segment.close()
