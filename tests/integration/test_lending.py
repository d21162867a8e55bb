"""Results that are lent from the aggregators' shared memory, rather than copied to the caller's."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from psum import client as psum
from psum.aggregator import Settings
from psum.planes import MappedSums
from tests.integration.conftest import PATIENCE_SECONDS, Fleet

#: Some shards, the last of which ends in the middle of a page.
ELEMENTS: Final = (5 << 18) + 77


class Borrower:
    """Sums a key again and again, on one rank.

    Args:
        client: The rank.
        elements: The size of the key.
    """

    def __init__(self, client: psum.Client, elements: int = ELEMENTS) -> None:
        self.rank = client.rank
        self.elements = elements
        self._store = client.store()
        self.round = 0

    def sum(self) -> tuple[npt.NDArray[np.float32], bool]:
        """Returns the sum of the next round, and whether it was lent."""
        self.round += 1
        value = np.full(self.elements, self.round * (self.rank + 1), np.float32) + np.arange(self.elements) % 5
        memory = value.astype(np.float32)
        ticket = self._store.reserve("key", shape=memory.shape, element_type=psum.ElementType.FLOAT32)
        ended, loans = threading.Event(), []
        errors: list[Any] = []

        def done(error: psum.PsumError | None) -> None:
            errors.append(error)
            loans.append(ticket.loan)
            ended.set()

        ticket.start(memory, memory, done, borrows=True)
        assert ended.wait(PATIENCE_SECONDS)
        assert errors == [None]
        loan = loans.pop()
        lent: npt.NDArray[np.float32] = memory if loan is None else np.asarray(loan).view(np.float32)
        return lent, loan is not None

    def expected(self) -> npt.NDArray[np.float32]:
        """The sum of the last round."""
        expected: npt.NDArray[np.float32] = (self.round * 3 + 2 * (np.arange(self.elements) % 5)).astype(np.float32)
        return expected


def lent_in_rounds(client: psum.Client, rounds: int, *, keeps: int = 0) -> list[bool]:
    """Borrows so many sums, keeps some of the last ones, and checks all of them. Returns which were lent."""
    borrower = Borrower(client)
    lent, held = [], []
    for _ in range(rounds):
        result, is_lent = borrower.sum()
        lent.append(is_lent)
        held.append((result, borrower.expected()))
        del result
        while len(held) > keeps:
            assert np.array_equal(*held[0])
            del held[0]
    assert all(np.array_equal(one, expected) for one, expected in held)
    return lent


@pytest.mark.parametrize("aggregators", [1, 3])
def test_sums_are_lent(aggregators: int) -> None:
    """They come from all aggregators, and are those of each round."""
    fleet = Fleet([Settings(listen=("127.0.0.1:0",))] * aggregators)
    try:
        assert fleet.on_every_rank(2, lambda client: lent_in_rounds(client, 4), plane="shm") == [[True] * 4] * 2
        keeps_no_sums = fleet.on_every_rank(2, lambda client: lent_in_rounds(client, 2), keep_sums=False, job="other")
        assert keeps_no_sums == [[True] * 2] * 2
    finally:
        fleet.close()


def test_a_sum_that_is_kept_for_long_never_changes() -> None:
    """A rank that keeps its sums for several rounds sees each as it was. Its key then lends nothing any more."""
    fleet = Fleet([Settings(listen=("127.0.0.1:0",))])
    try:
        one, other = fleet.on_every_rank(2, lambda client: lent_in_rounds(client, 6, keeps=6 * client.rank))
        assert one == [True] * 6
        assert other == [True, True, False, False, False, False]
    finally:
        fleet.close()


@pytest.mark.parametrize("plane", ["direct", "inline"])
def test_other_planes_copy(plane: str) -> None:
    """There the sum is in the target, as without lending."""
    fleet = Fleet([Settings(listen=("127.0.0.1:0",))])
    try:
        assert fleet.on_every_rank(2, lambda client: lent_in_rounds(client, 2), plane=plane) == [[False] * 2] * 2
    finally:
        fleet.close()


def test_a_small_key_is_copied_or_lent_alike() -> None:
    """A key of less than a page, whose sum travels in the message, is copied."""
    fleet = Fleet([Settings(listen=("127.0.0.1:0",))])
    try:

        def work(client: psum.Client) -> bool:
            borrower = Borrower(client, 100)
            result, is_lent = borrower.sum()
            assert np.array_equal(result, borrower.expected())
            return is_lent

        assert fleet.on_every_rank(2, work) == [False, False]
    finally:
        fleet.close()


def test_an_aggregator_that_is_started_again_changes_nothing_that_is_lent() -> None:
    """A sum of the old process stays as it was, beside those of the new one, which are lent too. Then the streams
    break, and the same process goes on."""
    fleet = Fleet([Settings(listen=("127.0.0.1:0",))])
    clients = [fleet.worker(rank, 2) for rank in range(2)]
    borrowers = [Borrower(client) for client in clients]
    held = []
    try:
        with ThreadPoolExecutor(2) as pool:
            for disturb in (None, fleet.restart, fleet.cut, None):
                if disturb is not None:
                    disturb()
                results = list(pool.map(Borrower.sum, borrowers, timeout=PATIENCE_SECONDS))
                expected = borrowers[0].expected()
                assert all(np.array_equal(result, expected) for result, _ in results)
                held += [(result, expected) for result, _ in results[:1]]
                if len(held) == 2:
                    assert [is_lent for _, is_lent in results] == [True, True]
        for client in clients:
            client.close()
        assert all(np.array_equal(result, expected) for result, expected in held)
    finally:
        fleet.close()


def test_a_rank_without_memory_for_a_copy_fails_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot contribute, because its borrower would see another sum. The others hear why, and the loan stays."""

    def lacking(sums: MappedSums) -> None:
        raise MemoryError("no memory for a private copy of a lent sum")

    monkeypatch.setattr(MappedSums, "detach", lacking)
    fleet = Fleet([Settings(listen=("127.0.0.1:0",))])
    try:

        def work(client: psum.Client) -> str:
            borrower = Borrower(client)
            loan, is_lent = borrower.sum()
            assert is_lent
            expected = borrower.expected()
            if client.rank == 0:
                del loan
            with pytest.raises(psum.AbortedError) as failure:
                borrower._store.push_pull("key", np.zeros(ELEMENTS, np.float32))
            if client.rank:
                assert np.array_equal(loan, expected)
            return str(failure.value)

        assert all("no memory for a private copy" in text for text in fleet.on_every_rank(2, work))
    finally:
        fleet.close()
