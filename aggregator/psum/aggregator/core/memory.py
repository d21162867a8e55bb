"""The memory of one job: what is reserved for its keys, and what they hold now."""

from collections.abc import Iterable

from psum.aggregator.core.budget import Budget
from psum.aggregator.core.key import Key


class JobMemory:
    """Counts bytes; it allocates nothing.

    Args:
        budget: The budget that the job shares with others.
    """

    __slots__ = ("budget", "held_bytes")

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.held_bytes = 0
        """Bytes of contributions and results that the job refers to."""

    def need(self, key: Key) -> int:
        """The most bytes that a key can hold: one contribution of each member, and the result.

        A relay's group also holds the sum that it forwards, while members contribute again.
        """
        return key.nbytes * (key.roster.most_members + (1 if key.roster.fleet else 2))

    def reserve(self, key: Key) -> bool:
        """Reserves what a key needs. Returns False, and reserves nothing, if the budget is too small."""
        need = self.need(key)
        if not self.budget.reserve(need):
            return False
        key.reserved_bytes = need
        return True

    def trim(self, keys: Iterable[Key]) -> None:
        """Returns what keys reserved for members that the job does not have, now that all ranks have joined.

        While ranks are missing, each of them may be a member.
        """
        for key in keys:
            if key.reserved_bytes > (need := self.need(key)):
                self.budget.release(key.reserved_bytes - need)
                key.reserved_bytes = need

    def lack_for_another(self, keys: Iterable[Key]) -> int:
        """How many bytes the budget lacks if one more member joined; 0 or less: it has enough."""
        if not self.budget.limit_bytes:
            return 0
        used = [key for key in keys if key.failure is None and not key.ranks]
        more = sum(max(0, self.need(key) + key.nbytes - key.reserved_bytes) for key in used)
        return more - self.budget.free_bytes

    def grow(self, keys: Iterable[Key]) -> None:
        """Reserves what keys need for a member that was admitted, even if the budget is too small by now."""
        for key in keys:
            if key.failure is None and (more := self.need(key) - key.reserved_bytes) > 0:
                self.budget.take(more)
                key.reserved_bytes += more

    def release(self, key: Key) -> None:
        """Returns what was reserved for a key."""
        self.budget.release(key.reserved_bytes)
        key.reserved_bytes = 0

    def drop(self, key: Key) -> None:
        """Stops counting what a key holds now."""
        for index, shard in key.shards.items():
            self.held_bytes -= sum(map(len, shard.contributions.values()))
            self.held_bytes -= key.sizes[index] if shard.last_result is not None else 0
