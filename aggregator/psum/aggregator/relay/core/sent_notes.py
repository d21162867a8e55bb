"""What a relay tells owners beside its contributions: which ranks rounds wait for, and which ranks have left."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, encode, to_columns

#: The most rounds in one message about lacking ranks.
_MAX_LACKING: Final = 64


class SentNotes:
    """The notes that wait to be sent on each uplink, named by its index.

    Args:
        uplinks: How many uplinks there are.
    """

    def __init__(self, uplinks: int) -> None:
        self.left: set[int] = set()
        """The ranks that have left the group while others stay."""
        self._untold: list[set[int]] = [set() for _ in range(uplinks)]
        """Those that each uplink must be told of."""
        self._in_hello: list[set[int]] = [set() for _ in range(uplinks)]
        """Those that the last hello on each uplink has told of."""
        self._lacking: list[deque[pb.Lacking]] = [deque() for _ in range(uplinks)]

    def leave(self, ranks: Iterable[int]) -> None:
        """Some ranks have left the group while others stay."""
        new = set(ranks)
        self.left |= new
        for untold in self._untold:
            untold |= new

    def stay(self, rank: int) -> None:
        """Another process has come in the place of a rank that has left."""
        for ranks in (self.left, *self._untold, *self._in_hello):
            ranks.discard(rank)

    def in_hello(self, uplink: int) -> None:
        """A hello on an uplink tells of all that have left. If it arrives, they need not be told again."""
        self._in_hello[uplink] = set(self.left)

    def hello_arrived(self, uplink: int) -> None:
        """The last hello on an uplink was answered."""
        self._untold[uplink] -= self._in_hello[uplink]

    def lack(self, uplink: int, rounds: Sequence[tuple[int, int, int, Sequence[int]]]) -> None:
        """Rounds wait for ranks of the group: (key's id, shard, round, ranks) each."""
        for start in range(0, len(rounds), _MAX_LACKING):
            some = rounds[start : start + _MAX_LACKING]
            shards = to_columns([ShardRound(*row[:3]) for row in some])
            message = pb.Lacking(shards=shards, ranks=[pb.Ranks(ranks=row[3]) for row in some])
            if message not in self._lacking[uplink]:
                self._lacking[uplink].append(message)

    def waits(self, uplink: int) -> bool:
        """Whether something waits to be sent."""
        return bool(self._lacking[uplink] or self._untold[uplink])

    def next_lacking(self, uplink: int) -> bytes | None:
        """The next message about lacking ranks, None if there is none."""
        if not self._lacking[uplink]:
            return None
        return encode(pb.ExchangeRequest(lacking=self._lacking[uplink].popleft()))

    def next_goodbye(self, uplink: int) -> bytes | None:
        """The goodbye of the ranks that have left, None if it is said or nobody has left."""
        if not (untold := self._untold[uplink]):
            return None
        self._untold[uplink] = set()
        return encode(pb.ExchangeRequest(goodbye=pb.Goodbye(ranks=sorted(untold))))

    def reopened(self, uplink: int) -> None:
        """The uplink has a new stream, on which the goodbyes must be said again."""
        self._untold[uplink] = self.left - self._in_hello[uplink]
        self._lacking[uplink].clear()
