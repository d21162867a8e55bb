"""Blocks in a piece of memory never overlap, and a block that was freed can be taken again."""

import hypothesis
from hypothesis import strategies as st

from psum.planes import Slots

SIZE = 4096


@hypothesis.given(st.lists(st.one_of(st.integers(1, 1500), st.integers(-20, -1)), max_size=80))
def test_places_never_overlap_and_come_back(steps: list[int]) -> None:
    """Steps are sizes to take, or numbers of taken blocks to free, in any order."""
    slots = Slots(SIZE)
    taken: list[tuple[int, int]] = []
    for step in steps:
        if step > 0:
            offset = slots.take(step)
            if offset is None:
                continue
            assert offset % 64 == 0
            assert offset + step <= SIZE
            assert all(offset + step <= other or other + size <= offset for other, size in taken)
            taken.append((offset, step))
        elif taken:
            slots.give(*taken.pop(step % len(taken)))
    for block in taken:
        slots.give(*block)
    assert slots.free_bytes == SIZE
    # In one piece again.
    assert slots.take(SIZE) == 0


def test_where_no_piece_is_large_enough_there_is_no_place() -> None:
    """Even if enough bytes are free in several pieces."""
    slots = Slots(192)
    first, _, last = (slots.take(64) for _ in range(3))
    assert first is not None
    assert last is not None
    slots.give(first, 64)
    slots.give(last, 64)
    assert slots.free_bytes == 128
    assert slots.take(65) is None
    assert slots.take(64) == first
    assert Slots(0).take(1) is None
