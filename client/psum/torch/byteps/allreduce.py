"""The sums of single tensors by the names that Horovod has for them."""

import enum
from typing import Any

from psum.torch.byteps import operations
from psum.torch.byteps.compression import Compression, Compressor
from psum.torch.byteps.operations import Handle


class ReduceOp(enum.Enum):
    """What to make of the ranks' tensors."""

    AVERAGE = "the average"
    SUM = "the sum"


Average = ReduceOp.AVERAGE
Sum = ReduceOp.SUM


def is_average(op: Any, average: bool | None = None) -> bool:
    """Whether an average is meant.

    Args:
        op: Average or Sum. None: Average.
        average: Horovod's older way to say it. Not together with op.

    Raises:
        ValueError: It is neither, or both are given.
    """
    if average is not None and op is not None:
        raise ValueError("both op and average are given; leave average out")
    if average is not None:
        return average
    if op is None or op is Average:
        return True
    if op is Sum:
        return False
    raise ValueError(f"op is {op!r}; psum has psum.torch.Average and psum.torch.Sum")


def allreduce(
    tensor: Any,
    average: bool | None = None,
    name: str | None = None,
    compression: Compressor = Compression.none,
    op: ReduceOp | None = None,
) -> Any:
    """Averages or sums a tensor over all ranks, and waits. Returns a new tensor. See push_pull."""
    return operations.push_pull(tensor, is_average(op, average), name, compression=compression)


def allreduce_(tensor: Any, average: bool | None = None, name: str | None = None, op: ReduceOp | None = None) -> Any:
    """Averages or sums a tensor over all ranks, in place, and waits. Returns it. See push_pull_inplace."""
    return operations.push_pull_inplace(tensor, is_average(op, average), name)


def allreduce_async(
    tensor: Any, average: bool | None = None, name: str | None = None, op: ReduceOp | None = None
) -> Handle:
    """Starts to average or sum a tensor over all ranks. The result is a new tensor. See push_pull_async."""
    return operations.push_pull_async(tensor, is_average(op, average), name)


def allreduce_async_(
    tensor: Any, average: bool | None = None, name: str | None = None, op: ReduceOp | None = None
) -> Handle:
    """Starts to average or sum a tensor over all ranks, in place. See push_pull_async_inplace."""
    return operations.push_pull_async_inplace(tensor, is_average(op, average), name)
