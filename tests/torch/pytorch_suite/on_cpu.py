"""Lets PyTorch's tests of torch.distributed that want GPUs run on the CPU.

Most of them test nothing that only a GPU has. They name a device by its number, or call `cuda()`.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Final
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.testing._internal import common_distributed

#: Functions that take a device without a name, and no other numbers.
_CONVERSIONS: Final = (torch.Tensor.to, torch._C._nn._parse_to)


def remove_gpu_marks() -> None:
    """Removes the marks that skip tests without GPUs. To be called before the module of the tests is imported."""
    changes: Mapping[str, object] = {
        "skip_if_no_gpu": lambda test: test,
        "skip_if_lt_x_gpu": lambda *_, **__: lambda test: test,
        "init_multigpu_helper": lambda size, _: {rank: [rank] for rank in range(size)},
    }
    for name, replacement in changes.items():
        setattr(common_distributed, name, replacement)


@contextlib.contextmanager
def gpus_are_the_cpu() -> Iterator[None]:
    """In the block, in this thread, all that should be on a GPU is on the CPU."""
    distributed = torch.nn.parallel.DistributedDataParallel
    initialize = distributed.__init__

    @functools.wraps(initialize)
    def on_cpu(self: Any, module: Any, *more: Any, **named: Any) -> None:
        assert not more, "the tests name the arguments of DistributedDataParallel"
        initialize(self, module, **(named | {"device_ids": None, "output_device": None}))

    with (
        mock.patch.multiple(
            torch.cuda,
            set_device=mock.DEFAULT,
            synchronize=mock.DEFAULT,
            current_device=mock.Mock(return_value=0),
            device=mock.Mock(return_value=contextlib.nullcontext()),
        ),
        mock.patch.object(distributed, "__init__", on_cpu),
        _OnCpu(),
    ):
        yield


class _OnCpu(TorchFunctionMode):  # type: ignore[misc]
    """Replaces devices in all calls of torch's functions, and calls of cuda()."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if "device" in named:
            named["device"] = _on_cpu(named["device"])
        if func in _CONVERSIONS:
            args = tuple(_on_cpu(value) for value in args)
        return func(*args, **named)


def _on_cpu(device: Any) -> Any:
    """The CPU for what stands for a GPU; anything else as it is."""
    is_gpu = (
        type(device) is int
        or (isinstance(device, str) and device.startswith("cuda"))
        or (isinstance(device, torch.device) and device.type == "cuda")
    )
    return torch.device("cpu") if is_gpu else device
