"""Allocates blocks of memory in a fixed piece of memory."""

import bisect


class Slots:
    """A first-fit allocator.

    Args:
        size: The size of the memory in bytes.
        alignment: Every block begins at a multiple of this.
    """

    def __init__(self, size: int, alignment: int = 64) -> None:
        self._alignment = alignment
        self._free: list[tuple[int, int]] = [(0, size)] if size else []
        """Free pieces as (offset, size), by offset; no two pieces touch."""

    @property
    def free_bytes(self) -> int:
        """How many bytes are free, in one piece or several."""
        return sum(size for _, size in self._free)

    def take(self, size: int) -> int | None:
        """Takes a block of this many bytes, at least 1; returns its offset, None if no free piece is large enough."""
        size = self._rounded(size)
        for index, (offset, available) in enumerate(self._free):
            if available >= size:
                if available == size:
                    del self._free[index]
                else:
                    self._free[index] = (offset + size, available - size)
                return offset
        return None

    def give(self, offset: int, size: int) -> None:
        """Frees a block that was taken with this size."""
        size = self._rounded(size)
        index = bisect.bisect(self._free, (offset, 0))
        if index < len(self._free) and offset + size == self._free[index][0]:
            size += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == offset:
            index -= 1
            offset, before = self._free.pop(index)
            size += before
        self._free.insert(index, (offset, size))

    def _rounded(self, size: int) -> int:
        return -(-size // self._alignment) * self._alignment
