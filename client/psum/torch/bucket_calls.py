"""Tells calls of DistributedDataParallel from those of the program."""

from types import FrameType
from typing import Final

_AUTOGRAD: Final = "torch.autograd"


def is_of_backward(caller: FrameType | None) -> bool:
    """Whether a method of a process group was called from C++ during a backward pass.

    DistributedDataParallel does that for its buckets, which it has made itself. The program's own calls come through
    functions of Python, such as torch.distributed.all_reduce, also in the program's hooks.

    Args:
        caller: The frame that has called the method. None: there is no Python code in this thread.
    """
    return caller is not None and str(caller.f_globals.get("__name__", "")).startswith(_AUTOGRAD)
