"""Futures of which a network needs hundreds in every step."""

import threading
from concurrent.futures import Future
from typing import Any

from psum.runtime import Waiters
from psum.wire.errors import PsumError

# What all share: one for each is most of what a future costs, and wakes the thread that waits for many with each.
_lock = threading.RLock()
_changed = threading.Condition(_lock)
"""What the tools of concurrent.futures lock; nobody waits for it to be notified."""
_sleepers = Waiters()


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
        with _lock:
            self._exception = error
            self._state = "FINISHED"
            for watcher in self._watchers or ():
                if error is None:
                    watcher.add_result(self)
                else:
                    watcher.add_exception(self)
        if _sleepers:
            _sleepers.wake()
        if self._callbacks:
            self._invoke_callbacks()  # type: ignore[attr-defined]

    def done(self) -> bool:
        """Whether it has ended."""
        return self._state == "FINISHED"

    def _wait(self, timeout: float | None) -> None:
        # Others' ends wake this one too.
        _sleepers.wait_for(self.done, timeout)
