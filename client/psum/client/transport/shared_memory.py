"""The memory that a worker shares with an aggregator on its host."""

from collections.abc import Callable
from typing import Final, Self

from psum.planes import (
    DEFAULT_LIMIT,
    GrowingSegment,
    Limit,
    Segment,
    SegmentError,
    Slots,
    sweep,
)
from psum.wire import ShardRound
from psum.wire.errors import ProtocolError

#: Room beside what is under way, for what lies between places that are taken.
_SLACK: Final = 1.25


class SharedMemory:
    """What the worker pushes, which is its own, and the sums, which are the aggregator's.

    Args:
        directory: Where shared memory is kept.
        credit_bytes: What may be under way.
        staging: Memory of this worker's that the aggregator may read from too, None where there is none.
        limit: Up to where it may fill the file system there.
        lacking: Told where there is no memory for what is pushed, which then travels in messages.

    Attributes:
        credit_bytes: The same.

    Raises:
        SegmentError: There is no shared memory there.
    """

    def __init__(
        self,
        directory: str,
        credit_bytes: int,
        staging: GrowingSegment | None = None,
        limit: Limit = DEFAULT_LIMIT,
        *,
        lacking: Callable[[SegmentError], None],
    ) -> None:
        self.credit_bytes = credit_bytes
        self._directory = directory
        self._lacking = lacking
        # What an aggregator that was killed has left, perhaps this one's last process.
        sweep(directory)
        self._mine = Segment.create(directory, int(credit_bytes * _SLACK), limit)
        self._slots = Slots(0)
        self._sums: Segment | None = None
        self._staging = staging
        self._reads_staging = False
        """Whether the aggregator has opened that."""

    @property
    def staging(self) -> str:
        """The name of the staging memory, empty where there is none."""
        return self._staging.name if self._staging is not None else ""

    @property
    def name(self) -> str:
        """By which the aggregator opens what is pushed."""
        return self._mine.name

    def accepted(self, sums: str, *, staging: bool) -> Self:
        """The aggregator has opened it, the staging memory too or not, and has named the memory where sums will lie.

        Raises:
            SegmentError: That cannot be opened.
        """
        self._sums = Segment.open(self._directory, sums)
        self._reads_staging = staging
        try:
            self._mine.reserve(0, self._mine.size)
            self._slots = Slots(self._mine.size)
        except SegmentError as error:
            self._lacking(error)
        return self

    def put(self, payload: memoryview, staged: int | None = None) -> int | None:
        """Has a payload lie where the aggregator reads it; returns its place, None where there is no room.

        Args:
            payload: The payload.
            staged: Its offset in the staging memory, where it lies there and need not be copied.
        """
        if staged is not None and self._reads_staging:
            # Places count on from the end of the other memory.
            return self._mine.size + staged
        offset = self._slots.take(len(payload))
        if offset is not None:
            self._mine.view[offset : offset + len(payload)] = payload
        return offset

    def free(self, offset: int, size: int) -> None:
        """The aggregator needs a payload no more."""
        if offset < self._mine.size:
            self._slots.give(offset, size)

    def sum(self, entry: ShardRound) -> memoryview:
        """A sum where the aggregator has placed it. It stays as it is until this worker pushes to the next round.

        Raises:
            ProtocolError: It would lie outside of the memory.
        """
        size = 0 if self._sums is None else self._sums.size
        if self._sums is None or entry.place + entry.placed > size:
            raise ProtocolError(f"a sum of {entry.placed} bytes at {entry.place} of {size} bytes of shared memory")
        return self._sums.view[entry.place : entry.place + entry.placed]

    def close(self) -> None:
        """Lets go of it. Sums that were kept, and what the aggregator still reads, stay until those let go too."""
        self._mine.close()
        if self._sums is not None:
            self._sums.close()
