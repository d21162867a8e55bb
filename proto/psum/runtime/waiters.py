"""Wait for other threads so that signal handlers can interrupt the wait, and can wait themselves."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable


class Waiters:
    """Threads that wait until a predicate is true.

    Python runs signal handlers in the main thread, between any two instructions and while it waits for a lock. A
    handler may take long, and may wait for sums. So the interrupted code must not hold a lock that another thread
    needs, such as a Condition's lock. Here each waiting thread has its own lock, which no other thread waits for.
    """

    __slots__ = ("_sleeping",)

    def __init__(self) -> None:
        self._sleeping: deque[threading.Lock] = deque()

    def __bool__(self) -> bool:
        """Return whether any thread waits."""
        return bool(self._sleeping)

    def wait_for(self, predicate: Callable[[], object], timeout: float | None = None) -> bool:
        """Wait until the predicate is true. Return False if it is still false after `timeout` seconds.

        The thread that makes it true must call `wake` afterwards. In the main thread, signal handlers run at once. An
        exception of a handler ends the wait.
        """
        if predicate():
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        alarm = threading.Lock()
        alarm.acquire()
        try:
            while True:
                # Enqueue first, then check: a thread that makes the predicate true after the check wakes this one.
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
        """Make all waiting threads check their predicates again. Any thread may call this."""
        # The count excludes threads that check and wait again meanwhile: they are at the end of the queue.
        for _ in range(len(self._sleeping)):
            try:
                self._sleeping.popleft().release()
            except IndexError:
                break
