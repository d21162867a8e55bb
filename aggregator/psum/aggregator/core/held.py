"""Contributions of a worker whose rounds wait for others, as they came: message by message, not one by one.

With small keys, hundreds came together, and mostly wait together and end together. So they are looked at together.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Final, NamedTuple

from psum.aggregator.core.key import Key
from psum.aggregator.core.layouts import Row
from psum.aggregator.core.round import Phase, ShardRounds

_GATHERING: Final = Phase.GATHERING

#: So many contributions are kept without looking whether they still wait.
_FEW: Final = 1024


class Held(NamedTuple):
    """Contributions of one worker that came together, whose rounds waited for others then.

    Attributes:
        since: When they came.
        rows: Their shards.
        rounds: The round of each.
        in_message: Whether they are in a message, rather than in memory that the worker may take back.
    """

    since: float
    rows: Sequence[Row]
    rounds: Sequence[int]
    in_message: bool = False

    @classmethod
    def one(cls, since: float, key: Key, index: int, shard: ShardRounds[object], round: int) -> "Held":
        """A contribution that came by itself, anywhere."""
        return cls(since, ((key, index, shard),), (round,))

    def each_waits(self, rank: int) -> Iterator[bool]:
        """For each of them, whether its round still waits for others. A key that was let go has no shards."""
        return (
            shard.phase is _GATHERING
            and (shard.round == round or (shard.round == round + 1 and rank in shard.ranks_lacking_result))
            and bool(key.shards)
            for (key, _, shard), round in zip(self.rows, self.rounds, strict=True)
        )

    def waiting(self, rank: int) -> "Held":
        """Those of them whose rounds still wait."""
        waits = list(self.each_waits(rank))
        if all(waits):
            return self
        return self._replace(rows=list(compress(self.rows, waits)), rounds=list(compress(self.rounds, waits)))


class Credited:
    """The contributions of one worker that wait although their credit was returned, the oldest first.

    It takes no more memory than the worker's shards need, also if the oldest one waits for ever. Some may have their
    result meanwhile.
    """

    __slots__ = ("_count", "_held", "_most")

    def __init__(self) -> None:
        self._held: deque[Held] = deque()
        self._count, self._most = 0, _FEW

    def __len__(self) -> int:
        return self._count

    def add(self, rank: int, held: Held) -> None:
        """Adds contributions of this worker, whose rank is given."""
        self._held.append(held)
        self._count += len(held.rows)
        if self._count > self._most:
            self._forget_all_others(rank)

    def waits(self, rank: int) -> bool:
        """Whether any of them waits. Forgets the oldest ones that do not."""
        while self._held:
            if any(self._held[0].each_waits(rank)):
                return True
            self._count -= len(self._held.popleft().rows)
        return False

    def clear(self) -> None:
        """Forgets all."""
        self._held.clear()
        self._count, self._most = 0, _FEW

    def _forget_all_others(self, rank: int) -> None:
        """Keeps only what waits, each shard once. It is done again when there are twice as many."""
        waiting = [held.waiting(rank) for held in self._held]
        latest = {
            id(row[2]): (row, round) for _, rows, rounds, _ in waiting for row, round in zip(rows, rounds, strict=True)
        }
        self.clear()
        if latest:
            rows, rounds = zip(*latest.values(), strict=True)
            self._held.append(Held(waiting[-1].since, rows, rounds))
        self._count = len(latest)
        self._most = max(_FEW, 2 * len(latest))
