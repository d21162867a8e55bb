"""What a key lends never changes, whatever becomes of the places where the sums were made."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from psum.client.core.key_loans import KeyLoans

SHARDS = 3


class FakeLoan:
    """What is lent: places until it is detached, then a copy of its own."""

    def __init__(self, mapping: "FakeMapping") -> None:
        self.mapping = mapping

    @property
    def content(self) -> list[bytes]:
        """What the borrower sees."""
        return self.mapping.content


class FakeMapping:
    """Places, mapped. Counts what is lent as MappedSums does, by hand."""

    def __init__(self, pieces: Sequence[memoryview]) -> None:
        self.pieces = list(pieces)
        self.private: list[bytes] | None = None
        self.is_lent = False

    @property
    def content(self) -> list[bytes]:
        return [bytes(piece) for piece in self.pieces] if self.private is None else self.private

    def shows(self, pieces: Sequence[memoryview]) -> bool:
        assert self.private is None
        return [piece.obj for piece in self.pieces] == [piece.obj for piece in pieces] and all(
            ours.obj is theirs.obj for ours, theirs in zip(self.pieces, pieces, strict=True)
        )

    def lend(self) -> Any:
        assert not self.is_lent
        assert self.private is None
        self.is_lent = True
        return FakeLoan(self)

    def detach(self) -> None:
        self.private = self.content


class Lending(RuleBasedStateMachine):
    """Rounds of one key: this rank contributes, sums overwrite the places, and results come and are lent or copied."""

    def __init__(self) -> None:
        super().__init__()
        self.mappable = True
        self.loans = KeyLoans(SHARDS, lambda pieces: FakeMapping(pieces) if self.mappable else None)
        self.places = [bytearray(1) for _ in range(SHARDS)]
        self.sums = [b""] * SHARDS
        self.round = 0
        self.open = False
        self.held: list[tuple[Any, list[bytes]]] = []
        self.in_vain = 0
        self.lent_last = False

    @precondition(lambda self: not self.open)
    @rule()
    def contribute(self) -> None:
        """The next round begins, and the aggregator overwrites the places at some time."""
        alive = self.lent_last and any(loan.mapping.private is None for loan, _ in self.held)
        self.loans.secure()
        self.in_vain = self.in_vain + 1 if alive else 0 if self.lent_last else self.in_vain
        self.lent_last = False
        self.open = True
        self.round += 1
        self.sums = [bytes([(self.round * SHARDS + shard) % 256]) for shard in range(SHARDS)]
        for place, total in zip(self.places, self.sums, strict=True):
            place[:] = total

    @precondition(lambda self: self.open)
    @rule(shared=st.lists(st.booleans(), min_size=SHARDS, max_size=SHARDS) | st.just([True] * SHARDS))
    def receive(self, shared: list[bool]) -> None:
        """Results come: some in shared memory, others in messages, which are copied at once."""
        target = [None if there else total for there, total in zip(shared, self.sums, strict=True)]
        for shard, there in enumerate(shared):
            if there:
                self.loans.collect(shard, memoryview(self.places[shard]))
        loan: Any = self.loans.conclude(lambda shard, piece: target.__setitem__(shard, bytes(piece)))
        self.open = False
        if loan is None:
            assert target == self.sums
            assert not all(shared) or self.loans.useless
        else:
            assert loan.content == self.sums
            self.held.append((loan, self.sums))
            self.lent_last = True

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 9))
    def give_back(self, which: int) -> None:
        """A borrower is done."""
        loan, _ = self.held.pop(which % len(self.held))
        loan.mapping.is_lent = False

    @precondition(lambda self: not self.open)
    @rule()
    def start_the_aggregator_again(self) -> None:
        """Its sums lie elsewhere. The old places stay as they are."""
        self.places = [bytearray(place) for place in self.places]

    @rule(mappable=st.booleans())
    def change_the_system(self, mappable: bool) -> None:
        """It can map pieces, or not."""
        self.mappable = mappable

    @invariant()
    def nothing_changes(self) -> None:
        """Each borrower sees what it was lent."""
        assert all(loan.content == content for loan, content in self.held)
        assert self.loans.useless or self.in_vain < 2


TestLending = Lending.TestCase
