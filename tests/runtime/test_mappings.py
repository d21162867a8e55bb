"""Memory is replaced under an address that others keep."""

import mmap
import tempfile

from psum.runtime.mappings import address_of, copy_on_write, make_private, map_again

SIZE = 3 * 4096 - 100


def test_shared_memory_takes_the_place_of_other_memory() -> None:
    """After map_again, both addresses show the same memory; after make_private, a copy of it is at the second."""
    shared, other = mmap.mmap(-1, SIZE), mmap.mmap(-1, SIZE)
    other[:5] = b"other"
    shared[:6] = b"shared"
    assert map_again(address_of(shared), SIZE, address_of(other))
    assert other[:6] == b"shared"
    other[-3:] = b"end"
    assert shared[-3:] == b"end"
    assert make_private(address_of(other), SIZE)
    assert other[:] == shared[:]
    other[:6] = b"apart!"
    assert shared[:6] == b"shared"
    other.close()
    assert shared[-3:] == b"end"


def test_what_cannot_be_mapped_leaves_all_unchanged() -> None:
    """An address that is not that of a page is refused."""
    shared, other = mmap.mmap(-1, SIZE), mmap.mmap(-1, SIZE)
    other[:] = b"x" * SIZE
    assert not map_again(address_of(shared), SIZE, address_of(other) + 8)
    assert not make_private(address_of(other) + 8, 4096)
    assert other[:] == b"x" * SIZE


def test_pages_become_copies_when_they_are_written_to() -> None:
    """After copy_on_write, the file keeps what it has. The pages that were not written to show it."""
    with tempfile.TemporaryFile() as file:
        file.truncate(4 * 4096)
        memory = mmap.mmap(file.fileno(), 4 * 4096)
        memory[4096:4100] = b"old!"
        assert copy_on_write(address_of(memory) + 4096, 4097, file.fileno(), 4096)
        memory[4096:4100] = b"new!"
        memory[:4] = memory[-4:] = b"both"
        assert memory[4096:4100] == b"new!"
        file.seek(0)
        content = file.read()
        assert (content[:4], content[4096:4100], content[-4:]) == (b"both", b"old!", b"both")
        assert not copy_on_write(address_of(memory) + 8, 4096, file.fileno(), 0)
