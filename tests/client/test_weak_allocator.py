"""What allocates a client's memory does not keep the client alive."""

import weakref

from psum.client.weak_allocator import weak_allocator
from psum.planes import Block


class Owner:
    """Has memory, as a client does."""

    def allocate(self, size: int) -> Block | None:
        """A block at 0."""
        return Block(0, memoryview(bytearray(size)))


def test_memory_comes_from_the_client_as_long_as_there_is_one() -> None:
    """Nothing is left of a client that nobody else uses, and it allocates nothing any more."""
    owner = Owner()
    allocate = weak_allocator(owner)
    block = allocate(3)
    assert block is not None
    assert block.view.nbytes == 3
    gone = weakref.ref(owner)
    del owner
    assert gone() is None
    assert allocate(3) is None
