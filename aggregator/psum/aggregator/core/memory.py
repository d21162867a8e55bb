"""The memory of one job: what is reserved for its keys, and what they hold now."""

from psum.aggregator.core.budget import Budget
from psum.aggregator.core.key import Key


class JobMemory:
    """Counts bytes; it allocates nothing.

    Args:
        budget: The budget that the job shares with others.
        num_workers: The number of ranks.
    """

    __slots__ = ("_num_workers", "budget", "held_bytes")

    def __init__(self, budget: Budget, num_workers: int) -> None:
        self.budget = budget
        self.held_bytes = 0
        """Bytes of contributions and results that the job refers to."""
        self._num_workers = num_workers

    def need(self, key: Key) -> int:
        """The most bytes that a key can hold: one contribution of each worker, and the result."""
        return key.nbytes * (self._num_workers + 1)

    def reserve(self, key: Key) -> bool:
        """Reserves what a key needs. Returns False, and reserves nothing, if the budget is too small."""
        return self.budget.reserve(self.need(key))

    def release(self, key: Key) -> None:
        """Returns what was reserved for a key."""
        self.budget.release(self.need(key))

    def drop(self, key: Key) -> None:
        """Stops counting what a key holds now."""
        for index, shard in key.shards.items():
            self.held_bytes -= sum(map(len, shard.contributions.values()))
            self.held_bytes -= key.sizes[index] if shard.last_result is not None else 0
