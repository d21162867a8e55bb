"""Memory is replaced under an address that others keep."""

import mmap

from psum.runtime.mappings import address_of, make_private, map_again

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
