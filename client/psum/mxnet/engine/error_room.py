"""Room for errors in the engine of MXNet, which would otherwise crash the process when many operations fail at once.

The engine (ThreadedEngine) appends the error of each operation that fails to one list. For each operation that it
skips because of an error, it searches the list for that error, and appends the error if it is not there. It takes no
lock for that. If an append has to move the list to larger memory while another thread searches it, the search finds
nothing in the old memory. That thread then appends too, and both free the old memory or write beyond the new one. The
process crashes later, mostly at its end: "free(): invalid next size", "malloc_consolidate()", a segmentation fault.

psum's operations fail at once, when a peer or an aggregator is lost, while the engine's threads skip what depends on
them. psum's threads append one after the other, since they hold the interpreter's lock (see interface.py), and the
engine's threads find what they search. So this is safe as long as the list stays where it is. A list only moves to
grow, and never becomes smaller. psum therefore has it grow before anything fails: with operations on arrays of its own,
whose errors it reads at once, and of which MXNet then tells nobody.
"""

from collections.abc import Callable
from typing import Final

#: Entries that the list can hold after its first growth: enough for a step of nearly all networks.
_LEAST: Final = 1024

#: Entries that are left for errors that are not psum's.
_SPARE: Final = 16


class ErrorRoom:
    """Knows how many errors the list can take before it moves. From any thread.

    The list is a std::vector, whose memory doubles when it is full. MXNet empties it when the program waits for
    everything, which psum cannot see in all cases. So this counts as if that never happened.
    """

    def __init__(self) -> None:
        self._capacity = 0
        self._used = 0
        self._is_growing = False

    def add(self) -> None:
        """An operation fails."""
        self._used += 1

    def lacks(self, under_way: int) -> bool:
        """Returns whether the list might have to move if all operations failed.

        Args:
            under_way: The number of operations that may fail.
        """
        return self._used + under_way + _SPARE > self._capacity and not self._is_growing

    def grow(self, under_way: int, fail: Callable[[int], None]) -> None:
        """Makes the list larger.

        Args:
            under_way: The number of operations that may fail.
            fail: Has a number of operations fail, each with an error of its own, calls `add` for each, and takes the
                errors from MXNet.
        """
        capacity = _LEAST
        # The entries that make the list grow stay in it.
        while self._used + capacity // 2 + 1 + under_way + _SPARE > capacity:
            capacity *= 2
        self._is_growing = True
        try:
            # Even if the list is empty now, it has more entries than half of this then. So its memory is at least this.
            fail(capacity // 2 + 1)
            self._capacity = capacity
        finally:
            self._is_growing = False

    def forget_growth(self) -> None:
        """For a forked child: the thread in which the list grew does not exist here. The list does."""
        self._is_growing = False
