"""Handles SIGTERM if the program has no handler for it: the process says goodbye to its aggregators, and ends.

Otherwise the other ranks would notice its end only when its place is no longer kept. And a program that is process 1,
as in a container, would not end at all: the kernel does not deliver signals without a handler to process 1.

A program with step boundaries of an elastic job leaves at one of them instead; see `postpone`.

The process ends by the signal, as it would without psum: nothing else of the program runs. As process 1 it exits with
status 143, which a shell shows for a process that SIGTERM ended.
"""

import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
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
"""Whether the handler has begun to end the process."""
_leaving: "_Leaving | None" = None
"""How the program leaves by itself, None if it does not."""
_late = 0
"""How many signals were handled in place of the main thread, which will still run the handler for them."""
_arrived = 0
"""How many signals `_stand_in` was called for."""
_handled = 0
"""How often the main thread has run the handler."""


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


def postpone(client: Parting, leave: Callable[[], None] | None, seconds: float = 0.0) -> None:
    """Lets the program leave by itself after the first SIGTERM. A second one ends it as usual.

    Args:
        client: The client whose job it leaves. When it is closed, the program has left.
        leave: Asks the program to leave. It takes no lock. None: it has left, and the next signal ends the process.
        seconds: The process ends as usual if it has not left so many seconds after the signal.
    """
    global _leaving
    before, _leaving = _leaving, None if leave is None else _Leaving(client, leave, seconds)
    if before is not None:
        before.end()


def forget(client: Parting) -> None:
    """Forgets a closed client. After the last one the signal is as before, unless the program has changed it."""
    _clients.discard(client)
    if _leaving is not None and _leaving.client is client:
        postpone(client, None)
    if not _clients and threading.current_thread() is threading.main_thread():
        _restore()


def _restore() -> None:
    if signal.getsignal(signal.SIGTERM) is _handle:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        wakeup.forget(signal.SIGTERM)


def _handle(*_: object) -> None:
    global _ending, _handled, _late
    _handled += 1
    if _late:
        # A stand-in has done it.
        _late -= 1
        return
    if _ending or _postponed():
        # Or a second signal while the first is handled.
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
    global _arrived, _late
    _arrived += 1
    number, deadline = _arrived, time.monotonic() + _HANDLER_SECONDS
    while time.monotonic() < deadline:
        if _ending or _handled >= number or signal.getsignal(signal.SIGTERM) is not _handle:
            return
        time.sleep(_POLL_SECONDS)
    # The main thread may have run the handler since the last look. Nothing comes between this look and the next line:
    # Python changes threads only at calls and at jumps back.
    if _handled >= number:
        return
    _late += 1
    if not _postponed():
        _end_here()


def _postponed() -> bool:
    """Asks the program to leave by itself, if it does so and was not asked before."""
    leaving = _leaving
    return leaving is not None and leaving.ask()


class _Leaving:
    """A program that leaves by itself, and the thread that ends the process if it does not.

    Args:
        client: The client whose job it leaves.
        leave: Asks the program to leave.
        seconds: How many seconds it may take.
    """

    def __init__(self, client: Parting, leave: Callable[[], None], seconds: float) -> None:
        self.client = client
        self._leave = leave
        self._seconds = seconds
        self._asked = threading.Event()
        self._left = threading.Event()
        # Not when the signal arrives: a handler must not take the locks with which threads are made.
        threading.Thread(target=self._watch, name="psum-leaving", daemon=True).start()

    def ask(self) -> bool:
        """Asks the program to leave. Returns whether that is new."""
        if self._asked.is_set():
            return False
        self._leave()
        self._asked.set()
        return True

    def end(self) -> None:
        """Ends the watch."""
        self._left.set()
        self._asked.set()

    def _watch(self) -> None:
        self._asked.wait()
        if not self._left.wait(self._seconds):
            _end_here()


def _end_here() -> None:
    """Ends the process from another thread than the main one."""
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
    global _leaving
    _clients.clear()
    _leaving = None
    with contextlib.suppress(ValueError):
        _restore()


os.register_at_fork(after_in_child=_forked)
