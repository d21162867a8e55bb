"""Shared memory that grows as blocks of it are allocated."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from psum.planes.segment import Segment, SegmentError
from psum.planes.slots import Slots
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
    """Allocates blocks. Most owners keep theirs as long as the segment exists; others free them.

    Args:
        directory: Where shared memory is kept.
        lacking: Told once when there is not enough memory, with what was wanted and what there is.
        limit: How full psum may make the file system.

    Raises:
        SegmentError: There is no shared memory in the directory.
    """

    def __init__(self, directory: str, lacking: Callable[[SegmentError], None], limit: Limit = DEFAULT_LIMIT) -> None:
        self._segment = Segment.create(directory, _ADDRESS_SPACE_BYTES, limit)
        self._lacking: Callable[[SegmentError], None] | None = lacking
        self._slots = Slots(self._segment.size, _PAGE_BYTES)
        self._full = False
        self._closed = False
        self._freed: deque[tuple[int, int]] = deque()
        """Blocks that were freed and whose memory was not given back yet, as (offset, size)."""
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The name by which other processes open it."""
        return self._segment.name

    def allocate(self, size: int) -> Block | None:
        """A block of this many bytes, at least 1; None if there is not enough memory. From any thread."""
        self._settle()
        with self._lock:
            if self._full or self._closed or (offset := self._slots.take(size)) is None:
                return None
            try:
                self._segment.reserve(offset, size)
            except SegmentError as error:
                self._slots.give(offset, size)
                self._full = True
                lacking, self._lacking = self._lacking, None
                if lacking is not None:
                    lacking(error)
                return None
            return Block(offset, self._segment.view[offset : offset + size])

    def free(self, offset: int, size: int) -> None:
        """Frees a block, whose memory is given back and used for others. From any thread and any finalizer.

        Args:
            offset: The block's offset. Nobody may use it any more, in this process or another.
            size: Its size, as it was allocated.
        """
        # A part of a page would only be cleared.
        self._freed.append((offset, -(-size // _PAGE_BYTES) * _PAGE_BYTES))
        self._settle()

    def separate(self, offset: int, size: int) -> bool:
        """Separates a block from the segment: what this process writes there is seen by no other process from now on.

        Takes no lock, so a process that was forked may call it, for its own view of the block. The block must not be
        freed while another process may read it.

        Args:
            offset: The block's offset.
            size: Its size, as it was allocated.

        Returns:
            Whether it was separated. If not, the segment was closed, or there are too many mappings.
        """
        return self._segment.separate(offset, size)

    def unlink(self) -> None:
        """Removes its name only. Takes no lock, so a signal handler may call it."""
        self._segment.unlink()

    def close(self) -> None:
        """Removes its name, so that no other process can open it. The memory goes with the last view of it."""
        with self._lock:
            self._closed = True
            self._segment.close()

    def _settle(self) -> None:
        """Gives back what was freed. If another call has the lock, perhaps in this thread, a later one does it."""
        while self._freed and self._lock.acquire(blocking=False):
            try:
                offset, size = self._freed.popleft()
                self._segment.give_back(offset, size)
                self._slots.give(offset, size)
                self._full = False
            finally:
                self._lock.release()
