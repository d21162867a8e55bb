"""Handles SIGTERM if the program has no handler for it: the process says goodbye to its aggregators, and ends.

Otherwise the other ranks would notice its end only when its place is no longer kept. And a program that is process 1,
as in a container, would not end at all: the kernel does not deliver signals without a handler to process 1.

The process ends by the signal, as it would without psum: nothing else of the program runs. As process 1 it exits with
status 143, which a shell shows for a process that SIGTERM ended.
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

#: How many seconds aggregators may take to answer the goodbye.
_GOODBYE_SECONDS: Final = 1.5

#: How many seconds the main thread may take to run the handler. After that it must be in a long call into C.
_HANDLER_SECONDS: Final = 0.5

_POLL_SECONDS: Final = 0.02

_STATUS: Final = 128 + signal.SIGTERM


class Parting(Protocol):
    """What can leave its job early: a client."""

    @property
    def title(self) -> str:
        """Its rank and its job, for people."""

    @property
    def rank(self) -> int:
        """Its rank."""

    def part(self, fault: WorkerLostError) -> "Future[None] | None":
        """Starts to say goodbye to all aggregators, without waiting. None if there is no aggregator to tell."""


_clients: "weakref.WeakSet[Parting]" = weakref.WeakSet()
"""The open clients."""
_ending = False
"""Whether the handler has begun."""


def watch(client: Parting) -> None:
    """Says goodbye for a client on SIGTERM, unless the program handles or ignores the signal.

    Only the main thread can install a handler. A client of another thread is covered once the main thread makes one.
    """
    _clients.add(client)
    if threading.current_thread() is not threading.main_thread():
        return
    # None means a handler that was not installed from Python. It stays.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _handle)
    if signal.getsignal(signal.SIGTERM) is _handle:
        wakeup.listen(signal.SIGTERM, _stand_in)


def forget(client: Parting) -> None:
    """Forgets a closed client. After the last one the signal is as before, unless the program has changed it."""
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
        # A second signal while the first is handled.
        return
    _ending = True
    try:
        _say_goodbye()
    finally:
        # Whatever happens, such as Ctrl-C, the process must end.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
        # The signal did not end it: it is process 1, or blocks the signal.
        os._exit(_STATUS)


def _stand_in() -> None:
    """Handles the signal in place of the main thread, if that does not run the handler in time."""
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
    # The child has its own signals and its own end.
    _clients.clear()
    with contextlib.suppress(ValueError):
        _restore()


os.register_at_fork(after_in_child=_forked)
