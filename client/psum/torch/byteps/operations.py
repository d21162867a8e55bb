"""Sums and averages of single tensors."""

from typing import Any

import torch
from psum.client import Store
from psum.torch import job, staging
from psum.torch.byteps.compression import Compression, Compressor
from psum.torch.outcome import Outcome
from psum.torch.tensors import check_dense


class Handle:
    """A sum that was started. `poll` and `synchronize` take it.

    Args:
        store: The store of its key.
        output: The tensor that receives the result.
    """

    def __init__(self, store: Store, output: Any) -> None:
        self.output = output
        self.outcome = Outcome(store, output)


def push_pull_async_inplace(
    tensor: Any, average: bool = True, name: str | None = None, version: int = 0, priority: int = 0
) -> Handle:
    """Starts to average or sum a tensor over all ranks, in place. Do not use the tensor before it is synchronized.

    All ranks must use a name the same number of times, in the same order, with the same shape and type. Operations
    without a name must come in the same order on all ranks.

    Args:
        tensor: A dense tensor.
        average: Whether to divide the sum by the number of ranks.
        name: The operation's name.
        version: Without effect; BytePS has it.
        priority: Higher values go first.

    Returns:
        What `poll` and `synchronize` take.

    Raises:
        TypeError: psum cannot sum the tensor, or it has integers and average is true.
        ValueError: The name had another shape or type before.
        PsumError: The job or an earlier operation of this name has failed.
    """
    store = job.store()
    check_dense(tensor, "the tensor")
    values = tensor.detach()
    if average:
        if not (values.is_floating_point() or values.is_complex()):
            raise TypeError(
                f"an average of {values.dtype} is no {values.dtype}; convert the tensor with .float(), or take the sum"
                " with average=False"
            )
        if store.client.num_workers > 1:
            values.div_(store.client.num_workers)
    key = f"push_pull of {tuple(values.shape)} {values.dtype}" if name is None else f"push_pull {name}"
    handle = Handle(store, tensor)
    staging.push_pull(store, key, values, priority=priority, done=handle.outcome, gradient=average)
    return handle


def push_pull_async(
    tensor: Any, average: bool = True, name: str | None = None, version: int = 0, priority: int = 0
) -> Handle:
    """Starts to average or sum a tensor over all ranks. The result is a new tensor. See push_pull_async_inplace."""
    check_dense(tensor, "the tensor")
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    return push_pull_async_inplace(copy, average, name, version, priority)


def push_pull_inplace(
    tensor: Any, average: bool = True, name: str | None = None, version: int = 0, priority: int = 0
) -> Any:
    """Averages or sums a tensor over all ranks, in place, and waits. Returns it. See push_pull_async_inplace."""
    return synchronize(push_pull_async_inplace(tensor, average, name, version, priority))


def push_pull(
    tensor: Any,
    average: bool = True,
    name: str | None = None,
    version: int = 0,
    priority: int = 0,
    compression: Compressor = Compression.none,
) -> Any:
    """Averages or sums a tensor over all ranks, and waits. See push_pull_async_inplace.

    Gradients flow through it: they are averaged or summed in the same way.

    Args:
        tensor, average, name, version, priority: See push_pull_async_inplace.
        compression: How to send fewer bits.

    Returns:
        A new tensor of the same shape and type.
    """
    compressed, context = compression.compress(tensor)
    if torch.is_grad_enabled() and compressed.requires_grad:
        result = _Differentiable.apply(compressed, average, name, version, priority)
    else:
        result = synchronize(push_pull_async(compressed, average, name, version, priority))
    return compression.decompress(result, context)


def poll(handle: Handle) -> bool:
    """Returns whether an operation has ended, so that `synchronize` does not wait."""
    return handle.outcome.done()


def synchronize(handle: Handle) -> Any:
    """Waits for an operation. Returns the tensor with the result.

    Raises:
        PsumError: The operation failed.
    """
    handle.outcome.wait()
    return handle.output


class _Differentiable(torch.autograd.Function):  # type: ignore[misc]
    """A push_pull that gradients flow through."""

    @staticmethod
    def forward(context: Any, tensor: Any, average: bool, name: str | None, version: int, priority: int) -> Any:
        context.average, context.version, context.priority = average, version, priority
        context.name = None if name is None else f"{name}, backward"
        return synchronize(push_pull_async(tensor, average, name, version, priority))

    @staticmethod
    def backward(context: Any, gradient: Any) -> Any:
        result = push_pull(gradient, context.average, context.name, context.version, context.priority)
        return result, None, None, None, None
