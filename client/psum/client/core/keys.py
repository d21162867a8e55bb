"""A key as this worker knows it."""

import enum
import math
from typing import TYPE_CHECKING, Final

from psum.client.core.placement import Placement, key_id
from psum.client.core.ticket import Part, Ticket
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ElementType, titled
from psum.wire.errors import PsumError

if TYPE_CHECKING:
    from psum.client.core.counters import OperationCounters


class Operation(enum.IntEnum):
    """What is done with a key; the values are those of the protocol."""

    # The one that an Enum has of itself is slow, and an operation is part of what a key is found by.
    __hash__ = int.__hash__

    SUM = pb.OPERATION_SUM
    BROADCAST = pb.OPERATION_BROADCAST


_NAMES: Final = {Operation.SUM: "pushpull", Operation.BROADCAST: "broadcast"}


class Key:
    """One tensor under one operation, within one store.

    Args:
        store: The number of the store.
        key: The name that the user gave.
        shape: The shape of the tensor, () for a scalar.
        element_type: The type of its elements.
        operation: What its rounds do.
        placement: Where its shards go.
        tally: Where what becomes of its operations is counted.
        label: What it stands for, such as a parameter's name; empty where nobody says.
    """

    def __init__(
        self,
        store: int,
        key: str,
        shape: tuple[int, ...],
        element_type: ElementType,
        operation: Operation,
        placement: Placement | None,
        tally: "OperationCounters",
        label: str = "",
    ) -> None:
        self.tally = tally
        self.id = key_id(store, key, pb.Operation.ValueType(operation))
        self.name = key if store <= 0 else f"{key} (store {store})"
        self.label = label
        """What the aggregators are told that it stands for, with each declaration the same."""
        self._stands_for = label
        """The label of its last operation that had one."""
        self._stood_for: set[str] = set()
        """The labels before that."""
        self.shape = shape
        self.element_type = element_type
        self.operation = operation
        self.elements = math.prod(shape)
        self.nbytes = self.elements * element_type.itemsize
        self.shards = () if placement is None else placement.shards(self.id, self.elements, element_type.itemsize)
        self.aggregators: frozenset[int] = frozenset()
        """Those that are told of this key: the owners of its shards, and the owner-to-be of shard 0 of an empty key,
        where ranks that disagree on the shape would meet."""
        if placement is not None:
            self.aggregators = frozenset(s.aggregator for s in self.shards) | {placement.first(self.id)}
        self.reserved = 0
        """The next round to be reserved."""
        self.round = 0
        """The round that is running, or is to run next."""
        self.waiting: dict[int, Ticket] = {}
        """Started or aborted operations by round, whose turn has not come."""
        self.running: Ticket | None = None
        self.parts: list[Part] = []
        """Its shards as they are scheduled, made with the first operation."""
        self.next_rounds = [0] * len(self.shards)
        """The first round of each shard whose result this worker does not have."""
        self.sums: dict[int, memoryview | bytes] = {}
        """The last result of each shard, for an aggregator that was started again."""
        self.abort: pb.Abort | None = None
        """What the aggregators were told where this worker could not contribute."""
        self.declared = False
        """Whether the aggregators have been told of it."""
        self.failure: PsumError | None = None
        """Why every operation on it fails from now on."""
        self.begins_with: Key | None = None
        """The broadcast of the value that its sums change. A training that nobody waited for to begin must not go on
        where that has failed: MXNet tells one reader of an array only."""

    def __repr__(self) -> str:
        return f"<Key {self.title} {self.describe()} round={self.round}>"

    @property
    def title(self) -> str:
        """What it is called where people read of it."""
        return titled(self.name, self.label)

    def describe(self) -> str:
        """What must not change from call to call, in words."""
        return f"{_NAMES[self.operation]} of {self.element_type.label} {self.shape}"

    def check(self, shape: tuple[int, ...], element_type: ElementType, label: str) -> None:
        """Checks that an operation uses it as those before did.

        Raises:
            ValueError: Its shape or element type is another one, or it stands for what it stood for earlier: then
                several parts of the program take turns in one store.
        """
        last = self._stands_for
        changed = bool(label and last) and label != last
        if self.shape != shape or self.element_type is not element_type:
            before, after = (f" for {last}", f" for {label}") if changed else ("", "")
            raise ValueError(
                f"key {self.name!r} was a {self.describe()}{before} before, and is {element_type.label} {shape}{after}"
                f" now{'; give each Trainer a store of its own' if changed else ''}"
            )
        if changed:
            if label in self._stood_for:
                raise ValueError(
                    f"key {self.name!r} stood for {label}, then for {last}, and stands for {label} again: several parts"
                    " of the program take turns in one store. Where ranks take turns in another order, each would get"
                    " the other's sums. Give each Trainer a store of its own"
                )
            self._stood_for.add(last)
        self._stands_for = label or last

    def declaration(self, aggregator: int) -> pb.Key:
        """What one aggregator is told."""
        itemsize = self.element_type.itemsize
        return pb.Key(
            id=self.id,
            name=self.name,
            elements=self.elements,
            type=self.element_type.wire,
            operation=pb.Operation.ValueType(self.operation),
            shape=self.shape,
            shards=[
                pb.Shard(index=shard.index, elements=shard.size // itemsize, round=self.next_rounds[shard.index])
                for shard in self.shards
                if shard.aggregator == aggregator
            ],
            label=self.label,
        )
