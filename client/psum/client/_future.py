"""Futures of which a network needs hundreds in every step."""

import threading
import time
from concurrent.futures import Future
from typing import Any

from psum.wire.errors import PsumError

# What all share: one for each is most of what a future costs, and wakes the thread that waits for many with each.
_lock = threading.RLock()
_changed = threading.Condition(_lock)
_waiting = 0
"""How many threads have begun to wait since all were woken last; more than do where some gave up."""


class Outcome(Future[None]):
    """A future that ends with None or an error, and cannot be cancelled: the other ranks count on it.

    It is a `concurrent.futures.Future` for everybody else, but for how it waits.
    """

    def __init__(self) -> None:
        # As Future does it, without a condition of its own.
        self._condition = _changed
        self._state = "RUNNING"
        self._result = None
        self._exception = None
        self._watchers: list[Any] | None = None
        self._callbacks: list[Any] | None = None

    # The collector looks at each list of each future that is under way. Few have anything in them.
    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        if self._watchers is None:
            self._watchers = []
        return self._watchers

    @property
    def _done_callbacks(self) -> list[Any]:
        if self._callbacks is None:
            self._callbacks = []
        return self._callbacks

    def result(self, timeout: float | None = None) -> None:
        """Waits until it has ended.

        Raises:
            TimeoutError: It has not within so many seconds.
            PsumError: That is how it ended.
        """
        if self._state != "FINISHED":
            self._wait(timeout)
        if self._state != "FINISHED" or self._exception is not None:
            super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error it ended with, None where it ended well.

        Raises:
            TimeoutError: It has not ended within so many seconds.
        """
        self._wait(timeout)
        return super().exception(0)

    def __call__(self, error: PsumError | None) -> None:
        """Ends it. The future itself is what a ticket is given to call: a bound method would be another object."""
        global _waiting
        with _lock:
            self._exception = error
            self._state = "FINISHED"
            for watcher in self._watchers or ():
                if error is None:
                    watcher.add_result(self)
                else:
                    watcher.add_exception(self)
            if _waiting:
                _waiting = 0
                _changed.notify_all()
        if self._callbacks:
            self._invoke_callbacks()  # type: ignore[attr-defined]

    def _wait(self, timeout: float | None) -> None:
        global _waiting
        deadline = None if timeout is None else time.monotonic() + timeout
        with _lock:
            # Others' ends wake this one too.
            while self._state != "FINISHED":
                rest = None if deadline is None else deadline - time.monotonic()
                if rest is not None and rest <= 0:
                    return
                _waiting += 1
                _changed.wait(rest)
