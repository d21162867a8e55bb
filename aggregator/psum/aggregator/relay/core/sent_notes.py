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
        self._goodbyes: list[bool] = [False] * uplinks
        """Whether each uplink must be told of them."""
        self._lacking: list[deque[pb.Lacking]] = [deque() for _ in range(uplinks)]

    def leave(self, ranks: Iterable[int]) -> None:
        """Some ranks have left the group while others stay."""
        self.left.update(ranks)
        self._goodbyes = [True] * len(self._goodbyes)

    def stay(self, ranks: Iterable[int]) -> None:
        """Other processes have come in the place of ranks that have left."""
        self.left.difference_update(ranks)

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
        return bool(self._lacking[uplink] or self._goodbyes[uplink])

    def next_lacking(self, uplink: int) -> bytes | None:
        """The next message about lacking ranks, None if there is none."""
        if not self._lacking[uplink]:
            return None
        return encode(pb.ExchangeRequest(lacking=self._lacking[uplink].popleft()))

    def next_goodbye(self, uplink: int) -> bytes | None:
        """The goodbye of the ranks that have left, None if it is said or nobody has left."""
        if not self._goodbyes[uplink]:
            return None
        self._goodbyes[uplink] = False
        return encode(pb.ExchangeRequest(goodbye=pb.Goodbye(ranks=sorted(self.left))))

    def reopened(self, uplink: int) -> None:
        """The uplink has a new stream, on which the goodbyes must be said again."""
        self._goodbyes[uplink] = bool(self.left)
        self._lacking[uplink].clear()
