"""A thread pool that takes the most urgent task first."""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

#: How much a thread is given to do at once; an urgent task waits for as much, which takes one or two milliseconds. To
#: hand something to a thread and back takes as long as to add up some hundred kilobytes.
_BATCH_BYTES: Final = 16 << 20

#: So many bytes are better added up by the caller: handing them to a thread would take longer.
_AT_ONCE_BYTES: Final = 512 << 10

#: The same where there are no processors to spare, so that a thread only changes places with the caller: eight workers'
#: shards of 2 MiB, which take one or two milliseconds.
_AT_ONCE_WITHOUT_SPARE_BYTES: Final = 16 << 20
_SPARE_THREADS: Final = 3


class _Task(NamedTuple):
    """What waits for a thread; the smallest is the most urgent."""

    urgency: int
    order: int
    size: int
    run: Callable[[], None]
    done: Callable[[BaseException | None], None]


class PriorityPool:
    """Runs tasks in threads, the most urgent first and, of equals, the oldest.

    An executor's own queue is first come, first served; so no more is handed to it than it has threads, and the others
    wait here. A thread takes several small tasks at once. To be used from one event loop's thread.

    Attributes:
        at_once_bytes: What is better added up without it.
    """

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="psum-sum")
        self._idle = threads
        self.at_once_bytes = _AT_ONCE_BYTES if threads >= _SPARE_THREADS else _AT_ONCE_WITHOUT_SPARE_BYTES
        self._waiting: list[_Task] = []
        self._order = itertools.count()
        self._loop = asyncio.get_running_loop()
        self._due = False
        """Whether tasks will be handed out in the next turn of the event loop."""

    @property
    def waiting(self) -> int:
        """How many tasks wait for a thread."""
        return len(self._waiting)

    def submit(
        self, priority: int, task: Callable[[], None], done: Callable[[BaseException | None], None], size: int = 0
    ) -> None:
        """Runs task in a thread, then done on the event loop, with the exception that task raised or None.

        Args:
            priority: The more, the sooner.
            task: What is to be done.
            done: What is to be told.
            size: How many bytes are added up.
        """
        heapq.heappush(self._waiting, _Task(-priority, next(self._order), size, task, done))
        if self._idle and not self._due:
            self._due = True
            self._loop.call_soon(self._dispatch)

    def close(self) -> None:
        """Drops what waits, and waits for what runs."""
        self._waiting.clear()
        self._executor.shutdown()

    def _dispatch(self) -> None:
        self._due = False
        while self._idle and self._waiting:
            batch: list[_Task] = []
            size = 0
            while self._waiting and (not batch or size + self._waiting[0].size <= _BATCH_BYTES):
                task = heapq.heappop(self._waiting)
                batch.append(task)
                size += task.size
            self._idle -= 1
            self._executor.submit(_run, batch).add_done_callback(
                lambda future, batch=batch: self._loop.call_soon_threadsafe(self._finish, batch, future)  # type: ignore[misc]
            )

    def _finish(self, batch: Sequence[_Task], future: "Future[list[BaseException | None]]") -> None:
        self._idle += 1
        self._dispatch()
        for task, error in zip(batch, future.result(), strict=True):
            task.done(error)


def _run(batch: Sequence[_Task]) -> list[BaseException | None]:
    """What each of the tasks raised."""
    errors: list[BaseException | None] = []
    for task in batch:
        try:
            task.run()
            errors.append(None)
        except BaseException as error:
            errors.append(error)
    return errors
