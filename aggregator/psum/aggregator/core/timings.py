"""Records when contributions came, for workers that want to know what their rounds waited for."""

import dataclasses
import time
from collections.abc import Callable, Collection

from psum.aggregator.core.actions import TellTiming
from psum.aggregator.core.key import Key
from psum.v1 import aggregator_pb2 as pb


@dataclasses.dataclass(slots=True)
class _Gathering:
    """One round of a shard."""

    round: int
    came: dict[int, float] = dataclasses.field(default_factory=dict)
    """When the contributions of the ranks that asked came, by rank."""
    last_rank: int = 0
    complete_at: float = 0.0
    forwarded_at: float | None = None
    """When a relay forwarded the group's sum."""
    waiting_above: float = 0.0
    summing_above: float = 0.0
    """What the owner says of the same round: how long the group's sum waited there, and how long its sum took."""


class Timings:
    """The timings of one job's rounds. While no rank asks, `rounds` is empty and recording costs nothing.

    Args:
        clock: The time in seconds. The event loop's clock is too coarse: it counts whole milliseconds, and stands still
            while a message is handled.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.rounds: dict[tuple[int, int], _Gathering] = {}
        """The rounds that some rank asked for, by (key's id, shard); never more than the job has shards."""

        self.rank_of: Callable[[int], int] = lambda member: member
        """The rank by which a member is named."""

    def __len__(self) -> int:
        return len(self.rounds)

    def contributed(self, key: Key, shard: int, round: int, rank: int, *, asked: bool, complete: bool) -> None:
        """Records a contribution that counted.

        Args:
            key: The key.
            shard: The shard's number within it.
            round: The round.
            rank: The rank that contributed.
            asked: Whether it wants the timing.
            complete: Whether it was the last one missing.
        """
        gathering = self.rounds.get((key.id, shard))
        if gathering is None or gathering.round != round:
            if not asked:
                # An earlier round may have ended without a sum; its record is useless.
                self.rounds.pop((key.id, shard), None)
                return
            gathering = self.rounds[key.id, shard] = _Gathering(round)
        now = self._clock()
        if asked:
            gathering.came[rank] = now
        if complete:
            gathering.last_rank, gathering.complete_at = rank, now

    def forwarded(self, key: Key, shard: int, round: int) -> None:
        """Records that a relay forwards the sum of its group."""
        if (gathering := self.rounds.get((key.id, shard))) is not None and gathering.round == round:
            gathering.forwarded_at = self._clock()

    def answered(self, key: Key, shard: int, round: int, owners: pb.Timing, group: Collection[int]) -> None:
        """Records what the owner of a shard says of a forwarded sum. If it came last, the group knows whose was last.

        Args:
            key: The key.
            shard: The shard's number within it.
            round: The round.
            owners: The owner's timing. Its last rank is the first of the member whose contribution came last.
            group: The ranks of the relay's own group.
        """
        gathering = self.rounds.get((key.id, shard))
        if gathering is not None and gathering.round == round:
            gathering.waiting_above, gathering.summing_above = owners.waiting_seconds, owners.summing_seconds
            if owners.last_rank not in group:
                gathering.last_rank = owners.last_rank

    def summed(self, key: Key, shard: int, round: int) -> list[TellTiming]:
        """The timing to tell now that the sum of a round is made; empty if no rank asked."""
        gathering = self.rounds.pop((key.id, shard), None)
        if gathering is None:
            return []
        complete_at, now = gathering.complete_at, self._clock()
        summed_at = now if gathering.forwarded_at is None else gathering.forwarded_at
        # What the owner says may be of the time before a connection broke.
        forwarding = now - summed_at
        waiting_above = min(gathering.waiting_above, forwarding)
        summing_above = min(gathering.summing_above, forwarding - waiting_above)
        waiting = {rank: complete_at - came + waiting_above for rank, came in gathering.came.items()}
        summing = summed_at - complete_at + summing_above
        forwarding -= waiting_above + summing_above
        return [TellTiming(key, shard, round, self.rank_of(gathering.last_rank), waiting, summing, forwarding)]

    def forget(self, key: Key) -> None:
        """Drops the records of a key that has failed."""
        for shard in key.sizes:
            self.rounds.pop((key.id, shard), None)

    def clear(self) -> None:
        """Drops all records, because the job has ended."""
        self.rounds.clear()
