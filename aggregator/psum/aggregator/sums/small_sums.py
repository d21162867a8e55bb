"""Sums of small shards that are made together: few additions, and one message for all workers."""

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise

from psum.aggregator.sums.results import Results
from psum.aggregator.sums.sums import add_up
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ElementType, ShardRound, allocate, from_columns


class SmallSums(Results):
    """Small sums in the message that they were made in. As Results, it makes rows only if they are needed.

    Args:
        element_types: The type of the elements of each sum. Neighbours of one type are added together.
        addends: For each rank, in rank order, its contributions, one after the other.
        ids: The key's id of each sum.
        shards: The shard's number within the key.
        rounds: The round.
        priorities: How urgent each is.
        lengths: The bytes of each.
        brief: Whether the message may have columns of two entries; see `to_columns`.
    """

    __slots__ = ("_columns",)

    def __init__(
        self,
        element_types: Sequence[ElementType],
        addends: Sequence[memoryview],
        ids: Sequence[int],
        shards: Sequence[int],
        rounds: Sequence[int],
        priorities: Sequence[int],
        lengths: Sequence[int],
        *,
        brief: bool = False,
    ) -> None:
        size = sum(lengths)
        columns = from_columns(ids, shards, rounds, priorities, lengths, brief=brief)
        message, total = allocate(pb.ExchangeResponse(result=pb.Result(shards=columns)), size)
        begin = start = 0
        for element_type, count in _runs(element_types):
            end = begin + count
            stop = start + sum(lengths[begin:end])
            add_up(element_type, [each[start:stop] for each in addends], total[start:stop])
            begin, start = end, stop
        self._columns = (ids, shards, rounds, priorities, lengths)
        self._message = message
        self.priority = max(priorities)
        self.alone = False
        self.following = ()
        self.shard_ids = list(zip(ids, shards, strict=True))
        self.repeats = False
        self.size = size
        self.size_following = 0

    @property
    def rows(self) -> Sequence[ShardRound]:  # type: ignore[override]
        """Which sums they are."""
        return [ShardRound(*row) for row in zip(*self._columns, strict=True)]

    @property
    def columns(self) -> Sequence[Sequence[int]]:
        """See Results."""
        nothing = (0,) * len(self.shard_ids)
        return *self._columns, *[nothing] * (len(ShardRound._fields) - len(self._columns))

    @property
    def pieces(self) -> Sequence[memoryview]:
        """See Results."""
        message = memoryview(self.message())
        return (message[len(message) - self.size :],)

    @property
    def payloads(self) -> Sequence[bytes]:  # type: ignore[override]
        """The sums by themselves, in the rows' order. Copies: a view would keep all sums of the message."""
        message = self.message()
        ends = accumulate(self._columns[-1], initial=len(message) - self.size)
        return [message[start:end] for start, end in pairwise(ends)]


def _runs(element_types: Sequence[ElementType]) -> list[tuple[ElementType, int]]:
    """The types of neighbours that have one, and how many these are. Mostly all have."""
    first, count = element_types[0], len(element_types)
    if element_types.count(first) == count:
        return [(first, count)]
    # The roll call of an elastic job has a type of its own. Counted in C: a step must not cost more for each key then.
    return [(element_type, len(list(equal))) for element_type, equal in groupby(element_types)]
