"""A simulated stream to an aggregator process: a queue per direction, and two ends that close separately.

A stream with a data connection has no further queues. Once an end talks on the data connection, nothing that matters
travels on the stream any more; both end together; and what was sent on the stream is handled before what is sent on the
data connection. So whichever of the two breaks, each end has handled the first of all frames, and lost the others.
"""

from collections import deque
from collections.abc import Coroutine

from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.job import Job
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.receiver import Receiver
from simulation.frames import Frame, Received, Sender


class Stream:
    """The frames in flight in both directions.

    A closed end neither sends nor receives. The other end may not know yet that it is closed.

    Args:
        client: The number of the client that opened it.
        direct: Whether the client can open a data connection beside it.
    """

    def __init__(self, client: int, *, direct: bool) -> None:
        self.client = client
        self.direct = direct
        self.requests: deque[Frame] = deque()
        self.responses: deque[Frame] = deque()
        self.client_open = True
        """Whether the client's end is open."""
        self.aggregator_open = True
        """Whether the aggregator's end is open."""
        self.to_aggregator = Sender(self.requests)
        """What the client sends."""
        self.to_client = Sender(self.responses)
        """What the aggregator sends."""
        self.answer: list[Frame] = []
        """What the client has of a message whose payloads are not all here."""
        self.connection = WorkerConnection()
        """The aggregator's state of this stream, with the messages that it has yet to send."""
        self.joined: tuple[Job, int] | None = None
        """The job, and the first rank of the member that joined on this stream."""
        self.candidate: Candidate | None = None
        """The process that waits on this stream to join the job."""
        self.receiver: Receiver | None = None
        """Takes the messages of the member that has joined."""
        self.received: Received | None = None
        """The message that the receiver takes, None if it waits for the next one."""
        self.handling: Coroutine[object, None, None] | None = None
        """Its work on this message, which waits for a payload."""

    def close_client_end(self) -> None:
        """Close the client's end. Frames in flight to it are lost; those that it has sent may still arrive."""
        self.client_open = False
        self.responses.clear()
        self._end()

    def close_aggregator_end(self) -> None:
        """Close the aggregator's end. Frames in flight to it are lost; those that it has sent may still arrive."""
        self.aggregator_open = False
        self.requests.clear()
        self.connection.queue.clear()
        self._end()
        if self.handling is not None:
            self.handling.close()
            self.handling = None

    def _end(self) -> None:
        # What an end that is still open sends arrives no more.
        self.to_aggregator.end()
        self.to_client.end()
