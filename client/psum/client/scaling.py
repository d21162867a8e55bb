"""Keeps the mean of gradients in elastic jobs, in which sums may count fewer ranks than the job has.

A program divides a sum of gradients by the number of workers, n. If m ranks contributed to it, the sum is multiplied by
n / m. Each shard has its own m. All ranks have the same sums and counts, and compute the same bits.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from psum.client.core.buffers import Memory, flat
from psum.client.core.contribution import Contribution
from psum.wire import ElementType

#: How many elements of 16 bits are converted at once.
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
    narrow = np.float32(factor)
    for start in range(0, len(part), _BATCH):
        batch = part[start : start + _BATCH]
        if element_type.in_numpy:
            batch[:] = batch.astype(np.float32) * narrow
        else:
            batch[:] = _to_bfloat16(_from_bfloat16(batch) * narrow)


def _from_bfloat16(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return (numbers.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _to_bfloat16(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rounds to the nearest, and to the even one of two."""
    bits = numbers.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # Rounding could make an infinity of a NaN.
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(numbers), quiet, rounded).astype(np.uint16)
