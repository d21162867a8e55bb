"""Shared memory that grows with what is asked of it."""

import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from psum.planes.segment import Segment, SegmentError
from psum.planes.space_limit import DEFAULT_LIMIT, Limit

#: Addresses that it may use: it takes memory only for what was allocated.
_ADDRESS_SPACE_BYTES: Final = 1 << 38

#: Every block begins with a page, so that each can be had, or not be had, by itself.
_PAGE_BYTES: Final = 4096


class Block(NamedTuple):
    """A piece of it.

    Attributes:
        place: Its offset.
        view: Its content.
    """

    place: int
    view: memoryview


class GrowingSegment:
    """Gives out memory and takes none back: it is for what is used again and again for as long as it is there.

    Args:
        directory: Where shared memory is kept.
        lacking: Told once that there is no more memory, with what was wanted and what there is.
        limit: Up to where it may fill the file system.

    Raises:
        SegmentError: There is no shared memory there.
    """

    def __init__(self, directory: str, lacking: Callable[[SegmentError], None], limit: Limit = DEFAULT_LIMIT) -> None:
        self._segment = Segment.create(directory, _ADDRESS_SPACE_BYTES, limit)
        self._lacking = lacking
        self._end = 0
        self._full = False
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """By which other processes open it."""
        return self._segment.name

    def allocate(self, size: int) -> Block | None:
        """A block of so many bytes, at least one; None where there is no more memory. From any thread."""
        with self._lock:
            place = self._end
            if self._full or place + size > self._segment.size:
                return None
            try:
                self._segment.reserve(place, size)
            except SegmentError as error:
                self._full = True
                self._lacking(error)
                return None
            self._end += -(-size // _PAGE_BYTES) * _PAGE_BYTES
            return Block(place, self._segment.view[place : place + size])

    def close(self) -> None:
        """Nobody opens it any more. The memory goes with the last view of it."""
        with self._lock:
            self._full = True
            self._segment.close()
