"""The memory that the processes of an aggregator may use for sums, all together."""

import mmap
import os
from typing import Final

from psum.aggregator.core.budget import Budget

_ENTRY_BYTES: Final = 8


class Reservations:
    """How many bytes each process has reserved, in memory that all of them share.

    Each process writes only its own entry. The supervisor clears the entry of a process that has ended.

    Args:
        descriptor: The memory's descriptor.
        count: The number of processes.
    """

    def __init__(self, descriptor: int, count: int) -> None:
        self.descriptor = descriptor
        # Never unmapped: it lasts as long as the process.
        self._entries = memoryview(mmap.mmap(descriptor, count * _ENTRY_BYTES)).cast("q")

    @classmethod
    def make(cls, count: int) -> "Reservations":
        """Memory for a number of processes that have reserved nothing."""
        descriptor = os.memfd_create("psum-reservations")
        os.ftruncate(descriptor, count * _ENTRY_BYTES)
        return cls(descriptor, count)

    def __getitem__(self, number: int) -> int:
        return self._entries[number]

    def __setitem__(self, number: int, size: int) -> None:
        self._entries[number] = size

    @property
    def total(self) -> int:
        """The bytes that all processes together have reserved."""
        return sum(self._entries)


class SharedBudget(Budget):
    """The budget as one process has it: its own reservations, within a limit for all processes.

    Args:
        limit_bytes: The most that all may reserve; 0: no limit.
        reservations: Those of all processes.
        number: This process's entry.
    """

    def __init__(self, limit_bytes: int, reservations: Reservations, number: int) -> None:
        super().__init__(limit_bytes)
        self._reservations = reservations
        self._number = number

    @property
    def free_bytes(self) -> int:
        """Bytes that any process may still reserve. Only meaningful if there is a limit."""
        return self.limit_bytes - self._reservations.total

    def reserve(self, size: int) -> bool:
        """Reserves bytes. Returns False, and reserves nothing, if the limit would be exceeded."""
        # Without a lock, nobody waits for a process that is stopped. The reservation is written before the total is
        # read, so two processes never get the same bytes. At the limit, both may be refused.
        self._reservations[self._number] += size
        if self.limit_bytes and self._reservations.total > self.limit_bytes:
            self._reservations[self._number] -= size
            return False
        self.reserved_bytes += size
        return True

    def release(self, size: int) -> None:
        """Returns reserved bytes."""
        super().release(size)
        self._reservations[self._number] -= size
