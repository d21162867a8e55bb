"""Sums of contributions in rank order, so that a run repeats bit for bit.

Half precision is accumulated in single precision and rounded once, in blocks whose accumulator fits in the processor's
cache. Integers wrap around, as in NumPy; numkong would saturate them. numkong adds single and double precision straight
from the bytes. It does not report overflows, which costs more in NumPy than a small sum.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numkong
import numpy as np

from psum.wire import ElementType

#: How many elements are accumulated at a time: 128 KiB of single precision, which fits in any second-level cache.
_BLOCK_ELEMENTS: Final = 32 << 10

#: Floating point types with fewer bits than single precision, by the names that numkong has for them.
_NARROW: Final[dict[ElementType, Any]] = {t: t.label for t in ElementType if t.is_float and t.itemsize < 4}

#: The buffer protocol's letters of the other floating point types. numkong adds these as NumPy does.
_FLOATS: Final[dict[ElementType, Any]] = {t: t.numpy.char for t in ElementType if t.is_float and t not in _NARROW}


def add_up(element_type: ElementType, contributions: Sequence[memoryview], out: memoryview) -> None:
    """Writes the sum of the contributions to `out`. In any thread, mostly without the interpreter's lock.

    Args:
        element_type: The type of the elements.
        contributions: The contributions in rank order, at least one, all of the same size in bytes. Not changed.
        out: Where the sum is written: writable, of the same size, and apart from the contributions' memory.
    """
    if len(contributions) == 1:
        out[:] = contributions[0]
    elif element_type in _NARROW:
        _add_up_narrow(element_type, contributions, out)
    elif element_type in _FLOATS:
        letter = _FLOATS[element_type]
        _add_up_blocks(numkong.add, [c.cast(letter) for c in contributions], out.cast(letter))
    else:
        storage = element_type.numpy
        _add_up_blocks(np.add, [np.frombuffer(c, storage) for c in contributions], np.frombuffer(out, storage))


def room(size: int) -> memoryview:
    """Memory for a sum of this many bytes, with any content."""
    return np.empty(size, np.uint8).data


def _add_up_blocks(add: Callable[..., object], contributions: Sequence[Any], total: Any) -> None:
    first, second, *others = contributions
    if not others:
        # Blocks keep the partial sum in the cache for the next addition. A single addition does not need that, and each
        # call takes the interpreter's lock again.
        add(first, second, out=total)
        return
    for start in range(0, len(total), _BLOCK_ELEMENTS):
        block = slice(start, start + _BLOCK_ELEMENTS)
        add(first[block], second[block], out=total[block])
        for other in others:
            add(total[block], other[block], out=total[block])


def _add_up_narrow(element_type: ElementType, contributions: Sequence[memoryview], out: memoryview) -> None:
    name, itemsize = _NARROW[element_type], element_type.itemsize
    arrays = [np.frombuffer(buffer, np.uint8) for buffer in (*contributions, out)]
    elements = len(out) // itemsize
    # A sum of two is rounded once in any case: single precision has more than twice as many bits plus two.
    size = elements if len(contributions) == 2 else min(_BLOCK_ELEMENTS, elements)
    accumulator = np.empty(size, np.float32) if len(contributions) > 2 else None
    for start in range(0, elements, size):
        count = min(size, elements - start)
        first, *middle, last, result = (
            numkong.from_pointer(array.ctypes.data + itemsize * start, (count,), name) for array in arrays
        )
        if accumulator is None:
            # Eight times as fast as with an accumulator.
            numkong.add(first, last, out=result)
            continue
        partial = accumulator[:count]
        numkong.astype(first, "float32", out=partial)
        for addend in middle:
            numkong.add(partial, addend, out=partial)
        numkong.add(partial, last, out=result)
