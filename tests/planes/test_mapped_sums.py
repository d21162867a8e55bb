"""Pieces of shared memory that are mapped one after the other, and lent."""

import gc
import mmap
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from psum.planes import DEFAULT_DIRECTORY, Loan, MappedSums, Segment

PAGE = mmap.PAGESIZE


@pytest.fixture
def segments() -> Iterator[list[Segment]]:
    """Two segments of 16 pages, whose pages have different content."""
    made = [Segment.create(DEFAULT_DIRECTORY, 16 * PAGE) for _ in range(2)]
    for number, segment in enumerate(made):
        segment.reserve(0, segment.size)
        for page in range(16):
            segment.view[page * PAGE : (page + 1) * PAGE] = bytes([16 * number + page]) * PAGE
    yield made
    for segment in made:
        segment.close()


def lent(loan: Loan) -> bytes:
    """The content of what is lent."""
    return np.asarray(loan).tobytes()


def mapped(pieces: list[memoryview]) -> MappedSums:
    """The pieces, mapped."""
    sums = MappedSums.of(pieces)
    assert sums is not None
    return sums


def test_pieces_of_several_segments_are_one(segments: list[Segment]) -> None:
    """They follow each other in the given order, and the last may end anywhere."""
    one, other = (segment.view for segment in segments)
    pieces = [other[2 * PAGE : 4 * PAGE], one[: 3 * PAGE], one[3 * PAGE : 4 * PAGE], other[: PAGE + 7]]
    sums = mapped(pieces)
    assert lent(sums.lend()) == b"".join(pieces)
    assert sums.shows(pieces)
    assert not sums.shows(pieces[::-1])


def test_what_does_not_fit_is_not_mapped(segments: list[Segment]) -> None:
    """Pieces between pages, private memory, and nothing."""
    view = segments[0].view
    assert MappedSums.of([]) is None
    assert MappedSums.of([view[16:PAGE]]) is None
    assert MappedSums.of([view[:100], view[PAGE : 2 * PAGE]]) is None
    assert MappedSums.of([memoryview(mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))]) is None
    assert MappedSums.of([view[page * PAGE : (page + 1) * PAGE] for page in range(0, 16, 2)] * 16) is None


def test_a_detached_loan_keeps_its_content(segments: list[Segment]) -> None:
    """Also while the memory below is written to, after the segment was closed, and after its lender is gone."""
    view = segments[0].view
    sums = mapped([view[: 4 * PAGE]])
    loan = sums.lend()
    before = lent(loan)
    sums.detach()
    view[: 4 * PAGE] = bytes(4 * PAGE)
    assert lent(loan) == before
    del sums
    assert lent(loan) == before


def test_a_loan_that_was_given_up_shows_what_is_in_memory(segments: list[Segment]) -> None:
    """The memory may be lent again, and counts as lent as long as the new loan is not given up too."""
    view = segments[0].view
    sums = mapped([view[:PAGE]])
    loan = sums.lend()
    assert sums.is_lent
    loan.give_up()
    assert not sums.is_lent
    view[:PAGE] = bytes([99]) * PAGE
    assert lent(loan) == bytes([99]) * PAGE
    again = sums.lend()
    del loan
    assert sums.is_lent
    again.give_up()
    assert not sums.is_lent


def test_memory_can_be_lent_again(segments: list[Segment]) -> None:
    """A loan ends with the last array of it. The next one shows what is in memory then."""
    view = segments[0].view
    sums = mapped([view[:PAGE]])
    array = np.asarray(sums.lend()).view(np.float32)[3:]
    assert sums.is_lent
    del array
    assert not sums.is_lent
    view[:PAGE] = b"x" * PAGE
    assert lent(sums.lend()) == b"x" * PAGE


def test_a_lender_that_is_gone_leaves_what_is_lent(segments: list[Segment]) -> None:
    """The range lives as long as the loan, and the segment's memory too."""
    loan = mapped([segments[1].view[: 2 * PAGE]]).lend()
    expected = bytes(segments[1].view[: 2 * PAGE])
    segments[1].close()
    gc.collect()
    assert lent(loan) == expected


def test_a_reader_sees_no_difference_while_it_is_detached(segments: list[Segment]) -> None:
    """A thread reads all the time."""
    sums = mapped([segments[0].view[: 16 * PAGE]])
    array = np.asarray(sums.lend())
    before, stop, different = array.copy(), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            if not np.array_equal(array, before):
                different.append(array.copy())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        sums.detach()
    segments[0].view[:] = bytes(16 * PAGE)
    stop.set()
    reader.join()
    assert not different
    assert np.array_equal(array, before)


FORK = """
import gc, os
import numpy as np
from psum.planes import DEFAULT_DIRECTORY, MappedSums, Segment

segment = Segment.create(DEFAULT_DIRECTORY, 4096)
segment.reserve(0, 4096)
loans = [MappedSums.of([segment.view]).lend()]
if (child := os.fork()) == 0:
    loans.clear()
    gc.collect()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert np.asarray(loans[0]).tobytes() == bytes(4096)
segment.close()
"""


def test_a_fork_does_not_disturb_the_parent() -> None:
    """The child drops the loan, which it does not have, and the parent's content stays."""
    subprocess.run([sys.executable, "-c", FORK], check=True)
