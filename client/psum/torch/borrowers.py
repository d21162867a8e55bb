"""Which collectives may have their results lent: those of DistributedDataParallel that only read them.

DistributedDataParallel's code in C++ sums its buckets during the backward pass, and reads each sum from the future's
value. By default it copies the sums from there to the gradients. Whether the sums are in the bucket's memory does not
matter to it. With gradient_as_bucket_view=True it copies them to the bucket if they are not there. That would cost as
much as the copy that lending saves, and at a worse time: after the backward pass instead of beside it.
"""

import weakref
from types import FrameType
from typing import Any, Final

import torch
from psum.torch.in_callback import in_callback
from psum.torch.tensors import byte_count, is_plain
from torch.autograd.graph import _engine_run_backward
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

#: Smaller results are copied faster than they are lent.
LEAST_BYTES: Final = 1 << 20

_BACKWARD: Final = _engine_run_backward.__code__

_wrappers: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""All modules of DistributedDataParallel in this process."""
_noting: list[Any] = []


def install() -> None:
    """Notes each DistributedDataParallel that is made from now on. A second call changes nothing."""
    if not _noting:
        _noting.append(register_module_module_registration_hook(_note))


def may_borrow(group: Any, tensor: torch.Tensor, caller: FrameType | None) -> bool:
    """Whether the sum of a tensor may be lent to the caller of the group's all_reduce.

    Args:
        group: The process group.
        tensor: What is summed.
        caller: The frame in Python that called the group. Code in C++ has none: the frame is then that of the Python
            code that runs it, which for the reducer is the backward pass.
    """
    return (
        (caller is None or caller.f_code is _BACKWARD)
        and tensor.device.type == "cpu"
        and tensor.dtype.is_floating_point
        and byte_count(tensor) >= LEAST_BYTES
        and is_plain(tensor)
        and not in_callback()
        and _reads_only(group)
    )


def _reads_only(group: Any) -> bool:
    """Whether the group's DistributedDataParallel modules only read sums."""
    wrappers = [wrapper for wrapper in _wrappers if getattr(wrapper, "process_group", None) is group]
    return bool(wrappers) and not any(wrapper.gradient_as_bucket_view for wrapper in wrappers)


def _note(module: Any, name: str, submodule: Any) -> None:
    if isinstance(module, DistributedDataParallel):
        _wrappers.add(module)
