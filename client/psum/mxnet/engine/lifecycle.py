"""What must happen before this process forks, and before it ends.

MXNet waits for its engine at both, with the interpreter's lock held: nothing in Python could complete psum's operations
any more, and no thread of the engine could return from Python.
"""

import atexit
import contextlib
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Final

from psum.client import Client, ClosedError, PsumError
from psum.mxnet.compat import MXNetError, mx
from psum.mxnet.engine import interrupts, operations, waits

_log = logging.getLogger(__name__)

#: How often a fork that waits for sums says so.
_FORK_REPORT_SECONDS: Final = 10.0

#: How long a fork waits for psum's own threads to let go of the arrays of sums that have come.
_CATCH_UP_SECONDS: Final = 5.0

#: How long a fork in psum's own thread leaves the engine to run what it has to fail then.
_HERE_SECONDS: Final = 0.1

#: How long an ending process waits for sums that are under way: other ranks need this rank's part of them.
EXIT_PATIENCE_SECONDS = 10.0

#: How long it then waits for the engine to take notice of their failure.
_EXIT_FAILURE_SECONDS: Final = 5.0

_clients: "weakref.WeakSet[Client]" = weakref.WeakSet()
_pid = os.getpid()
_raised: BaseException | None = None
"""What the handler of a signal has raised while a fork was being prepared."""


def watch(client: Client) -> None:
    """Has the client closed in good order when the process ends, and its sums ended where Ctrl-C waits for them."""
    _clients.add(client)
    interrupts.watch(_end_sums)


def install() -> None:
    """Registers what must happen. To be called once, after MXNet was imported: its own exit handler must run later."""
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
    atexit.register(_at_exit)


def _before_fork() -> None:
    global _raised
    while True:
        try:
            _prepare_fork()
            return
        except BaseException as error:
            # A hook cannot call the fork off, and what it raises is lost. So this comes up again after the fork. The
            # program wants to get away, and does not wait for sums much longer.
            _raised = _raised or error
            with contextlib.suppress(BaseException):
                if not operations.wait_until_idle(interrupts.PATIENCE_SECONDS):
                    _end_sums()


def _prepare_fork() -> None:
    clients = list(_clients)
    if any(client.is_current_thread for client in clients):
        _end_sums_here(clients)
    # Each operation ends by itself, at the latest when the client's deadline for its round is over.
    while not operations.hold(_FORK_REPORT_SECONDS):
        _log.warning("a fork of this process waits for %d sums that are under way", operations.sums())
    # MXNet does not expect that another thread frees arrays while it stops its engine.
    for client in clients:
        client.catch_up(_CATCH_UP_SECONDS)
    if operations.any_failed():
        # An error that nobody has read yet would come up in MXNet's own hook, and end the process.
        waits.take_errors()


def _end_sums_here(clients: Iterable[Client]) -> None:
    """Where a callback in psum's own thread forks, which alone could bring the sums that the fork has to wait for."""
    while not operations.wait_until_idle(_HERE_SECONDS):
        for client in clients:
            client.fail(PsumError(f"a callback of psum's forked rank {client.rank}'s process before the sum was there"))
            client.catch_up(_CATCH_UP_SECONDS)


def _after_fork_in_parent() -> None:
    global _raised
    operations.let_go()
    raised, _raised = _raised, None
    if raised is not None and threading.current_thread() is threading.main_thread():
        interrupts.raise_after(_after_fork_in_parent, raised)


def _after_fork_in_child() -> None:
    global _raised
    _raised = None
    _clients.clear()
    operations.forget_all()
    interrupts.forget()
    waits.forget()


def _end_sums() -> None:
    _fail_all("was interrupted while it waited for sums")


def _fail_all(reason: str) -> None:
    for client in list(_clients):
        client.fail(ClosedError(f"rank {client.rank} {reason}"))


def _at_exit() -> None:
    interrupts.forget()
    if os.getpid() != _pid:
        return
    # Who was interrupted wants to get away.
    patience = interrupts.PATIENCE_SECONDS if waits.interrupted() else EXIT_PATIENCE_SECONDS
    came = _try(lambda: operations.end(patience))
    if not came:
        _log.warning(
            "the process ends with %d sums under way that did not come within %g s; they fail",
            operations.sums(),
            patience,
        )
        _fail_all("ended before the sum was there")
        if not _try(lambda: operations.end(_EXIT_FAILURE_SECONDS)):
            _log.error("MXNet's engine did not end %d operations; the process may hang", operations.outstanding())
    for client in list(_clients):
        client.close()
    if operations.any_failed() and operations.outstanding() == 0:
        _take_errors(told=not came)


def _try(wait: Callable[[], bool]) -> bool:
    """Waits; an interrupt, or what the handler of another signal raises, only ends the patience: the end has begun."""
    try:
        return wait()
    except BaseException:
        return False


def _take_errors(*, told: bool) -> None:
    """Has MXNet raise here what it keeps of failed operations, which its own exit handler would show with a traceback.

    Most often the program has got such an error already, and ends because of it.

    Args:
        told: Whether the log has it already.
    """
    try:
        mx.nd.waitall()
    except MXNetError as error:
        if not told and not hasattr(sys, "last_value"):
            _log.error("the process ends after an operation failed: %s", error)
