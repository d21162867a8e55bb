"""Shared memory that grows by blocks of whole pages, until there is not enough memory."""

import os
import pathlib
from collections.abc import Iterator

import pytest

from psum.planes import GrowingSegment, Limit, Segment, SegmentError
from tests.shared_memory import emptied_directory


@pytest.fixture
def directory() -> Iterator[str]:
    """A directory in memory; the test must leave it empty."""
    with emptied_directory() as made:
        yield str(made)


def _fail(error: SegmentError) -> None:
    raise error


def test_blocks_lie_apart_where_others_find_them(directory: str) -> None:
    """Each block begins at a page, has the size asked for, and is found at its offset in the segment."""
    growing = GrowingSegment(directory, _fail)
    blocks = [growing.allocate(size) for size in (1, 4096, 5000, 7)]
    assert [block and (block.offset, len(block.view)) for block in blocks] == [
        (0, 1),
        (4096, 4096),
        (8192, 5000),
        (16384, 7),
    ]
    assert blocks[3] is not None
    blocks[3].view[:] = b"written"
    other = Segment.open(directory, growing.name)
    growing.close()
    assert bytes(other.view[16384 : 16384 + 7]) == b"written"
    assert growing.allocate(1) is None


def test_a_lack_of_memory_is_told_once(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that were allocated stay valid."""
    told: list[SegmentError] = []
    growing = GrowingSegment(directory, told.append)
    first = growing.allocate(4096)
    assert first is not None

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert [growing.allocate(8), growing.allocate(8)] == [None, None]
    (error,) = told
    assert str(error).startswith("8 bytes of shared memory could not be reserved in ")
    first.view[:4] = b"kept"
    growing.close()
    assert bytes(first.view[:4]) == b"kept"


def test_it_leaves_room_for_others(directory: str) -> None:
    """Allocation stops at the limit and says so once; blocks that were allocated stay valid."""
    told: list[SegmentError] = []
    growing = GrowingSegment(directory, told.append, Limit(bytes=0))
    assert [growing.allocate(4096), growing.allocate(4096)] == [None, None]
    (error,) = told
    assert "PSUM_SHM_LIMIT=0" in str(error)
    growing.close()


def test_more_than_its_addresses_is_not_to_be_had(directory: str) -> None:
    """A request that is too large changes nothing."""
    growing = GrowingSegment(directory, _fail)
    assert growing.allocate(1 << 60) is None
    block = growing.allocate(1)
    assert block is not None
    assert block.offset == 0
    growing.close()


def test_what_is_freed_is_given_back_and_used_again(directory: str) -> None:
    """The memory of freed blocks goes back to the system at once; later blocks lie in their place, and are all zero."""
    growing = GrowingSegment(directory, _fail)
    file = pathlib.Path(directory) / growing.name
    blocks = [growing.allocate(size) for size in (8192, 5000, 4096)]
    before = file.stat().st_blocks
    for block in blocks[:2]:
        assert block is not None
        block.view[:] = b"x" * len(block.view)
        growing.free(block.offset, len(block.view))
    assert (before - file.stat().st_blocks) * 512 == 16384
    again = growing.allocate(16384)
    assert again is not None
    assert (again.offset, bytes(again.view)) == (0, bytes(16384))
    growing.close()
    growing.free(again.offset, 16384)


def test_after_a_block_was_freed_it_allocates_again(directory: str) -> None:
    """A lack of memory is for a time only, if blocks are freed; it is told once all the same."""
    told: list[SegmentError] = []
    status = os.statvfs(directory)
    growing = GrowingSegment(directory, told.append, Limit(percent=100))
    block = growing.allocate(4096)
    assert block is not None
    too_much = status.f_bavail * status.f_frsize + 4096
    for _ in range(2):
        assert growing.allocate(too_much) is None
        assert growing.allocate(4096) is None
        growing.free(block.offset, 4096)
        block = growing.allocate(4096)
        assert block is not None
    assert len(told) == 1
    growing.close()


def test_a_finalizer_frees_while_another_block_is_allocated(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector may run a finalizer anywhere: it neither waits nor is forgotten."""
    growing = GrowingSegment(directory, _fail)
    first = growing.allocate(4096)
    assert first is not None
    reserve = Segment.reserve

    def collect(segment: Segment, offset: int, size: int) -> None:
        growing.free(first.offset, 4096)
        monkeypatch.undo()
        reserve(segment, offset, size)

    monkeypatch.setattr(Segment, "reserve", collect)
    second, third = growing.allocate(4096), growing.allocate(4096)
    assert second is not None
    assert third is not None
    assert (second.offset, third.offset) == (4096, 0)
    growing.close()
