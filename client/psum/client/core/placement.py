"""Which shards a key has, and which aggregator owns each. Every worker computes the same, in any order of keys."""

import dataclasses
import hashlib
from collections.abc import Sequence

from psum.v1 import aggregator_pb2 as pb


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """A contiguous piece of a key.

    Attributes:
        index: The shard's number within the key, from 0.
        start: The offset of its first byte in the key.
        stop: The offset after its last byte.
        aggregator: The index of the aggregator that owns it.
    """

    index: int
    start: int
    stop: int
    aggregator: int
    size: int = dataclasses.field(init=False)
    """The shard's size in bytes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", self.stop - self.start)


class Placement:
    """Cuts keys into shards and assigns the shards to aggregators.

    The shards of a key go to the aggregators in turn. A hash of the key's id says which aggregator is first, so small
    keys spread evenly too. An aggregator of weight w gets w of every `sum(weights)` shards.

    Args:
        partition_bytes: The size of the largest shard.
        weights: One for each aggregator, at least 1 each.
    """

    def __init__(self, partition_bytes: int, weights: Sequence[int]) -> None:
        self._partition_bytes = partition_bytes
        self._turns = _interleave(weights)

    def first(self, key_id: int) -> int:
        """The aggregator that owns shard 0, or would own it if the key is empty."""
        return self._turns[key_id % len(self._turns)]

    def shards(self, key_id: int, elements: int, itemsize: int) -> tuple[Shard, ...]:
        """The shards of a key, none if it has no elements. All but the last have the same size."""
        step = max(1, self._partition_bytes // itemsize) * itemsize
        return tuple(
            Shard(i, start, min(start + step, elements * itemsize), self._turns[(key_id + i) % len(self._turns)])
            for i, start in enumerate(range(0, elements * itemsize, step))
        )


def key_id(store: int, key: str, operation: pb.Operation.ValueType) -> int:
    """A key's id on the wire: a hash of 64 bits that is the same in every process."""
    text = f"{store}/{int(operation)}/{key}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _interleave(weights: Sequence[int]) -> tuple[int, ...]:
    """Each index as often as its weight says, spread out: [2, 1] gives 0, 1, 0.

    This is nginx's smooth weighted round robin: each turn goes to the index that is furthest behind its share.
    """
    behind = [0] * len(weights)
    turns = []
    for _ in range(sum(weights)):
        behind = [b + w for b, w in zip(behind, weights, strict=True)]
        chosen = behind.index(max(behind))
        behind[chosen] -= sum(weights)
        turns.append(chosen)
    return tuple(turns)
