"""A simulated stream to an aggregator process: a queue per direction, and two ends that close separately."""

from collections import deque

from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.job import Job
from psum.aggregator.service.connection import WorkerConnection


class Stream:
    """The messages in flight in both directions.

    A closed end neither sends nor receives. The other end may not know yet that it is closed.

    Args:
        client: The number of the client that opened it.
    """

    def __init__(self, client: int) -> None:
        self.client = client
        self.requests: deque[bytes] = deque()
        self.responses: deque[bytes] = deque()
        self.client_open = True
        """Whether the client's end is open."""
        self.aggregator_open = True
        """Whether the aggregator's end is open."""
        self.connection = WorkerConnection()
        """The aggregator's state of this stream, with the messages that it has yet to send."""
        self.joined: tuple[Job, int] | None = None
        """The job, and the first rank of the member that joined on this stream."""
        self.candidate: Candidate | None = None
        """The process that waits on this stream to join the job."""

    def close_client_end(self) -> None:
        """Close the client's end. Messages in flight to it are lost; those that it has sent may still arrive."""
        self.client_open = False
        self.responses.clear()

    def close_aggregator_end(self) -> None:
        """Close the aggregator's end. Messages in flight to it are lost; those that it has sent may still arrive."""
        self.aggregator_open = False
        self.requests.clear()
        self.connection.queue.clear()
