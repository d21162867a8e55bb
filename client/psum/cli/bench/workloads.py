"""Named lists of tensor sizes, and values whose sums are exact in every element type."""

import importlib.resources
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from psum.wire import ElementType, NumberKind

#: The ending of a network's name for its buckets in PyTorch.
_BUCKETS: Final = "-ddp"

NAMES: Final = (
    "big",
    "wide",
    "small",
    "many",
    "resnet50",
    "vgg16",
    "transformer",
    f"resnet50{_BUCKETS}",
    f"transformer{_BUCKETS}",
)

#: DistributedDataParallel's sizes of the first bucket and of the others, in bytes. A bucket ends with the parameter
#: that makes it this large or larger.
_FIRST_BUCKET_BYTES: Final = 1 << 20
_BUCKET_BYTES: Final = 25 << 20

#: The longest period of values. A longer one would not distinguish more. A prime distinguishes ranks, tensors and
#: positions best.
_LONGEST_PERIOD: Final = 251

#: The largest number of workers for which sums are exact in every element type.
MAX_WORKERS: Final = 127


def sizes(workload: str) -> list[int]:
    """Return the element counts of a workload's tensors, in the order of a Trainer's numbers.

    `big` has 16 tensors of 1 Mi elements. `wide` has 16 of 2 Mi: in float16 as many bytes as `big` in float32. `small`
    has 256 of 1 Ki, `many` has 10,000 of 256. `resnet50` and `vgg16` have the parameters of these networks in Gluon's
    model zoo, `transformer` those of BERT-base, uncased, with its pooler. `resnet50-ddp` and `transformer-ddp` have the
    same in the buckets of PyTorch's DistributedDataParallel for float32, in the order in which a backward pass fills
    them.
    """
    if workload.endswith(_BUCKETS):
        return _buckets(sizes(workload.removesuffix(_BUCKETS)))
    if workload == "big":
        return [1 << 20] * 16
    if workload == "wide":
        return [1 << 21] * 16
    if workload == "small":
        return [1 << 10] * 256
    if workload == "many":
        return [1 << 8] * 10_000
    table = json.loads(importlib.resources.files("psum.cli.bench").joinpath("workloads.json").read_text())
    counts: list[int] = table[workload]
    return counts


def _buckets(parameters: Sequence[int]) -> list[int]:
    """Return the element counts of DistributedDataParallel's buckets: from the last parameter to the first."""
    found, limit, elements = [], _FIRST_BUCKET_BYTES, 0
    for size in reversed(parameters):
        elements += size
        if elements * ElementType.FLOAT32.itemsize >= limit:
            found.append(elements)
            limit, elements = _BUCKET_BYTES, 0
    return [*found, elements] if elements else found


class Values:
    """The values of all tensors in a job, in one element type, and their sums.

    Values are whole numbers, small enough that all sums are exact. They depend on rank, tensor, position and turn.
    """

    def __init__(self, element_type: ElementType, num_workers: int) -> None:
        self._element_type = element_type
        self._num_workers = num_workers
        # Values are below the period, so a sum is below period · workers.
        most = (1 << element_type.digits) - 1
        self._period = min(_LONGEST_PERIOD, most // num_workers + 1)

    def fill(self, out: npt.NDArray[Any], *, rank: int, tensor: int, turn: int) -> None:
        """Write a rank's contribution to out, in the storage of the element type."""
        out[...] = np.resize(self._stored(self._one(rank, tensor, turn)), out.shape)

    def is_sum(self, array: npt.NDArray[Any], *, tensor: int, turn: int) -> bool:
        """Return whether an array holds the exact sum over all ranks."""
        expected = sum(self._one(rank, tensor, turn) for rank in range(self._num_workers))
        return np.array_equal(array, np.resize(self._stored(np.asarray(expected)), array.shape))

    def _one(self, rank: int, tensor: int, turn: int) -> npt.NDArray[np.int64]:
        """Return a rank's values for one period of positions."""
        return (np.arange(self._period) * (turn + 1) + rank + tensor) % self._period

    def _stored(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        if self._element_type.kind is NumberKind.BFLOAT:
            # A bfloat16 is the upper half of a float32. The lower half of these numbers is 0.
            return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return numbers.astype(self._element_type.numpy)
