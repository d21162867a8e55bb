"""Futures of which a network needs hundreds in every step."""

import threading
from concurrent.futures import Future
from typing import Any

from psum.wire.errors import PsumError

# What all share: one for each is most of what a future costs, and wakes the thread that waits for many with each.
_changed = threading.Condition()


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
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []

    def result(self, timeout: float | None = None) -> None:
        """Waits until it has ended.

        Raises:
            TimeoutError: It has not within so many seconds.
            PsumError: That is how it ended.
        """
        self._wait(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The error it ended with, None where it ended well.

        Raises:
            TimeoutError: It has not ended within so many seconds.
        """
        self._wait(timeout)
        return super().exception(0)

    def end(self, error: PsumError | None) -> None:
        """Ends it."""
        if error is None:
            self.set_result(None)
        else:
            self.set_exception(error)

    def _wait(self, timeout: float | None) -> None:
        # Others' ends wake this one too.
        if self._state != "FINISHED":
            with _changed:
                _changed.wait_for(self.done, timeout)
