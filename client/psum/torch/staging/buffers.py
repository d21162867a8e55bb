"""Host memory that is lent to one transfer after another, within a budget."""

import bisect
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

#: The least size of a buffer, and what all sizes are a multiple of: a page.
_PAGE_BYTES: Final = 4096

#: A tensor gets an idle buffer of at most this many times the size of a new one, while a new one may be made.
_SLACK: Final = 2


class Sized(Protocol):
    """Memory of some size in bytes."""

    @property
    def size(self) -> int: ...


Memory = TypeVar("Memory", bound=Sized)


def buffer_size(nbytes: int) -> int:
    """The size of a new buffer for this many bytes: there are four sizes between a power of two and the next."""
    step = max(1 << max((nbytes - 1).bit_length() - 3, 0), _PAGE_BYTES)
    return -(-nbytes // step) * step


class BufferPool(Generic[Memory]):
    """Lends buffers. They are reused and not given back to the system, since pinning memory takes long.

    All buffers together take at most the budget, with one exception: if no buffer is lent and all are too small, one
    more is made. So every tensor gets a buffer at some time, however large it is.

    Args:
        budget: In bytes.
        make: Makes memory of a size.

    Attributes:
        allocated: The bytes of all buffers.
        lent: The number of buffers that are lent.
    """

    def __init__(self, budget: int, make: Callable[[int], Memory]) -> None:
        self.allocated = 0
        self.lent = 0
        self._budget = budget
        self._make = make
        self._idle: list[Memory] = []
        """By size. Of one size, the buffer that is idle longest comes first: the copies out of it are probably done."""

    def take(self, nbytes: int) -> Memory | None:
        """Lends a buffer of at least this size; None if there is none before one is given back.

        Raises:
            MemoryError, OSError: There is not enough memory for a new buffer.
        """
        size = buffer_size(nbytes)
        index = bisect.bisect_left(self._idle, nbytes, key=_size)
        fits = index < len(self._idle)
        may_make = self.allocated + size <= self._budget or (not fits and not self.lent)
        if fits and (not may_make or self._idle[index].size <= _SLACK * size):
            buffer = self._idle.pop(index)
        elif may_make:
            buffer = self._make(size)
            self.allocated += buffer.size
        else:
            return None
        self.lent += 1
        return buffer

    def give_back(self, buffer: Memory) -> None:
        """Gives a buffer back."""
        self.lent -= 1
        bisect.insort_right(self._idle, buffer, key=_size)

    def drop(self, buffer: Memory) -> None:
        """Gives a buffer back that nobody may write to any more."""
        self.lent -= 1
        self.allocated -= buffer.size


def _size(memory: Sized) -> int:
    return memory.size
