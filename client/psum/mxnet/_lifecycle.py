"""What must happen before this process forks, and before it ends.

MXNet waits for its engine at both, in a way in which psum could not complete its operations any more: for ever.
"""

import atexit
import logging
import os
import sys
import weakref
from typing import Final

from psum.client import Client, ClosedError
from psum.mxnet import _engine, _interrupts
from psum.mxnet._compat import MXNetError, mx

_log = logging.getLogger(__name__)

#: How often a fork that waits for sums says so.
_FORK_REPORT_SECONDS: Final = 10.0

#: How long an ending process waits for sums that are under way: other ranks need this rank's part of them.
EXIT_PATIENCE_SECONDS = 10.0

#: How long it then waits for the engine to take notice of their failure.
_EXIT_FAILURE_SECONDS: Final = 5.0

_clients: "weakref.WeakSet[Client]" = weakref.WeakSet()
_pid = os.getpid()


def watch(client: Client) -> None:
    """Has the client closed in good order when the process ends, and its sums ended where Ctrl-C waits for them."""
    _clients.add(client)
    _interrupts.watch(_end_sums)


def install() -> None:
    """Registers what must happen. To be called once, after MXNet was imported: its own exit handler must run later."""
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
    atexit.register(_at_exit)


def _before_fork() -> None:
    # Each operation ends by itself, at the latest when the client's deadline for its round is over.
    while not _engine.wait_until_idle(_FORK_REPORT_SECONDS):
        _log.warning("a fork of this process waits for %d sums that are under way", _engine.outstanding())


def _after_fork_in_child() -> None:
    _engine.forget_all()
    _interrupts.forget()


def _end_sums() -> None:
    for client in list(_clients):
        client.fail(ClosedError(f"rank {client.rank} was interrupted while it waited for sums"))


def _at_exit() -> None:
    _interrupts.forget()
    if os.getpid() != _pid:
        return
    if not _engine.wait_until_idle(EXIT_PATIENCE_SECONDS):
        _log.warning(
            "the process ends with %d sums under way that did not come within %g s; they fail",
            _engine.outstanding(),
            EXIT_PATIENCE_SECONDS,
        )
        for client in list(_clients):
            client.fail(ClosedError(f"rank {client.rank} ended before the sum was there"))
        if not _engine.wait_until_idle(_EXIT_FAILURE_SECONDS):
            _log.error("MXNet's engine did not end %d operations; the process may hang", _engine.outstanding())
    for client in list(_clients):
        client.close()
    if _engine.any_failed() and _engine.outstanding() == 0:
        _take_errors()


def _take_errors() -> None:
    """Has MXNet raise here what it keeps of failed operations, which its own exit handler would show with a traceback.

    Most often the program has got such an error already, and ends because of it.
    """
    try:
        mx.nd.waitall()
    except MXNetError as error:
        if not hasattr(sys, "last_value"):
            _log.error("the process ends after an operation failed: %s", error)
