"""When to warn of something that waits: early enough to act, and seldom enough not to fill the log."""

from collections.abc import Hashable


class StallWarnings:
    """Decides when a wait is worth a warning: after some time, and again each time the wait has doubled.

    Args:
        after: Seconds until the first warning.
    """

    def __init__(self, after: float) -> None:
        self._after = after
        self._what: Hashable = None
        self._next = after

    def due(self, what: Hashable, waited: float) -> bool:
        """Whether to warn now of something that has waited this many seconds; True counts as a warning given."""
        if what != self._what:
            self._what, self._next = what, self._after
        if waited < self._next:
            return False
        self._next = 2 * waited
        return True
