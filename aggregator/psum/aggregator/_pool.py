"""A thread pool that takes the most urgent task first."""

import asyncio
import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class UrgentPool:
    """Runs tasks in threads, the most urgent first and, of equals, the oldest.

    An executor's own queue is first come, first served; so no more tasks are handed to it than it has threads, and the
    others wait here. To be used from one event loop's thread.
    """

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="psum-sum")
        self._idle = threads
        self._waiting: list[tuple[int, int, Callable[[], None], Callable[[BaseException | None], None]]] = []
        self._order = itertools.count()
        self._loop = asyncio.get_running_loop()

    @property
    def waiting(self) -> int:
        """How many tasks wait for a thread."""
        return len(self._waiting)

    def submit(self, priority: int, task: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """Runs task in a thread, then done on the event loop, with the exception that task raised or None."""
        heapq.heappush(self._waiting, (-priority, next(self._order), task, done))
        self._dispatch()

    def close(self) -> None:
        """Drops what waits, and waits for what runs."""
        self._waiting.clear()
        self._executor.shutdown()

    def _dispatch(self) -> None:
        while self._idle and self._waiting:
            _, _, task, done = heapq.heappop(self._waiting)
            self._idle -= 1
            self._executor.submit(task).add_done_callback(
                lambda future, done=done: self._loop.call_soon_threadsafe(self._finish, future, done)  # type: ignore[misc]
            )

    def _finish(self, future: Future[Any], done: Callable[[BaseException | None], None]) -> None:
        self._idle += 1
        self._dispatch()
        done(future.exception())
