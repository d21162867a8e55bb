"""The threads in which callbacks of a group's futures run."""

import threading
from collections.abc import Callable
from queue import SimpleQueue

Task = Callable[[], None]


def level_of_this_thread() -> int:
    """Returns 0 in the program's threads, and n in a thread that runs callbacks of works begun on level n - 1."""
    return getattr(threading.current_thread(), "psum_level", 0)


class CallbackThreads:
    """Runs tasks, one after the other for each level of the threads that submit them.

    A callback may begin further collectives and wait for them, as PyTorch's PowerSGD hook does. So callbacks cannot run
    in psum's own thread, which brings the results. They run in the order in which the program asked for the futures,
    not in that in which results come: this makes the collectives that they begin come in the same order on all ranks.
    The futures of these collectives are completed by a thread of the next level. A callback that is added to a future
    with a result runs in the thread that adds it, as always in torch, which keeps the order too.

    Args:
        title: What the threads are named after.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._lock = threading.Lock()
        self._queues: dict[int, SimpleQueue[Task | None]] = {}
        self._closed = False

    def submit(self, task: Task) -> None:
        """Runs a task in the thread for the level of the calling thread. After `close`, in the calling thread."""
        level = level_of_this_thread() + 1
        with self._lock:
            if not self._closed:
                queue = self._queues.get(level)
                if queue is None:
                    queue = self._queues[level] = SimpleQueue()
                    _CallbackThread(f"{self._title} callbacks {level}", level, queue).start()
                queue.put(task)
                return
        task()

    def close(self) -> None:
        """Ends the threads after the tasks that they have. Does not wait."""
        with self._lock:
            self._closed = True
            for queue in self._queues.values():
                queue.put(None)


class _CallbackThread(threading.Thread):
    def __init__(self, name: str, level: int, queue: "SimpleQueue[Task | None]") -> None:
        super().__init__(name=name, daemon=True)
        self.psum_level = level
        self._queue = queue

    def run(self) -> None:
        while (task := self._queue.get()) is not None:
            task()
            del task
