"""How many ranks contributed to each part of a result."""

import dataclasses
from collections.abc import Sequence

from psum.client.core.placement import Shard


@dataclasses.dataclass(frozen=True, slots=True)
class Contribution:
    """A part of a result to which not all ranks contributed.

    Attributes:
        start: Its first element in the flattened array.
        stop: The element after its last one.
        count: How many ranks contributed, from 1.
    """

    start: int
    stop: int
    count: int


def contributions(counts: dict[int, int] | None, shards: Sequence[Shard], itemsize: int) -> tuple[Contribution, ...]:
    """The parts of a key's result to which not all ranks contributed, in order. Neighbours of equal count are one part.

    Args:
        counts: How many ranks contributed, by the shard's number. Shards that are missing here have all ranks.
        shards: The key's shards.
        itemsize: Bytes of an element.
    """
    parts: list[Contribution] = []
    for index in sorted(counts or ()):
        assert counts is not None
        shard, count = shards[index], counts[index]
        start, stop = shard.start // itemsize, shard.stop // itemsize
        if parts and parts[-1].stop == start and parts[-1].count == count:
            start = parts.pop().start
        parts.append(Contribution(start, stop, count))
    return tuple(parts)
