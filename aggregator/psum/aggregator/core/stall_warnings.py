"""When to speak of what waits: soon enough to act on it, and not again and again."""

from collections.abc import Hashable


class StallWarnings:
    """Says when a wait has become worth a warning: first after some time, then each time it has doubled.

    Args:
        after: Seconds until the first warning.
    """

    def __init__(self, after: float) -> None:
        self._after = after
        self._what: Hashable = None
        self._next = after

    def due(self, what: Hashable, waited: float) -> bool:
        """Whether to warn now of this, which has waited so many seconds; it then counts as warned of."""
        if what != self._what:
            self._what, self._next = what, self._after
        if waited < self._next:
            return False
        self._next = 2 * waited
        return True
