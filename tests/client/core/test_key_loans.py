"""What a key lends never changes, whatever becomes of the places where the sums were made."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from psum.client.core.key_loans import KeyLoans

SHARDS = 3

PIECES = [memoryview(bytearray(1)) for _ in range(SHARDS)]


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
        self.lent_last = False

    @precondition(lambda self: not self.open)
    @rule()
    def contribute(self) -> None:
        """The next round begins, and the aggregator overwrites the places at some time."""
        self.loans.secure()
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
            assert not all(shared) or not self.loans.lends
        else:
            assert self.loans.lends
            assert loan.content == self.sums
            self.held.append((loan, self.sums))
            self.lent_last = True

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 9))
    def give_back(self, which: int) -> None:
        """A borrower is done, or says that it does not read the loan any more."""
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


TestLending = Lending.TestCase


def operations(loans: KeyLoans, number: int, *, gives_back: bool) -> list[bool]:
    """Carries out operations. Returns which of their results were lent.

    Args:
        loans: What the key lends.
        number: How many operations.
        gives_back: Whether the borrower gives each loan back before the next operation.
    """
    lent = []
    for _ in range(number):
        loans.secure()
        for shard, piece in enumerate(PIECES):
            loans.collect(shard, piece)
        loan: Any = loans.conclude(lambda shard, piece: None)
        lent.append(loan is not None)
        if loan is not None and gives_back:
            loan.mapping.is_lent = False
    return lent


def test_a_key_whose_loans_are_kept_lends_less_and_less() -> None:
    """After two loans in a row that had to be copied it pauses for some operations, then for twice as many, and so on.
    A pause has an end, however often it has paused before."""
    loans = KeyLoans(SHARDS, FakeMapping)
    lent = operations(loans, 1000, gives_back=False)
    assert lent[: 2 + 8 + 1 + 16 + 1 + 32 + 1] == (
        [True, True] + [False] * 8 + [True] + [False] * 16 + [True] + [False] * 32 + [True]
    )
    assert sum(lent[-65:]) == 1


def test_a_key_whose_loans_come_back_in_time_lends_all() -> None:
    """Also after it has paused. Then it pauses for a short time only if loans are kept again."""
    loans = KeyLoans(SHARDS, FakeMapping)
    operations(loans, 500, gives_back=False)
    assert all(operations(loans, 200, gives_back=True)[-100:])
    assert sum(operations(loans, 2 + 8 + 1, gives_back=False)) == 3
