"""Prepares forks and the end of this process.

MXNet waits for its engine at both, with the interpreter's lock held. Nothing in Python could complete psum's operations
then, and no thread of the engine could return from Python.
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

#: How often a fork that waits for sums logs that.
_FORK_REPORT_SECONDS: Final = 10.0

#: How long a fork waits for psum's own threads to release the arrays of sums that have come.
_CATCH_UP_SECONDS: Final = 5.0

#: How long a fork in psum's own thread waits for the engine to start operations, before it fails them.
_HERE_SECONDS: Final = 0.1

#: How long a process that ends waits for sums that are under way: other ranks need its part of them.
EXIT_PATIENCE_SECONDS = 10.0

#: How long it then waits for the engine to finish the failed operations.
_EXIT_FAILURE_SECONDS: Final = 5.0

_clients: "weakref.WeakSet[Client]" = weakref.WeakSet()
_pid = os.getpid()
_forks = 0
"""How many forks lie between the first process and this one."""
_raised: BaseException | None = None
"""What the handler of a signal raised while a fork was prepared."""


def watch(client: Client) -> None:
    """Closes the client in order when the process ends, and ends its sums if Ctrl-C has to wait for them."""
    _clients.add(client)
    interrupts.watch(_end_sums)


def forks() -> int:
    """Returns how many forks lie between the first process and this one. It costs less than the process's id."""
    return _forks


def install() -> None:
    """Registers the handlers. Call it once, after the import of MXNet: its own exit handler must run later."""
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
    atexit.register(_at_exit)


def _before_fork() -> None:
    global _raised
    while True:
        try:
            _prepare_fork()
            return
        except BaseException as error:
            # A hook cannot cancel the fork, and Python drops what it raises. So the error is raised after the fork. The
            # program wants to stop, so do not wait for sums much longer.
            _raised = _raised or error
            with contextlib.suppress(BaseException):
                if not operations.wait_until_idle(interrupts.PATIENCE_SECONDS):
                    _end_sums()


def _prepare_fork() -> None:
    clients = list(_clients)
    if any(client.is_current_thread for client in clients):
        _end_sums_here(clients)
    # Each operation ends by itself, at the client's deadline for its round at the latest.
    while not operations.hold(_FORK_REPORT_SECONDS):
        _log.warning("a fork of this process waits for %d sums that are under way", operations.sums())
    # MXNet does not expect that another thread frees arrays while it stops its engine.
    for client in clients:
        client.catch_up(_CATCH_UP_SECONDS)
    if operations.any_failed():
        # MXNet's own hook would raise an error that nobody has read yet, and end the process.
        waits.take_errors()


def _end_sums_here(clients: Iterable[Client]) -> None:
    """Fails the sums: a callback forks in psum's own thread, the only one that could bring them."""
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
    global _raised, _forks
    _raised = None
    _forks += 1
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
    # An interrupted program wants to stop.
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
        _raise_errors(logged=not came)


def _try(wait: Callable[[], bool]) -> bool:
    """Waits. An interrupt, or an error from the handler of a signal, only ends the wait: the process ends anyway."""
    try:
        return wait()
    except BaseException:
        return False


def _raise_errors(*, logged: bool) -> None:
    """Makes MXNet raise the error of a failed operation here. Its own exit handler would show it with a traceback.

    Usually the program has got this error already, and ends because of it.

    Args:
        logged: Whether the error was logged already.
    """
    try:
        mx.nd.waitall()
    except MXNetError as error:
        if not logged and not hasattr(sys, "last_value"):
            _log.error("the process ends after an operation failed: %s", error)
