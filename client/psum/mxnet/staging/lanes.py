"""The order of a key's sums that go through stages."""

import threading
from collections.abc import Callable


class Lane:
    """Lets the sums of one key run one after the other, in the order in which the program queued them. From any thread.

    So a key needs one stage, however many sums are queued. And nothing is sent for a later sum while a device still
    reads an earlier one from the memory of an aggregator, which writes the later one there.
    """

    def __init__(self) -> None:
        self._count = 0
        self._current = 0
        """The number of the sum that may run."""
        self._waiting: dict[int, Callable[[], None]] = {}
        self._over: set[int] = set()
        """Later sums that are over: they will never run."""
        # Reentrant: a signal's handler may queue a sum anywhere.
        self._lock = threading.RLock()

    def take(self) -> int:
        """Returns the place of a sum. `end` must follow."""
        with self._lock:
            place = self._count
            self._count += 1
            return place

    def is_due(self, place: int, later: Callable[[], None]) -> bool:
        """Whether a sum may run now.

        Args:
            place: Its place.
            later: Called once from any thread, when it may run, if it may not now. It must not wait or raise.
        """
        with self._lock:
            if place == self._current:
                return True
            self._waiting[place] = later
            return False

    def end(self, place: int) -> None:
        """The sum is over, or will never run."""
        with self._lock:
            self._over.add(place)
            while self._current in self._over:
                self._over.remove(self._current)
                self._current += 1
            due = self._waiting.pop(self._current, None)
        if due is not None:
            due()
