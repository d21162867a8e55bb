"""A key as an aggregator knows it: what the ranks agreed on, and the rounds of the shards that it owns."""

from psum.aggregator._round import ShardRounds
from psum.v1 import aggregator_pb2 as pb
from psum.wire import MAX_PARTITION_BYTES, ElementType
from psum.wire.errors import DisagreementError, FaultError, ProtocolError


class Key:
    """One tensor under one operation.

    Args:
        declared: The first declaration of the key, which later ones must equal.
        rank: The rank that made it.
        num_workers: The size of the job.

    Raises:
        ProtocolError: The declaration contradicts itself.
    """

    def __init__(self, declared: pb.Key, rank: int, num_workers: int) -> None:
        try:
            self.element_type = ElementType(declared.type)
        except ValueError:
            raise ProtocolError(f"key {declared.name!r} has the unknown element type {declared.type}") from None
        if declared.operation not in (pb.OPERATION_SUM, pb.OPERATION_BROADCAST):
            raise ProtocolError(f"key {declared.name!r} has the unknown operation {declared.operation}")
        self.id = declared.id
        self.name = declared.name
        self.broadcast = declared.operation == pb.OPERATION_BROADCAST
        self.declared = declared
        self.first_rank = rank
        """The rank whose declaration came first."""
        self.sizes: dict[int, int] = {}
        """Bytes of each shard that this aggregator owns."""
        self.shards: dict[int, ShardRounds[object]] = {}
        """Their rounds."""
        self.failure: FaultError | None = None
        """Why this key failed; then nothing of it is held any more."""
        for shard in declared.shards:
            size = shard.elements * self.element_type.itemsize
            if not 0 < size <= MAX_PARTITION_BYTES or shard.index in self.sizes:
                raise ProtocolError(
                    f"key {declared.name!r} declares shard {shard.index} of {size} bytes; each shard is declared once,"
                    f" with 1 to {MAX_PARTITION_BYTES} bytes"
                )
            self.sizes[shard.index] = size
            self.shards[shard.index] = ShardRounds(num_workers, shard.round)

    def __repr__(self) -> str:
        return f"<Key {self.name!r} {self.describe(self.declared)}>"

    @staticmethod
    def describe(declared: pb.Key) -> str:
        """What ranks must agree on, in words."""
        kind = "broadcast" if declared.operation == pb.OPERATION_BROADCAST else "pushpull"
        shape = tuple(declared.shape)
        # What differs from the first declaration was not checked, and may be a number that is no type.
        known = declared.type in pb.ElementType.values()
        name = pb.ElementType.Name(declared.type) if known else f"unknown type {declared.type}"
        return f"{kind} of {name.removeprefix('ELEMENT_TYPE_').lower()} {shape}"

    def disagreement(self, other: pb.Key, rank: int) -> DisagreementError | None:
        """What is wrong where another rank's declaration differs from the first, None where it does not."""
        mine = self.declared
        if (
            (mine.name, mine.elements, mine.type, mine.operation)
            == (other.name, other.elements, other.type, other.operation)
            and mine.shape == other.shape
            and [(s.index, s.elements) for s in mine.shards] == [(s.index, s.elements) for s in other.shards]
        ):
            return None
        what = f"key {self.name!r}" if mine.name == other.name else f"keys {self.name!r} and {other.name!r} (one id)"
        return DisagreementError(
            f"ranks disagree on {what}: rank {self.first_rank} declared {self.describe(mine)},"
            f" rank {rank} declared {self.describe(other)}; make all ranks use this key alike",
            key=self.id,
            ranks=sorted({self.first_rank, rank}),
        )

    @property
    def nbytes(self) -> int:
        """The size of all shards that this aggregator owns."""
        return sum(self.sizes.values())

    def fail(self, failure: FaultError) -> None:
        """Remembers why, and lets go of everything that is held."""
        self.failure = failure
        self.shards.clear()
