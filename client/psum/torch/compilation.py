"""Keeps torch.compile away from psum's code."""

from types import FunctionType
from typing import TypeVar

from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy

Class = TypeVar("Class", bound=type)


def not_compiled(cls: Class) -> Class:
    """A decorator for classes whose methods PyTorch's C++ code calls.

    It does so also while a compiled model runs, as in the forward pass of DistributedDataParallel. torch.compile would
    then compile the method, and fail. torch.compiler.disable does the same as this, but imports the compiler, which
    takes a second.
    """
    for method in vars(cls).values():
        if isinstance(method, FunctionType):
            # The first is for the method, the second for all that it calls.
            set_code_exec_strategy(method.__code__, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP))
    return cls
