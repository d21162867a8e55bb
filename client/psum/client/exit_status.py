"""The status of a program that an error ends which is another rank's fault.

Whoever starts workers can tell by it a worker that is to be started again from one that has to be looked at.
"""

import os
import sys
from types import TracebackType
from typing import Final

from psum.wire.errors import FaultError

#: What `sysexits.h` calls EX_TEMPFAIL: try again. Neither Python nor shells give this status by themselves.
PEER_FAULT_STATUS: Final = 75

#: How many failures are remembered: each key of a job may fail with a text of its own.
_MAX_REPORTED: Final = 10_000

_reported: Final[set[str]] = set()
"""The texts of other ranks' failures that aggregators have reported."""
_next = sys.__excepthook__
"""Who is to show an error."""


def note(fault: FaultError, rank: int) -> None:
    """An aggregator has told this rank of a failure. From any thread."""
    global _next
    if not fault.ranks or rank in fault.ranks:
        return
    if len(_reported) < _MAX_REPORTED:
        _reported.add(str(fault))
    if sys.excepthook is not _hook:
        _next, sys.excepthook = sys.excepthook, _hook


def is_peer_fault(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is a failure of other ranks that an aggregator has reported."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error)
        # MXNet raises errors of its own, with the text in the midst of others.
        if any(reported in text for reported in _reported):
            return True
        error = error.__cause__ or error.__context__
    return False


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _next(kind, error, trace)
    # In an interactive session an error ends nothing.
    if is_peer_fault(error) and not (sys.flags.interactive or sys.flags.inspect or hasattr(sys, "ps1")):
        raise SystemExit(PEER_FAULT_STATUS)


os.register_at_fork(after_in_child=_reported.clear)
