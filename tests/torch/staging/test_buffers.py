"""Buffers are reused within a budget, and a tensor of any size gets one at some time."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from psum.torch.staging.buffers import BufferPool, buffer_size


@dataclasses.dataclass
class Memory:
    """Memory of a size that does not exist."""

    size: int


@given(st.integers(1, 1 << 40))
def test_sizes(nbytes: int) -> None:
    """A buffer has whole pages, is large enough, and wastes a fifth at most where tensors are large."""
    size = buffer_size(nbytes)
    assert size >= nbytes
    assert size % 4096 == 0
    assert size <= max(1.25 * nbytes, nbytes + 4096)


@given(st.lists(st.tuples(st.integers(1, 100_000), st.integers(0, 3), st.booleans()), max_size=40))
def test_budget(turns: list[tuple[int, int, bool]]) -> None:
    """What is lent fits. Only a buffer for a tensor that is larger than all idle ones exceeds the budget, when none
    is lent; and there is always one when all were given back."""
    budget = 120_000
    pool = BufferPool(budget, Memory)
    lent: list[Memory] = []
    for nbytes, ends, drops in turns:
        before = pool.allocated
        buffer = pool.take(nbytes)
        if buffer is None:
            assert lent, "nobody would give a buffer back"
        else:
            assert buffer.size >= nbytes
            assert not any(buffer is other for other in lent)
            assert pool.allocated <= budget or not lent or pool.allocated == before
            lent.append(buffer)
        for _ in range(min(ends, len(lent))):
            (pool.drop if drops else pool.give_back)(lent.pop(0))
        assert pool.lent == len(lent)


def test_the_same_buffers_serve_every_step() -> None:
    """Tensors of the same sizes need no further memory in later steps, in whatever order they come."""
    sizes = [26_214_400, 26_000_000, 1_000_000, 4_000, 100]
    pool = BufferPool(1 << 30, Memory)
    allocated = []
    for order in (sizes, sizes[::-1]):
        for buffer in [pool.take(size) for size in order]:
            assert buffer is not None
            pool.give_back(buffer)
        allocated.append(pool.allocated)
    assert allocated[0] == allocated[1]
