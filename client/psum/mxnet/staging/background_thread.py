"""A thread for what takes too long for the training loop and for MXNet's engine, one thing after another."""

import logging
import os
import queue
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Worker:
    """Does what it is given, in order. Its thread begins with the first piece of work, and ends with the process.

    To be made once: it is never forgotten.

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
        """Has something done, and returns at once; from any thread. What it raises is logged."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(self._work,), name=self._name, daemon=True)
                self._thread.start()
            self._work.put(work)

    def _begin_anew(self) -> None:
        # Also in a forked child, which has no such thread, and locks that the parent's threads may have held.
        self._work = queue.SimpleQueue()
        self._thread = None
        # An RLock, since the collector may let go of something anywhere.
        self._starting = threading.RLock()

    @staticmethod
    def _run(work: "queue.SimpleQueue[Callable[[], None]]") -> None:
        while True:
            do = work.get()
            try:
                do()
            except Exception:
                _log.exception("%r failed", do)
            # Not kept until there is more to do.
            del do
