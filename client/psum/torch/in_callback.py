"""Whether the current thread runs a callback of one of torch's futures, and on which level.

Callbacks may begin collectives, at moments that differ between ranks: if a future has its result already, torch runs a
callback at once in the thread that adds it, in the middle of the program; otherwise later, in a thread of the group.
Only torch's futures know when that is. The level is the same on all ranks: the program is on level 0, and a callback is
one level above the code that has added it.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any, Final

import torch

#: The methods that add callbacks. All of torch's futures have them from one class.
_METHODS: Final = ("then", "add_done_callback")

_here: Final = threading.local()


def level() -> int:
    """Returns 0 outside of callbacks, 1 in a callback that the program has added, 2 in one that this has added, …"""
    return getattr(_here, "level", 0)


def install() -> None:
    """Makes torch's futures note in which threads they run callbacks. A second call changes nothing."""
    for name in _METHODS:
        method = getattr(torch._C.Future, name)
        if not hasattr(method, "__wrapped__"):
            setattr(torch._C.Future, name, _noting(method))


def _noting(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def add(future: Any, callback: Callable[..., Any]) -> Any:
        its = level() + 1

        def noted(*arguments: Any) -> Any:
            before, _here.level = level(), its
            try:
                return callback(*arguments)
            finally:
                _here.level = before

        return method(future, noted)

    return add
