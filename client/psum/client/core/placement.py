"""Which shards a key has, and which aggregator owns each. Every worker computes the same, in any order of keys.

No worker asks another. A large key is cut into one range for each aggregator, in proportion to the weights, so it is
even by itself. Smaller keys are dealt out: consecutive numbers, such as those of a Trainer's keys, go to different
aggregators; other names go where a hash says.
"""

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from psum.v1 import aggregator_pb2 as pb

#: Shards begin at multiples of this many elements, at 16 bytes or more, where sums of them are aligned.
UNIT_ELEMENTS: Final = 16

#: Keys from this size on have shards that begin at pages, if a shard has several: so their sums can be lent in one
#: piece.
_PAGED_KEY_BYTES: Final = 1 << 20
_PAGE_BYTES: Final = 4096

#: A large key's smallest range has at least this, divided by the number of aggregators, within the limits below. Less
#: costs more messages; more leaves more bytes to chance. With it no aggregator has more than 1.02 times the mean of
#: resnet50, vgg16 and BERT-base, for 2 to 64 aggregators.
_GRAIN_BYTES: Final = 256 << 10
_MIN_GRAIN_BYTES: Final = 4 << 10
_MAX_GRAIN_BYTES: Final = 64 << 10


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """A contiguous piece of a key.

    Attributes:
        index: The shard's number within the key, from 0.
        start: The offset of its first byte in the key.
        stop: The offset after its last byte.
        aggregator: The index of the aggregator that owns it.
        connection: The index of the connection on which it goes there: the same, or 0 if a relay forwards it.
    """

    index: int
    start: int
    stop: int
    aggregator: int
    connection: int
    size: int = dataclasses.field(init=False)
    """The shard's size in bytes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", self.stop - self.start)


class Placement:
    """Cuts keys into shards, and gives each shard to an aggregator.

    An aggregator of weight w has w of `sum(weights)` turns, spread out among those of the others. Each key begins at
    one of the turns.

    Args:
        partition_bytes: The most bytes that a shard has; one element may have more.
        weights: One for each aggregator. Only their ratios count. An aggregator of weight 0 owns nothing, as if it were
            not there; at least one has more.
        relayed: Whether everything goes to one relay, which forwards it to its aggregator.
    """

    def __init__(self, partition_bytes: int, weights: Sequence[int], *, relayed: bool = False) -> None:
        self.relayed = relayed
        divisor = math.gcd(*weights)
        self._partition_bytes = partition_bytes
        self._owners = [index for index, weight in enumerate(weights) if weight]
        self._weights = [weights[index] // divisor for index in self._owners]
        self._turns = _interleave(self._weights)
        """The owner of each turn, as an index of the two lists above."""
        self._grain_bytes = min(max(_GRAIN_BYTES // len(self._owners), _MIN_GRAIN_BYTES), _MAX_GRAIN_BYTES)
        self._order: tuple[tuple[int, int] | None, list[int]] = None, []
        """The last (store, block), and the turns of its numbers. Assigned at once: a signal handler may place a key."""

    def turn(self, store: int, key: str, key_id: int) -> int:
        """Where a key begins.

        Args:
            store: The number of its store.
            key: Its name. Numbers are dealt out in blocks of `sum(weights)` consecutive ones. Each number of a block
                has another turn, so keys of equal size are even. The order within a block looks random, so a pattern
                in the sizes, such as weights and biases in turn, does not favour an aggregator.
            key_id: Its id on the wire, which decides for names that are not numbers.
        """
        count = len(self._turns)
        if not (key.isascii() and key.isdecimal()):
            return key_id % count
        block, position = divmod(int(key), count)
        last, order = self._order
        if last != (store, block):
            order = sorted(range(count), key=lambda turn: _hash(f"{store}/{block}/{turn}"))
            self._order = (store, block), order
        return order[position]

    def first(self, turn: int) -> int:
        """The aggregator that owns shard 0 of a key that begins at a turn, or would own it if the key is empty."""
        return self._owners[self._turns[turn]]

    def connection(self, aggregator: int) -> int:
        """The index of the connection to an aggregator."""
        return 0 if self.relayed else aggregator

    def shards(self, turn: int, elements: int, itemsize: int) -> tuple[Shard, ...]:
        """The shards of a key that begins at a turn, none if it has no elements."""
        most = max(1, self._partition_bytes // itemsize)
        unit = UNIT_ELEMENTS if most >= UNIT_ELEMENTS else 1
        if elements * itemsize >= _PAGED_KEY_BYTES and self._partition_bytes >= 16 * _PAGE_BYTES:
            unit = _PAGE_BYTES // itemsize
        units, most_units = -(-elements // unit), most // unit
        total = len(self._turns)
        shards = []
        if elements * itemsize * min(self._weights) >= self._grain_bytes * total:
            pieces = self._even(turn, units, most_units)
        else:
            count = max(min(elements * itemsize // self._grain_bytes, units), -(-units // most_units))
            owners = (self._turns[(turn + i) % total] for i in range(count))
            pieces = zip(_cut(0, units, count), owners, strict=True) if count else iter(())
        for index, ((start, stop), owner) in enumerate(pieces):
            begin, end = (min(edge * unit, elements) * itemsize for edge in (start, stop))
            aggregator = self._owners[owner]
            shards.append(Shard(index, begin, end, aggregator, self.connection(aggregator)))
        return tuple(shards)

    def _even(self, turn: int, units: int, most_units: int) -> Iterator[tuple[tuple[int, int], int]]:
        """One range for each aggregator, in proportion to the weights, cut where it has more than a partition."""
        first, count = self._turns[turn], len(self._weights)
        owners = [(first + i) % count for i in range(count)]
        ends = [units * part // len(self._turns) for part in itertools.accumulate(self._weights[o] for o in owners)]
        for owner, start, end in zip(owners, [0, *ends], ends, strict=False):
            for piece in _cut(start, end, -(-(end - start) // most_units)):
                yield piece, owner


def key_id(store: int, key: str, operation: pb.Operation.ValueType, ranks: Sequence[int] = ()) -> int:
    """A key's id on the wire: 64 bits of a hash that is the same in every process."""
    among = f" among {','.join(map(str, ranks))}" if ranks else ""
    return _hash(f"{store}/{int(operation)}{among}/{key}")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _cut(start: int, stop: int, count: int) -> Iterable[tuple[int, int]]:
    """A range in pieces of equal length, as nearly as whole numbers can be."""
    return itertools.pairwise(start + (stop - start) * i // count for i in range(count + 1)) if count else ()


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
