"""A thread for work that takes too long for the training loop and for MXNet's engine."""

import logging
import os
import queue
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Worker:
    """Does work in order, in a thread that starts with the first piece and ends with the process.

    Make each only once: it is never freed.

    Args:
        name: The name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None]]
        self._thread: threading.Thread | None
        self._begin_anew()
        os.register_at_fork(after_in_child=self._begin_anew)

    def do(self, work: Callable[[], None]) -> None:
        """Queues work and returns at once. From any thread. Logs what the work raises."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(self._work,), name=self._name, daemon=True)
                self._thread.start()
            self._work.put(work)

    def _begin_anew(self) -> None:
        # Also for a forked child, which has no such thread and may have inherited held locks.
        self._work = queue.SimpleQueue()
        self._thread = None
        # Reentrant: the garbage collector may run a finalizer that calls `do` anywhere.
        self._starting = threading.RLock()

    @staticmethod
    def _run(work: "queue.SimpleQueue[Callable[[], None]]") -> None:
        while True:
            do = work.get()
            try:
                do()
            except Exception:
                _log.exception("%r failed", do)
            # Frees the work now rather than when more comes.
            del do
