"""A thread pool that runs the most urgent task first."""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

#: How many bytes a thread adds up before it takes further tasks. An urgent task waits for as much, one or two
#: milliseconds. Handing a task to a thread and back takes as long as adding up some hundred kilobytes.
_BATCH_BYTES: Final = 16 << 20

#: The caller adds up this many bytes itself, since handing them to a thread would take longer.
_AT_ONCE_BYTES: Final = 512 << 10

#: The same if no processor is spare, so that a thread would only take the caller's place: the shards of 2 MiB of eight
#: workers, which take one or two milliseconds.
_AT_ONCE_WITHOUT_SPARE_BYTES: Final = 16 << 20
_SPARE_THREADS: Final = 3


class _Task(NamedTuple):
    """A task that waits for a thread; the smallest one is the most urgent."""

    urgency: int
    order: int
    size: int
    run: Callable[[], None]
    done: Callable[[BaseException | None], None]


class PriorityPool:
    """Runs tasks in threads, the most urgent first, and equally urgent ones in order of arrival.

    An executor's own queue knows no urgency. So it is given no more tasks than it has threads, and the others wait
    here. A thread takes several small tasks at once. Used from the thread of one event loop.

    Args:
        threads: How many threads there are.

    Attributes:
        at_once_bytes: How many bytes the caller should rather add up itself.
    """

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="psum-sum")
        self._idle = threads
        self.at_once_bytes = _AT_ONCE_BYTES if threads >= _SPARE_THREADS else _AT_ONCE_WITHOUT_SPARE_BYTES
        self._waiting: list[_Task] = []
        self._order = itertools.count()
        self._loop = asyncio.get_running_loop()
        self._due = False
        """Whether the next turn of the event loop hands out tasks."""

    @property
    def waiting(self) -> int:
        """How many tasks wait for a thread."""
        return len(self._waiting)

    def submit(
        self, priority: int, task: Callable[[], None], done: Callable[[BaseException | None], None], size: int = 0
    ) -> None:
        """Runs a task in a thread, then calls `done` on the event loop with what the task raised, or None.

        Args:
            priority: Higher values run first.
            task: The task.
            done: Called after it.
            size: How many bytes the task adds up.
        """
        heapq.heappush(self._waiting, _Task(-priority, next(self._order), size, task, done))
        if self._idle and not self._due:
            self._due = True
            self._loop.call_soon(self._dispatch)

    def close(self) -> None:
        """Drops the tasks that wait, and waits for those that run."""
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
    """Runs tasks; returns what each of them raised, or None."""
    errors: list[BaseException | None] = []
    for task in batch:
        try:
            task.run()
            errors.append(None)
        except BaseException as error:
            errors.append(error)
    return errors
