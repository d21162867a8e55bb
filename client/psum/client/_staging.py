"""Memory of a worker that aggregators on its host read from, so that what lies there is pushed without a copy."""

import logging
import threading
from typing import Final, NamedTuple

from psum.wire import Segment, SegmentError

_log = logging.getLogger(__name__)

#: Addresses that it may use: it takes memory only for what was allocated.
_ADDRESS_SPACE_BYTES: Final = 1 << 38

_PAGE_BYTES: Final = 4096


class Block(NamedTuple):
    """A piece of it.

    Attributes:
        place: Its offset.
        view: Its content.
    """

    place: int
    view: memoryview


class Staging:
    """Gives out memory and takes none back: it is for buffers that are reused for as long as the process runs.

    What was pushed from it must not be changed before the operation is done, and never where it failed: an aggregator
    may yet sum it, for other ranks.

    Args:
        directory: Where shared memory is kept.

    Raises:
        SegmentError: There is none.
    """

    def __init__(self, directory: str) -> None:
        self._segment = Segment.create(directory, _ADDRESS_SPACE_BYTES)
        self._end = 0
        self._full = False
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """By which aggregators open it."""
        return self._segment.name

    def allocate(self, size: int) -> Block | None:
        """Memory that begins with a page, None where there is no more of it. From any thread."""
        with self._lock:
            if self._full:
                return None
            place = self._end
            try:
                self._segment.reserve(place, size)
            except SegmentError as error:
                self._full = True
                _log.warning("what is pushed from further buffers is copied once more: %s", error)
                return None
            self._end += -(-size // _PAGE_BYTES) * _PAGE_BYTES
            return Block(place, self._segment.view[place : place + size])

    def close(self) -> None:
        """Nobody opens it any more. The memory goes with the last view of it."""
        with self._lock:
            self._full = True
            self._segment.close()
