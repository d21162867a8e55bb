"""Keeps the mean of gradients in elastic jobs, in which sums may count fewer ranks than the job has.

A program divides a sum of gradients by the number of workers, n. If m ranks contributed to it, the sum is multiplied by
n / m. Each shard has its own m. All ranks have the same sums and counts, and compute the same bits.
"""

import functools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from psum.client.core.buffers import Memory, flat
from psum.client.core.contribution import Contribution
from psum.wire import ElementType

#: How many elements of 16 bits are looked up at once.
_BATCH: Final = 1 << 16


def scale(memory: Memory, element_type: ElementType, parts: Sequence[Contribution], nominal: int) -> None:
    """Multiplies a sum of floating-point numbers by n / m where fewer ranks than all contributed. Integers stay.

    The factor is computed in float64. Elements of float32 and float64 are multiplied by the factor in their own type.
    Those of 16 bits are multiplied in float32, and rounded once.

    Args:
        memory: The sum: flat bytes or an array, which is changed.
        element_type: The type of its elements.
        parts: The parts of it to which not all ranks contributed, as Ticket.contributions and Future.contributors tell.
        nominal: The number of ranks of the job, n.
    """
    if not parts or not element_type.is_float:
        return
    array = np.frombuffer(flat(memory), element_type.numpy)
    with np.errstate(over="ignore", invalid="ignore"):
        for part in parts:
            if part.count != nominal:
                _multiply(array[part.start : part.stop], element_type, nominal / part.count)


def _multiply(part: npt.NDArray[Any], element_type: ElementType, factor: float) -> None:
    if element_type.itemsize > 2:
        part *= part.dtype.type(factor)
        return
    bits, products = part.view(np.uint16), _products(element_type, factor)
    for start in range(0, len(bits), _BATCH):
        batch = bits[start : start + _BATCH]
        batch[:] = products[batch]


# A job has few factors at a time: each is used for all gradients until another rank is lost or joins.
@functools.lru_cache(maxsize=16)
def _products(element_type: ElementType, factor: float) -> npt.NDArray[np.uint16]:
    """The product of each number that a type of 16 bits has, by its bits. Looking it up takes half as long as
    converting, multiplying and rounding."""
    numbers, narrow = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16), np.float32(factor)
    if element_type.in_numpy:
        half = numbers.view(element_type.numpy)
        return (half.astype(np.float32) * narrow).astype(element_type.numpy).view(np.uint16)
    return _to_bfloat16(_from_bfloat16(numbers) * narrow)


def _from_bfloat16(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _to_bfloat16(numbers: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Rounds to the nearest, and to the even one of two."""
    bits = numbers.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # Rounding could make an infinity of a NaN.
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(numbers), quiet, rounded).astype(np.uint16)
