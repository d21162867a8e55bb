"""SIGTERM, where the program has no handler of its own: the process says goodbye to its aggregators, and ends.

Without that, its peers would take it for lost only when the time for which its place is kept is over. And a program
that is process 1, as in a container, would not end at all: the kernel keeps signals without a handler from it.

The process ends by the signal, as without psum: nothing else of the program runs. As process 1 it exits with the status
that a shell shows for that, 143.
"""

import contextlib
import os
import signal
import threading
import time
import weakref
from concurrent.futures import Future, wait
from typing import Final, Protocol

from psum.client import wakeup
from psum.client.observe import process_name
from psum.wire.errors import WorkerLostError

#: How long aggregators may take to answer the goodbye.
_GOODBYE_SECONDS: Final = 1.5

#: How long the main thread may take to run the handler. After that it is taken to be in a long call into C.
_HANDLER_SECONDS: Final = 0.5

_POLL_SECONDS: Final = 0.02

_STATUS: Final = 128 + signal.SIGTERM


class Parting(Protocol):
    """What says goodbye: a client."""

    @property
    def title(self) -> str:
        """Which rank of which job it is."""

    @property
    def rank(self) -> int:
        """Its rank."""

    def part(self, fault: WorkerLostError) -> "Future[None] | None":
        """Says goodbye to all aggregators, without waiting; None where there is nobody to say it to."""


_clients: "weakref.WeakSet[Parting]" = weakref.WeakSet()
"""Those that are open."""
_ending = False
"""Whether the handler has begun."""


def watch(client: Parting) -> None:
    """From now on SIGTERM says goodbye for a client, where the program leaves the signal as it was.

    Only the main thread can install a handler: a client that another one makes counts from when the main thread makes
    one.
    """
    _clients.add(client)
    if threading.current_thread() is not threading.main_thread():
        return
    # Also None is not ours: a handler that was not installed in Python.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _handle)
    if signal.getsignal(signal.SIGTERM) is _handle:
        wakeup.listen(signal.SIGTERM, _heed)


def forget(client: Parting) -> None:
    """A client was closed. After the last one the signal is as it was, unless the program has changed that."""
    _clients.discard(client)
    if not _clients and threading.current_thread() is threading.main_thread():
        _restore()


def _restore() -> None:
    if signal.getsignal(signal.SIGTERM) is _handle:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        wakeup.forget(signal.SIGTERM)


def _handle(*_: object) -> None:
    global _ending
    if _ending:
        # A second signal, while the first one is seen to.
        return
    _ending = True
    try:
        _say_goodbye()
    finally:
        # Whatever happens, such as Ctrl-C: this is the end.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
        # Process 1, or one that blocks the signal.
        os._exit(_STATUS)


def _heed() -> None:
    """The signal has come, and the main thread may be unable to run the handler."""
    deadline = time.monotonic() + _HANDLER_SECONDS
    while time.monotonic() < deadline:
        if _ending or signal.getsignal(signal.SIGTERM) is not _handle:
            return
        time.sleep(_POLL_SECONDS)
    try:
        _say_goodbye()
    finally:
        os._exit(_STATUS)


def _say_goodbye() -> None:
    answers = []
    for client in list(_clients):
        text = (
            f"{client.title}, {process_name.name()}, was ended by SIGTERM before its work was done; start the job again"
        )
        with contextlib.suppress(Exception):
            if (answer := client.part(WorkerLostError(text, ranks=[client.rank]))) is not None:
                answers.append(answer)
    wait(answers, _GOODBYE_SECONDS)


def _forked() -> None:
    # The child's signals are its own, and so is its end.
    _clients.clear()
    with contextlib.suppress(ValueError):
        _restore()


os.register_at_fork(after_in_child=_forked)
