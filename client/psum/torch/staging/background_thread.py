"""A thread that does work in order."""

import logging
import queue
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)

_Work = Callable[[], None]


class Worker:
    """Does work in order, in a thread that starts with the first piece and ends after `stop`, or with the process.

    Args:
        name: The name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        # Its target is no bound method: the thread does not keep the worker alive.
        self._thread = threading.Thread(target=_run, args=(self._work,), name=name, daemon=True)
        self._started = False
        # Reentrant: a signal's handler may queue work anywhere.
        self._starting = threading.RLock()

    def do(self, work: _Work) -> None:
        """Queues work and returns at once. From any thread. Logs what the work raises."""
        self._work.put(work)
        if not self._started:
            with self._starting:
                if not self._started:
                    self._thread.start()
                    self._started = True

    def stop(self) -> None:
        """Lets the thread end when it has done what is queued. Does not wait for that."""
        self._work.put(None)


def _run(queued: "queue.SimpleQueue[_Work | None]") -> None:
    while (work := queued.get()) is not None:
        try:
            work()
        except Exception:
            _log.exception("%r failed", work)
        # Frees the work now rather than when more comes.
        del work
