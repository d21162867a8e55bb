"""When contributions came, for the workers that want to know what their rounds waited for."""

import dataclasses
import time
from collections.abc import Callable

from psum.aggregator.core.actions import TellTiming
from psum.aggregator.core.key import Key


@dataclasses.dataclass(slots=True)
class _Gathering:
    """One round of a shard."""

    round: int
    came: dict[int, float] = dataclasses.field(default_factory=dict)
    """When the contributions came whose senders asked, by rank."""
    last_rank: int = 0
    complete_at: float = 0.0


class Timings:
    """Those of one job's rounds. `rounds` is empty, and nothing costs anything, while nobody asks.

    Args:
        clock: The time now. A clock of its own: the event loop's has whole milliseconds, and stands still while
            messages are taken apart.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.rounds: dict[tuple[int, int], _Gathering] = {}
        """Those of which somebody wants to know, by (key's id, shard); never more than the job has shards."""

    def __len__(self) -> int:
        return len(self.rounds)

    def contributed(self, key: Key, shard: int, round: int, rank: int, *, asked: bool, complete: bool) -> None:
        """A contribution counted.

        Args:
            key: The key.
            shard: The shard's number within it.
            round: The round.
            rank: Whose it was.
            asked: Whether it is to be told.
            complete: Whether it was the last one missing.
        """
        gathering = self.rounds.get((key.id, shard))
        if gathering is None or gathering.round != round:
            if not asked:
                # What is left of an earlier round, which ended in another way than with a sum, is of no use.
                self.rounds.pop((key.id, shard), None)
                return
            gathering = self.rounds[key.id, shard] = _Gathering(round)
        now = self._clock()
        if asked:
            gathering.came[rank] = now
        if complete:
            gathering.last_rank, gathering.complete_at = rank, now

    def summed(self, key: Key, shard: int, round: int) -> list[TellTiming]:
        """The sum of a round was made."""
        gathering = self.rounds.pop((key.id, shard), None)
        if gathering is None:
            return []
        complete_at = gathering.complete_at
        waiting = {rank: complete_at - came for rank, came in gathering.came.items()}
        return [TellTiming(key, shard, round, gathering.last_rank, waiting, self._clock() - complete_at)]

    def forget(self, key: Key) -> None:
        """The key has failed."""
        for shard in key.sizes:
            self.rounds.pop((key.id, shard), None)

    def clear(self) -> None:
        """The job has ended."""
        self.rounds.clear()
