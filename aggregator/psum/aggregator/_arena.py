"""Where the sums of one job lie that its workers on this host read from shared memory."""

import logging

from psum.wire import Segment, SegmentError

_log = logging.getLogger(__name__)

#: Addresses that an arena may use: it takes memory only for the sums that were placed in it.
_ADDRESS_SPACE_BYTES = 1 << 38

#: Sums begin where pages begin, so that each can be had, or not be had, by itself.
_PAGE_BYTES = 4096


class Arena:
    """One place for each shard's last sum.

    One is enough: the sum of round r+1 is made when every rank has contributed to that round, hence has taken out the
    sum of round r. A worker that keeps a sum for another aggregator process keeps this memory with it, though the
    process that wrote it is gone.

    Args:
        directory: Where shared memory is kept.

    Raises:
        SegmentError: There is none.
    """

    def __init__(self, directory: str) -> None:
        self._segment = Segment.create(directory, _ADDRESS_SPACE_BYTES)
        self._places: dict[tuple[int, int], int] = {}
        self._end = 0
        self._full = False

    @property
    def name(self) -> str:
        """By which workers open it."""
        return self._segment.name

    def place(self, key: int, shard: int, size: int) -> tuple[int, memoryview] | None:
        """The place of a shard's sums, as offset and memory; None where there is no memory for it."""
        offset = self._places.get((key, shard))
        if offset is None:
            if self._full or self._end + size > self._segment.size:
                return None
            offset = self._end
            try:
                self._segment.reserve(offset, size)
            except SegmentError as error:
                self._full = True
                _log.warning("further sums travel in messages, also to workers on this host: %s", error)
                return None
            self._places[key, shard] = offset
            self._end += -(-size // _PAGE_BYTES) * _PAGE_BYTES
        return offset, self._segment.view[offset : offset + size]

    def close(self) -> None:
        """Nobody needs it any more."""
        self._places.clear()
        self._full = True
        self._segment.close()
