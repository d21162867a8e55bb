"""Sums in shared memory as one piece: the pages of all shards, mapped one after the other into one range of addresses.

The pages are the aggregators' own, so nothing is copied. They keep what they show only until this worker contributes to
the next round of the key. So before that, memory that is still lent gets private pages with the same content.
"""

import itertools
import mmap
import os
import weakref
from collections.abc import Sequence
from typing import Any, Final, Self

import numpy as np

from psum.runtime import mappings

_PAGE_BYTES: Final = mmap.PAGESIZE

#: The most separate places that are mapped. A process may have some 65 000 mappings in all.
_MOST_PLACES: Final = 64


class Loan:
    """Memory that is lent as long as this object lives: `numpy.asarray(loan)` is an array of its bytes that keeps it.

    The content does not change before the loan is given up. The processor forbids writing, whatever the array's flags
    say: PyTorch warns of arrays that are marked as read-only. A process that is forked has no such memory.
    """

    __slots__ = ("__weakref__", "_given_up", "_sums")

    def __init__(self, sums: "MappedSums") -> None:
        self._sums = sums
        self._given_up = False

    @property
    def is_given_up(self) -> bool:
        """Whether its content may change."""
        return self._given_up

    @property
    def memory(self) -> "MappedSums":
        """What is lent. It stays mapped as long as this object lives, also without the loan."""
        return self._sums

    def give_up(self) -> None:
        """Says that nobody reads the memory any more, though the object lives. From any thread.

        From now on the content may change at any time. The addresses stay valid as long as the object lives.
        """
        self._given_up = True

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """NumPy's protocol for memory of others."""
        sums = self._sums
        return {"version": 3, "typestr": "|u1", "shape": (sums.size,), "data": (sums.address, False)}


class MappedSums:
    """A range of addresses where the sums of all shards of a key follow each other. Made by `of`.

    From one thread. Only the loans may end in any thread.

    Attributes:
        address: Where it begins.
        size: Its size in bytes.
    """

    def __init__(self, pieces: Sequence[memoryview], address: int, size: int) -> None:
        self.address = address
        self.size = size
        self._pieces: Sequence[memoryview] = pieces
        """They keep the addresses of their memory from being used for something else, so that `shows` can compare."""
        self._loan: weakref.ref[Loan] | None = None
        # Not when the interpreter ends: a tensor may still lie there.
        weakref.finalize(self, _unmap, os.getpid(), address, size).atexit = False

    @classmethod
    def of(cls, pieces: Sequence[memoryview]) -> Self | None:
        """Maps pieces of shared memory one after the other.

        Args:
            pieces: The pieces. They must lie in memory that was mapped as shared.

        Returns:
            None if they cannot be mapped so: one does not begin at a page, or one but the last does not end at one, or
            they lie at too many places, or the system does not allow it.
        """
        places = _places(pieces)
        if not places or len(places) > _MOST_PLACES:
            return None
        if any(begin % _PAGE_BYTES for begin, _ in places) or any(size % _PAGE_BYTES for _, size in places[:-1]):
            return None
        size = sum(size for _, size in places)
        address = mappings.reserve(size)
        if address is None:
            return None
        ends = itertools.accumulate((part for _, part in places), initial=address)
        if not (
            all(mappings.map_again(begin, part, end) for (begin, part), end in zip(places, ends, strict=False))
            and mappings.restrict(address, size)
        ):
            mappings.unmap(address, size)
            return None
        return cls(pieces, address, size)

    @property
    def is_lent(self) -> bool:
        """Whether a loan lives that was not given up."""
        loan = None if self._loan is None else self._loan()
        return loan is not None and not loan.is_given_up

    def shows(self, pieces: Sequence[memoryview]) -> bool:
        """Whether it shows the memory of these pieces."""
        return _places(self._pieces) == _places(pieces)

    def lend(self) -> Loan:
        """Lends the memory. It must not be lent already."""
        loan = Loan(self)
        self._loan = weakref.ref(loan)
        return loan

    def detach(self) -> None:
        """Gives the range private pages with the same content. It is not to be lent again.

        Whoever reads it at the same time sees no difference.

        Raises:
            MemoryError: There is not enough memory. Nothing has changed.
        """
        if not mappings.make_private(self.address, self.size, writable=False):
            raise MemoryError(f"{self.size} bytes for a private copy of a lent sum")
        self._pieces = ()


def _unmap(pid: int, address: int, size: int) -> None:
    # A process that was forked does not have the range, and may have something else there.
    if pid == os.getpid():
        mappings.unmap(address, size)


def _places(pieces: Sequence[memoryview]) -> list[tuple[int, int]]:
    """Addresses and sizes of pieces; those that follow each other in memory are one."""
    places: list[tuple[int, int]] = []
    for piece in pieces:
        begin = np.frombuffer(piece, np.uint8).__array_interface__["data"][0]
        if places and sum(places[-1]) == begin:
            places[-1] = places[-1][0], places[-1][1] + len(piece)
        else:
            places.append((begin, len(piece)))
    return places
