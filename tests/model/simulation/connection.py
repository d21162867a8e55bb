"""One stream between a worker and an aggregator: two queues, each of which may break at either end."""

from collections import deque

from psum.aggregator.core.job import Job
from psum.aggregator.service.connection import WorkerConnection


class Connection:
    """What is under way in either direction. An end that is closed neither sends nor receives; the other may not know.

    Args:
        rank: The worker's.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.requests: deque[bytes] = deque()
        self.responses: deque[bytes] = deque()
        self.worker_open = True
        """Whether the worker still uses it."""
        self.aggregator_open = True
        """Whether the aggregator still does."""
        self.line = WorkerConnection()
        """What the aggregator is to send."""
        self.joined: tuple[Job, int] | None = None
        """The job and rank of whoever said hello on it."""

    def close_worker_end(self) -> None:
        """The worker gives it up: what is under way to it is lost. What it has sent may yet arrive."""
        self.worker_open = False
        self.responses.clear()

    def close_aggregator_end(self) -> None:
        """The aggregator gives it up: what is under way to it is lost. What it has sent may yet arrive."""
        self.aggregator_open = False
        self.requests.clear()
        self.line.outbox.clear()
