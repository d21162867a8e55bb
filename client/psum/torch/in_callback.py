"""Whether the current thread runs a callback of one of torch's futures.

Callbacks may begin collectives, at moments that differ between ranks: if a future has its result already, torch runs a
callback at once in the thread that adds it, in the middle of the program; otherwise later, in a thread of the group.
Only torch's futures know when that is.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any, Final

import torch

#: The methods that add callbacks. All of torch's futures have them from one class.
_METHODS: Final = ("then", "add_done_callback")

_here: Final = threading.local()


def in_callback() -> bool:
    """Whether the current thread runs a callback."""
    return getattr(_here, "depth", 0) > 0


def install() -> None:
    """Makes torch's futures note in which threads they run callbacks. A second call changes nothing."""
    for name in _METHODS:
        method = getattr(torch._C.Future, name)
        if not hasattr(method, "__wrapped__"):
            setattr(torch._C.Future, name, _noting(method))


def _noting(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def add(future: Any, callback: Callable[..., Any]) -> Any:
        @functools.wraps(callback)
        def noted(*arguments: Any) -> Any:
            _here.depth = getattr(_here, "depth", 0) + 1
            try:
                return callback(*arguments)
            finally:
                _here.depth -= 1

        return method(future, noted)

    return add
