"""A key as this worker knows it: what it is, where its shards go, and whether it has failed."""

import math
from typing import Final

from psum.client.core.counters import OperationCounters
from psum.client.core.operation import Operation
from psum.client.core.placement import Placement, Shard, key_id
from psum.client.core.store_numbers import STEERING
from psum.runtime import titled
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ElementType, codec_of
from psum.wire.errors import PsumError

_NAMES: Final = {Operation.SUM: "pushpull", Operation.BROADCAST: "broadcast"}


class Key:
    """One tensor under one operation, within one store. Its rounds are in KeyRounds.

    Args:
        store: The number of the store.
        key: The name that the user gave.
        shape: The shape of the tensor, () for a scalar.
        element_type: The type of its elements.
        operation: What its rounds do.
        placement: Where its shards go. None without aggregators, or if `place` says it later, before the first
            operation begins.
        counters: Where its operations are counted.
        label: What it stands for, such as a parameter's name; empty if nobody says.
        ranks: The ranks that use it, the root of a broadcast first; none if all do. Only in elastic jobs.
    """

    def __init__(
        self,
        store: int,
        key: str,
        shape: tuple[int, ...],
        element_type: ElementType,
        operation: Operation,
        placement: Placement | None,
        counters: OperationCounters,
        label: str = "",
        ranks: tuple[int, ...] = (),
    ) -> None:
        self.counters = counters
        self.id = key_id(store, key, pb.Operation.ValueType(operation), ranks)
        self.ranks = ranks
        """The ranks that use it, the root of a broadcast first; none if all do."""
        self.root = ranks[0] if ranks else 0
        """The rank whose value a broadcast sends."""
        self.name = key if store <= 0 else f"{key} (store {store})"
        self.label = label
        """The label that every declaration tells the aggregators."""
        self._stands_for = label
        """The label of the last operation that had one."""
        self._stood_for: set[str] = set()
        """The labels before that."""
        self.shape = shape
        self.element_type = element_type
        self.operation = operation
        self.elements = math.prod(shape)
        self.nbytes = self.elements * element_type.itemsize
        self.codec = codec_of()
        """How its payloads are encoded; None: not at all."""
        self.plain = operation is Operation.SUM and self.codec is None
        """Whether its results are sums as they come."""
        self.store, self.key = store, key
        """The number of the store, and the name there."""
        self.steers = store == STEERING
        """Whether the first aggregator process owns it, whatever the ranks agree on."""
        self.shards: tuple[Shard, ...] = ()
        self.relayed = False
        """Whether a relay forwards it to the owners of its shards."""
        self.first = 0
        """The aggregator that owns shard 0, or would own it. An empty key is declared there too, so that ranks that
        disagree on its shape hear of it."""
        self.connections: frozenset[int] = frozenset()
        """The connections on which this key is declared."""
        if placement is not None:
            self.place(placement)
        self.keeps_sum = False
        """Whether its last sum is kept in any case: if it were lost with an aggregator, all other keys would fail."""
        self.start = 0
        """Its first round in this process: later than 0 if the process joined an elastic job that had used the key."""
        self.reserved = 0
        """The next round to be reserved."""
        self.failure: PsumError | None = None
        """Why every operation on it fails from now on."""
        self.begins_with: Key | None = None
        """The broadcast of the value that its sums change. If it has failed, sums fail too: MXNet tells only one reader
        of an array about the error, and the training must not go on without it."""
        self.successor: Key | None = None
        """The key of the sums that begin with this broadcast. They fail with it: a rank that hears of the failure first
        begins no such sum, and the others would wait for it until the round times out."""

    def __repr__(self) -> str:
        return f"<Key {self.title} {self.describe()}>"

    @property
    def title(self) -> str:
        """Its name and label, for people."""
        return titled(self.name, self.label)

    def describe(self) -> str:
        """What must be the same in every call, for people."""
        return f"{_NAMES[self.operation]} of {self.element_type.label} {self.shape}"

    def start_at(self, round: int) -> None:
        """Sets the round of its next operation. Only before the first one is declared."""
        self.start = self.reserved = round

    def place(self, placement: Placement) -> None:
        """Cuts it into shards, and gives these to aggregators."""
        turn = placement.turn(self.store, self.key, self.id)
        self.shards = placement.shards(turn, self.elements, self.element_type.itemsize)
        self.relayed = placement.relayed
        self.first = placement.first(turn)
        self.connections = frozenset(s.connection for s in self.shards) | {placement.connection(self.first)}

    def check(self, shape: tuple[int, ...], element_type: ElementType, label: str) -> None:
        """Checks that an operation uses the key as earlier operations did.

        Raises:
            ValueError: The shape or the element type differs; or the label is an earlier one again, which shows that
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
                    " of the program take turns in one store. If another rank takes turns in another order, each gets"
                    " the other's sums. Give each Trainer a store of its own"
                )
            self._stood_for.add(last)
        self._stands_for = label or last
