"""Tells calls of DistributedDataParallel, which sums gradients, from those of the program."""

import contextlib
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

import torch.distributed as dist

_AUTOGRAD: Final = "torch.autograd"

_here: Final = threading.local()


def is_of_backward(caller: FrameType | None) -> bool:
    """Whether a method of a process group was called from C++ during a backward pass.

    DistributedDataParallel does that for its buckets, which it has made itself. The program's own calls come through
    functions of Python, such as torch.distributed.all_reduce, also in the program's hooks.

    Args:
        caller: The frame that has called the method. None: there is no Python code in this thread.
    """
    return caller is not None and str(caller.f_globals.get("__name__", "")).startswith(_AUTOGRAD)


def is_of_gradients(caller: FrameType | None) -> bool:
    """Whether a method of a process group was called to average gradients.

    DistributedDataParallel calls it so, and so do its communication hooks: functions that got a bucket, and the
    callbacks of futures of such calls.

    Args:
        caller: The frame that has called the method. None: there is no Python code in this thread.
    """
    if is_of_backward(caller) or getattr(_here, "gradients", False):
        return True
    while caller is not None:
        code = caller.f_code
        for name in code.co_varnames[: code.co_argcount]:
            if isinstance(caller.f_locals.get(name), dist.GradBucket):
                return True
        caller = caller.f_back
    return False


@contextlib.contextmanager
def callbacks_of(*, gradients: bool) -> Iterator[None]:
    """In this block, callbacks of a work's future run in this thread.

    Args:
        gradients: Whether the work sums gradients: what its callbacks sum are gradients too.
    """
    before, _here.gradients = getattr(_here, "gradients", False), gradients
    try:
        yield
    finally:
        _here.gradients = before
