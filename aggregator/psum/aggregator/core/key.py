"""A key on one aggregator: what the ranks agreed on, and the rounds of the shards that the aggregator owns."""

from typing import Final

from psum.aggregator.core import agreement
from psum.aggregator.core.roster import Roster
from psum.aggregator.core.round import ShardRounds
from psum.runtime import rank_names, titled
from psum.v1 import aggregator_pb2 as pb
from psum.wire import MAX_PARTITION_BYTES, ElementType, codec_of
from psum.wire.errors import DisagreementError, FaultError, ProtocolError

#: The longest name or label of a key in characters, and the most dimensions. They are kept for each key and repeated in
#: errors.
_MAX_NAME: Final = 4096
_MAX_DIMENSIONS: Final = 256


class Key:
    """One tensor under one operation.

    Args:
        declared: The first declaration of the key, which all others must agree with.
        rank: The member that made it.
        roster: The ranks that use it: those of the job, or some of them.

    Raises:
        ProtocolError: The declaration contradicts itself.
    """

    def __init__(self, declared: pb.Key, rank: int, roster: Roster) -> None:
        longest = max(len(declared.name), len(declared.label))
        if longest > _MAX_NAME or len(declared.shape) > _MAX_DIMENSIONS:
            raise ProtocolError(
                f"key {declared.name[:80]!r} has a name or label of {longest} characters and {len(declared.shape)}"
                f" dimensions; expected at most {_MAX_NAME} and {_MAX_DIMENSIONS}"
            )
        try:
            self.element_type = ElementType(declared.type)
        except ValueError:
            raise ProtocolError(f"key {declared.name!r} has the unknown element type {declared.type}") from None
        if declared.operation not in (pb.OPERATION_SUM, pb.OPERATION_BROADCAST):
            raise ProtocolError(f"key {declared.name!r} has the unknown operation {declared.operation}")
        self.id = declared.id
        self.name = declared.name
        self.label = declared.label
        """What the key stands for, from the first rank that gave a label."""
        self.label_rank = rank
        """The rank that gave the label; the first rank while there is none."""
        self.broadcast = declared.operation == pb.OPERATION_BROADCAST
        self.ranks = tuple(declared.ranks)
        """The ranks that use it, the root of a broadcast first; none if all do."""
        self.root = self.ranks[0] if self.ranks else 0
        """The rank whose value a broadcast sends."""
        self.declared = declared
        """The declaration that others are compared with."""
        self.codec = codec_of()
        """Encodes payloads on the wire; None leaves them as they are."""
        self.plain = not self.broadcast and self.codec is None
        """Whether its results are the sums of its contributions as they are sent."""
        self.first_rank = rank
        """The rank that made it."""
        self.roster = roster
        """The ranks that its rounds wait for."""
        self.reserved_bytes = 0
        """How much of the memory budget is reserved for it."""
        self.sizes: dict[int, int] = {}
        """Bytes of each shard that this aggregator owns, by shard number."""
        self.shards: dict[int, ShardRounds[object]] = {}
        """The rounds of each of these shards, by shard number."""
        self.failure: FaultError | None = None
        """Why the key failed; a failed key holds nothing."""
        for shard in declared.shards:
            size = shard.elements * self.element_type.itemsize
            if not 0 < size <= MAX_PARTITION_BYTES or shard.index in self.sizes:
                raise ProtocolError(
                    f"key {declared.name!r} declares shard {shard.index} of {size} bytes; each shard is declared once,"
                    f" with 1 to {MAX_PARTITION_BYTES} bytes"
                )
            self.sizes[shard.index] = size
            root = self.root if self.broadcast else None
            self.shards[shard.index] = ShardRounds(roster, shard.round, root=root)

    def __repr__(self) -> str:
        return f"<Key {self.name!r} {self.describe(self.declared)}>"

    @property
    def title(self) -> str:
        """The key's name for people: its name and label."""
        return titled(self.name, self.label)

    @staticmethod
    def describe(declared: pb.Key) -> str:
        """A declaration in words: operation, element type and shape."""
        kind = "broadcast" if declared.operation == pb.OPERATION_BROADCAST else "pushpull"
        try:
            elements = ElementType(declared.type).label
        except ValueError:
            elements = f"unknown type {declared.type}"
        among = f" among {rank_names(sorted(declared.ranks))}" if declared.ranks else ""
        return f"{kind} of {elements} {tuple(declared.shape[:_MAX_DIMENSIONS])}{among}"

    def disagreement(self, other: pb.Key, rank: int) -> DisagreementError | None:
        """How another rank's declaration differs from the first; None if they agree.

        A rank that gives no label agrees with any label.
        """
        mine, label = self.declared, other.label[:_MAX_NAME]
        labels_differ = bool(self.label and label) and self.label != label
        if not labels_differ and (
            (mine.name, mine.elements, mine.type, mine.operation)
            == (other.name, other.elements, other.type, other.operation)
            and mine.ranks == other.ranks
            and agreement.same_shape(mine, other)
            and agreement.shards(mine) == agreement.shards(other)
        ):
            if other.shape and not mine.shape:
                # Later declarations are compared with this one, which says more.
                self.declared, self.first_rank = other, rank
            return None
        names = f"keys {self.name!r} and {other.name[:_MAX_NAME]!r} (one id)"
        what = names if mine.name != other.name else f"key {repr(self.name) if labels_differ else self.title}"
        first, advice = self.first_rank, "make all ranks use this key alike"
        here, there = self.describe(mine), self.describe(other)
        if labels_differ:
            # The rank that gave the label, which need not be the first one.
            first = self.label_rank
            here, there = f"{here} for {self.label}", f"{there} for {label}"
            advice = (
                "their sum would mix these. Call collectives, and make networks, stores and Trainers, in the same order"
                " on all ranks, or give each network a name of its own (in MXNet a prefix)"
            )
        one, two = self.roster.ranks(first), self.roster.ranks(rank)
        sides = f"{rank_names(one)} declared {here}, {rank_names(two)} declared {there}"
        return DisagreementError(
            f"ranks disagree on {what}: {sides}; {advice}",
            key=self.id,
            ranks=sorted({*one, *two}),
        )

    def learn(self, label: str, rank: int) -> None:
        """Takes over the label of a rank that agrees, if there is none yet."""
        if label and not self.label:
            self.label, self.label_rank = label[:_MAX_NAME], rank

    @property
    def nbytes(self) -> int:
        """The size of all shards that this aggregator owns."""
        return sum(self.sizes.values())

    def fail(self, failure: FaultError) -> None:
        """Fails the key, and releases everything that it holds."""
        self.failure = failure
        self.let_go()

    def let_go(self) -> None:
        """Releases all rounds: nobody will use the key again."""
        for shard in self.shards.values():
            # Others, such as Layouts, may still refer to it.
            shard.let_go()
        self.shards.clear()
