"""The exit status of a program that ends because of another rank's fault.

It tells whoever starts workers which of them only need to be started again, and which need a look.
"""

import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from psum.wire.errors import FaultError

#: `EX_TEMPFAIL` of `sysexits.h`, "try again". Neither Python nor shells use this status by themselves.
PEER_FAULT_STATUS: Final = 75

#: How many failures are remembered. Each key of a job may fail with its own text.
_MAX_REPORTED: Final = 10_000

_reported: Final[set[str]] = set()
"""The texts of other ranks' failures that aggregators have reported."""


def note(fault: FaultError, rank: int) -> None:
    """Notes a failure that an aggregator has reported to this rank. From any thread."""
    if not fault.ranks or rank in fault.ranks:
        return
    if len(_reported) < _MAX_REPORTED:
        _reported.add(str(fault))
    if not isinstance(sys.excepthook, _Hook):
        sys.excepthook = _Hook(sys.excepthook)


def is_peer_fault(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is a failure of other ranks that an aggregator has reported."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error)
        # MXNet raises its own errors, which contain the text among others. A copy: other threads may add to the set.
        if any(reported in text for reported in list(_reported)):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Hook:
    """Shows an error as the hook before it does, then ends the process with the status for it.

    Each has its own hook before it: the program may install a hook that calls one of these, and get another one on top.
    """

    def __init__(self, before: Callable[[type[BaseException], BaseException, TracebackType | None], Any]) -> None:
        self._before = before

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self._before(kind, error, trace)
        # In an interactive session an error does not end the process.
        if is_peer_fault(error) and not (sys.flags.interactive or sys.flags.inspect or hasattr(sys, "ps1")):
            raise SystemExit(PEER_FAULT_STATUS)


os.register_at_fork(after_in_child=_reported.clear)
