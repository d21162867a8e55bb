"""Which shards a key has, and which aggregator owns each: the same on every worker, whatever the order of keys."""

import dataclasses
import hashlib
from collections.abc import Sequence

from psum.v1 import aggregator_pb2 as pb


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """A contiguous piece of a key.

    Attributes:
        index: Its number within the key, from 0.
        start: The byte at which it begins.
        stop: The byte after its last.
        aggregator: The index of the aggregator that owns it.
    """

    index: int
    start: int
    stop: int
    aggregator: int
    size: int = dataclasses.field(init=False)
    """Its size in bytes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", self.stop - self.start)


class Placement:
    """Cuts keys into shards and deals the shards out to aggregators.

    The shards of a key go to the aggregators in turn, beginning where a hash of the key's id says, so that small keys
    spread evenly too. An aggregator of weight w takes w of every `sum(weights)` shards.

    Args:
        partition_bytes: The most that a shard has.
        weights: One for each aggregator, at least 1 each.
    """

    def __init__(self, partition_bytes: int, weights: Sequence[int]) -> None:
        self._partition_bytes = partition_bytes
        self._turns = _interleave(weights)

    def first(self, key_id: int) -> int:
        """The aggregator that owns shard 0, or would if the key were not empty."""
        return self._turns[key_id % len(self._turns)]

    def shards(self, key_id: int, elements: int, itemsize: int) -> tuple[Shard, ...]:
        """The shards of a key, none where it has no elements; all but the last are of one size."""
        step = max(1, self._partition_bytes // itemsize) * itemsize
        return tuple(
            Shard(i, start, min(start + step, elements * itemsize), self._turns[(key_id + i) % len(self._turns)])
            for i, start in enumerate(range(0, elements * itemsize, step))
        )


def key_id(store: int, key: str, operation: pb.Operation.ValueType) -> int:
    """A key's id on the wire: 64 bits of a hash that is the same in every process."""
    text = f"{store}/{int(operation)}/{key}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _interleave(weights: Sequence[int]) -> tuple[int, ...]:
    """Every index as often as its weight says, spread out: [2, 1] gives 0, 1, 0.

    The smooth weighted round robin of nginx: each turn goes to whoever is furthest behind its share.
    """
    behind = [0] * len(weights)
    turns = []
    for _ in range(sum(weights)):
        behind = [b + w for b, w in zip(behind, weights, strict=True)]
        chosen = behind.index(max(behind))
        behind[chosen] -= sum(weights)
        turns.append(chosen)
    return tuple(turns)
