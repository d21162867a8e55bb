"""Waiting for what other threads do, in a way in which a signal's handler may interrupt and may wait itself."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable


class Waiters:
    """Threads that wait until something is true.

    Python runs the handlers of signals in the main thread, between any two of its instructions, and while it waits for
    a lock. A handler may take long, and may wait for sums. So no thread may hold a lock then that another one needs in
    order to go on: a Condition's lock, for example. Here each waiting thread has a lock of its own, which nobody else
    waits for.
    """

    __slots__ = ("_sleeping",)

    def __init__(self) -> None:
        self._sleeping: deque[threading.Lock] = deque()

    def __bool__(self) -> bool:
        """Whether a thread waits."""
        return bool(self._sleeping)

    def wait_for(self, predicate: Callable[[], object], timeout: float | None = None) -> bool:
        """Waits until the predicate is true; returns False where it is not after timeout seconds.

        Whoever makes it true must call `wake` after that. In the main thread, handlers of signals run at once; what
        they raise ends the wait.
        """
        if predicate():
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        alarm = threading.Lock()
        alarm.acquire()
        try:
            while True:
                # In this order: whoever makes it true from here on wakes this thread.
                self._sleeping.append(alarm)
                if predicate():
                    return True
                rest = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
                if not alarm.acquire(timeout=rest):
                    return bool(predicate())
        finally:
            with contextlib.suppress(ValueError):
                self._sleeping.remove(alarm)

    def wake(self) -> None:
        """Has all that wait look again; from any thread."""
        # Those that look and go on waiting are not woken again: they are behind these.
        for _ in range(len(self._sleeping)):
            try:
                self._sleeping.popleft().release()
            except IndexError:
                break
