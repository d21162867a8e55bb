"""The future of one operation. It costs little, because a training step needs hundreds of them.

`Outcome` is a concurrent.futures.Future without a condition of its own: all futures share one lock, and all threads
that wait for any of them share one set of waiters.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from psum.client.core.contribution import Contribution
from psum.client.core.ticket import Parts
from psum.runtime import Waiters
from psum.wire.errors import PsumError

# Shared by all futures. A lock of its own would be most of a future's cost, and would wake a thread that waits for many
# futures once for each.
_lock = threading.RLock()
_changed = threading.Condition(_lock)
"""For the functions of concurrent.futures, which lock it. Nothing waits for a notification."""
_sleepers = Waiters()


def wait_for(predicate: Callable[[], object], timeout: float | None = None) -> bool:
    """Waits until a predicate is true that depends on futures, or on something that calls `wake`.

    Returns:
        False if it is still false after timeout seconds.
    """
    return _sleepers.wait_for(predicate, timeout)


def wake() -> None:
    """Makes all that `wait_for` check their predicates again."""
    if _sleepers:
        _sleepers.wake()


class Outcome(Future[None]):
    """A `concurrent.futures.Future` that ends with None or an error.

    It cannot be cancelled, because the other ranks count on the operation.
    """

    # An attribute of the class: nearly all futures have no other.
    _parts: Parts | None = None
    """In an elastic job, finds out the parts of the result to which not all ranks contributed. None: all did."""

    # What Future.__init__ sets, for all that have not ended: a constructor would cost more than the future.
    if not TYPE_CHECKING:
        __init__ = object.__init__
    _condition = _changed
    _state = "RUNNING"
    _result = None
    _exception: BaseException | None = None
    _watchers: list[Any] | None = None
    _callbacks: list[Any] | None = None

    @property
    def contributors(self) -> tuple[Contribution, ...]:
        """In an elastic job, the parts of the result to which not all ranks contributed. Empty if all did to all of it.

        To be read when the operation has ended. The result is the sum of what these ranks contributed.
        """
        parts = self._parts
        return () if parts is None or self._state != "FINISHED" or self._exception is not None else parts()

    def take_counts(self, parts: Parts) -> None:
        """Notes how to find out to which parts of the result not all ranks contribute. See Ticket.note_count."""
        self._parts = parts

    # Lists are made when needed, which is seldom: the garbage collector visits every list of every future.
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
        """Waits until the operation has ended.

        Raises:
            TimeoutError: It has not ended after timeout seconds.
            PsumError: It failed.
        """
        if self._state != "FINISHED":
            self._wait(timeout)
        if self._state != "FINISHED" or self._exception is not None:
            super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits until the operation has ended. Returns its error, or None if it succeeded.

        Raises:
            TimeoutError: It has not ended after timeout seconds.
        """
        self._wait(timeout)
        return super().exception(0)

    def __call__(self, error: PsumError | None) -> None:
        """Ends the future. A ticket calls the future itself, because a bound method would be one more object."""
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
        """Returns whether it has ended."""
        return self._state == "FINISHED"

    def _wait(self, timeout: float | None) -> None:
        # Wakes up when any future ends.
        _sleepers.wait_for(self.done, timeout)
