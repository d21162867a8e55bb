"""The operations that a client has not reported as done."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from psum.client.core.session import Session
from psum.client.core.ticket import State, Ticket
from psum.client.transport.loop_thread import LoopThread
from psum.runtime import Waiters
from psum.wire.errors import PsumError

_log = logging.getLogger(__name__)


class OutstandingOperations:
    """Hands operations to the session, and calls their callbacks when they are done.

    Args:
        session: What runs the operations.
        thread: The only thread that changes the session. None: each caller's thread changes it, one at a time.
        settle: Called after operations were handed to the session. It must call `report`.
    """

    def __init__(self, session: Session, thread: LoopThread | None, settle: Callable[[], None]) -> None:
        self._session = session
        self._thread = thread
        self._settle = settle
        self._inbox: deque[Ticket] = deque()
        self._scheduled = False
        """Whether the thread is going to empty the inbox."""
        self._begun = 0
        """Operations that were started, have left the inbox, and were not reported as done."""
        self._counting = threading.RLock()
        """Held while that number changes."""
        self._idle = Waiters()
        # Only needed without a thread. Reentrant, like the other: a signal's handler may start an operation anywhere.
        self._submitting = threading.RLock()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._inbox) + self._begun

    def add(self, ticket: Ticket) -> None:
        """Takes an operation that was started or aborted. From any thread."""
        self._inbox.append(ticket)
        # Read once: another thread may close the client.
        if (thread := self._thread) is None:
            self.empty_inbox()
        elif not self._scheduled:
            self._scheduled = True
            try:
                thread.call(self.empty_inbox)
            except RuntimeError:
                # The thread has ended in between.
                self.empty_inbox()

    def empty_inbox(self) -> None:
        """Hands all operations in the inbox to the session."""
        # First, so that an operation that comes from now on schedules this again.
        self._scheduled = False
        now = time.monotonic()
        with self._submitting:
            while tickets := list(self._inbox):
                with self._counting:
                    # Before they leave the inbox: `wait` must see each of them in one place or the other.
                    self._begun += sum([ticket.state is not State.ABORTED for ticket in tickets])
                for ticket in tickets:
                    self._inbox.popleft()
                    try:
                        self._session.submit(ticket, now)
                    except Exception as error:
                        self._fail_to_begin(ticket, error)
        self._settle()

    def report(self) -> None:
        """Calls the callbacks of the operations that the session has finished."""
        finished = self._session.finished
        count = 0
        # One at a time: if a callback forks, the others are reported before the fork.
        while finished:
            ticket, error = finished.pop(0)
            count += 1
            done, ticket.done = ticket.done, None
            ticket.source = ticket.target = None
            try:
                if done is not None:
                    done(error)
            except Exception:
                _log.exception("the callback of %r failed", ticket)
            ticket.loan = None
        if count:
            with self._counting:
                self._begun -= count
        if self._idle:
            self._idle.wake()

    def wait(self, timeout: float | None) -> bool:
        """Waits until there are none.

        Returns:
            False if there are still some after timeout seconds.
        """
        return self._idle.wait_for(lambda: not (self._inbox or self._begun), timeout)

    def detach(self) -> None:
        """From now on the thread that adds an operation hands it to the session: the client's thread ends."""
        self._thread = None

    def _fail_to_begin(self, ticket: Ticket, error: Exception) -> None:
        _log.error("%r could not be begun", ticket, exc_info=error)
        failure = PsumError(f"{ticket!r} could not be begun: {error!r}; this is a bug, see the log")
        self._session.fail(failure)
        if ticket.state is State.QUEUED:
            # The bug came between the inbox and the session's own queues, so the session did not finish this one.
            self._session.finished.append((ticket, failure))
            ticket.state = State.FINISHED
