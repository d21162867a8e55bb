"""The scheduler sends the most urgent first, within its credit."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psum.client.core.scheduler import Scheduler
from psum.wire import BATCH_BYTES, FAR_BATCH_BYTES, OUTSIDE_BATCH_BYTES


@dataclasses.dataclass(eq=False)
class Item:
    name: str = ""
    priority: int = 0
    size: int = BATCH_BYTES
    pulls: bool = False
    cancelled: bool = False
    place: int | None = None

    def staged(self) -> int | None:
        return self.place


def names(batch: list[Item]) -> list[str]:
    return [item.name for item in batch]


def test_higher_priorities_come_first_and_equals_in_order() -> None:
    """The order is by priority, then by arrival."""
    scheduler: Scheduler[Item] = Scheduler(100 * BATCH_BYTES)
    for name, priority in (("a", -3), ("b", 0), ("c", -3), ("d", -1)):
        scheduler.add(Item(name, priority))
    assert [names(scheduler.take()) for _ in range(5)] == [["b"], ["d"], ["a"], ["c"], []]


def test_a_late_urgent_item_overtakes_what_waits_for_credit() -> None:
    """Only shards that were sent before are ahead of it."""
    scheduler: Scheduler[Item] = Scheduler(BATCH_BYTES)
    for name in "abc":
        scheduler.add(Item(name, -9))
    assert names(scheduler.take()) == ["a"]
    assert scheduler.take() == []
    scheduler.add(Item("urgent", 5))
    assert scheduler.take() == []
    scheduler.release(Item("a", -9))
    assert names(scheduler.take()) == ["urgent"]


@pytest.mark.parametrize("limit", [BATCH_BYTES, FAR_BATCH_BYTES, OUTSIDE_BATCH_BYTES])
def test_a_small_item_has_room_beside_those_that_fill_a_message(limit: int) -> None:
    """Items of powers of two fill a message. A roll call beside them needs no further message."""
    scheduler: Scheduler[Item] = Scheduler(100 * limit)
    scheduler.batch_bytes = limit
    full = 1 << limit.bit_length() - 1
    for name, size in (("roll call", 64), *(("tensor", full // 16) for _ in range(16))):
        scheduler.add(Item(name, size=size))
    assert len(scheduler.take()) == 17


def test_an_item_larger_than_the_credit_passes_alone() -> None:
    """Credit never blocks an item forever."""
    scheduler: Scheduler[Item] = Scheduler(10)
    scheduler.add(Item("large", size=1000))
    scheduler.add(Item("small", size=1))
    assert names(scheduler.take()) == ["large"]
    assert scheduler.take() == []
    scheduler.release(Item("large", size=1000))
    assert names(scheduler.take()) == ["small"]


def test_only_a_part_of_what_is_staged_counts_against_the_credit() -> None:
    """As many staged items as the divisor pass for one other, if the plane reads the staging memory."""
    scheduler: Scheduler[Item] = Scheduler(BATCH_BYTES)
    scheduler.staged_divisor = 4
    staged = [Item(name, place=0) for name in "abcde"]
    for item in staged:
        scheduler.add(item)
    assert [names(scheduler.take()) for _ in range(5)] == [["a"], ["b"], ["c"], ["d"], []]
    scheduler.add(Item("other", priority=1))
    scheduler.release(staged[0])
    assert scheduler.take() == []
    for item in staged[1:4]:
        scheduler.release(item)
    assert [names(scheduler.take()) for _ in range(2)] == [["other"], []]
    scheduler.release(Item("other"))
    assert names(scheduler.take()) == ["e"]


def test_small_items_of_one_kind_travel_together() -> None:
    """Pushes share a message with pushes and pulls with pulls, without changing the order."""
    scheduler: Scheduler[Item] = Scheduler(1 << 30)
    for name, pulls in (("a", False), ("b", False), ("c", True), ("d", True), ("e", False)):
        scheduler.add(Item(name, size=0 if pulls else 10, pulls=pulls))
    assert [names(scheduler.take()) for _ in range(3)] == [["a", "b"], ["c", "d"], ["e"]]


def test_cancelled_items_are_not_sent() -> None:
    """Items that failed meanwhile are skipped and take no credit."""
    scheduler: Scheduler[Item] = Scheduler(1 << 30)
    scheduler.add(Item("a", cancelled=True))
    scheduler.add(Item("b"))
    scheduler.add(Item("c", cancelled=True))
    assert names(scheduler.take()) == ["b"]
    assert scheduler.take() == []
    assert scheduler.under_way_bytes == BATCH_BYTES


@given(
    st.integers(1, 3 * BATCH_BYTES),
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2 * BATCH_BYTES)), max_size=40),
    st.randoms(use_true_random=False),
)
def test_everything_is_sent_once_within_credit_and_no_batch_grows_large(
    credit: int, items: list[tuple[int, int]], random: object
) -> None:
    """With any sizes, all items pass, the credit holds unless an item is alone, and batches stay small."""
    scheduler: Scheduler[Item] = Scheduler(credit)
    for index, (priority, size) in enumerate(items):
        scheduler.add(Item(str(index), priority, size))
    under_way: list[Item] = []
    sent: list[str] = []
    while scheduler or under_way:
        batch = scheduler.take()
        if not batch:
            scheduler.release(under_way.pop(0))
            continue
        under_way += batch
        sent += names(batch)
        assert len(batch) == 1 or sum(i.size for i in batch) <= BATCH_BYTES
        heavy = [i for i in under_way if i.size]
        assert sum(i.size for i in heavy) <= credit or len(heavy) == 1
    assert sorted(sent, key=int) == [str(i) for i in range(len(items))]
    assert scheduler.under_way_bytes == 0
