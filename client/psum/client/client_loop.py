"""A client's event loop, and what lives on it: the session, the connections, and the outstanding operations."""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from psum.client import future
from psum.client.core.key_loans import lends_nothing
from psum.client.core.session import Session
from psum.client.core.ticket import Ticket
from psum.client.fleet import Fleet
from psum.client.fork_guard import ForkGuard
from psum.client.membership import Membership
from psum.client.observe.telemetry import Telemetry
from psum.client.outstanding import OutstandingOperations
from psum.client.transport.loop_thread import LoopThread
from psum.planes import GrowingSegment, MappedSums, Plane
from psum.wire.errors import FaultError, PsumError

_log = logging.getLogger(__name__)

#: How often the client looks for operations that wait too long.
_EXPIRY_SECONDS: Final = 0.5

#: The aggregators report a round that waits too long, and for whom. The client gives up by itself only if no report
#: comes either, because an aggregator is stuck.
_EXPIRY_MARGIN_SECONDS = 5.0


class ClientLoop:
    """Connects the session, which decides, with the connections, the outstanding operations and the telemetry.

    Args:
        fleet: The settings of the job and of this worker, and where it connects to.
        planes: The planes to offer to aggregators, the best first.
        guard: Knows the process that may use it.

    Attributes:
        thread: The thread of the event loop. None without aggregators: then each caller's thread does the work.
        session: What decides. Only that thread changes it.
        membership: The connections.
        outstanding: The operations that were not reported as done.
        telemetry: What reports.
        checks: Functions that are called in the thread now and then, with the time.
    """

    def __init__(self, fleet: Fleet, planes: Sequence[Plane], guard: ForkGuard) -> None:
        settings, route = fleet.settings, fleet.route
        self._guard = guard
        self._round_timeout = settings.round_timeout
        self.session = Session(
            settings.aggregators,
            None if fleet.by_roles else settings.weights,
            rank=settings.rank,
            elastic=settings.elastic is not None,
            num_workers=settings.num_workers,
            partition_bytes=settings.shard_bytes,
            credit_bytes=settings.credit_bytes,
            relay=route.relay,
            processes_of=fleet.aggregators,
            keep_sums=settings.keep_sums,
            hand_over=self._hand_over,
            shares_known=lambda shares: self.membership.share_links(shares),
            report_fault=self._report_fault,
            map_pieces=MappedSums.of if settings.elastic is None else lends_nothing,
        )
        self.telemetry = Telemetry(settings, self.session)
        self.thread: LoopThread | None = LoopThread("psum-client") if settings.aggregators else None
        self.outstanding = OutstandingOperations(self.session, self.thread, self.settle)
        self.membership = Membership(
            settings,
            route,
            self.session,
            by_roles=fleet.by_roles,
            planes=planes,
            settle=self.settle,
            fail=self.end,
        )
        self.checks: list[Callable[[float], None]] = []
        self._upcoming: deque[Callable[[], None]] = deque()
        """What is to be started with the next operation."""
        self._expiry: asyncio.Task[None] | None = None

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller is in the thread of the event loop, where the callbacks of operations run."""
        return self.thread is not None and self.thread.is_current

    async def join(self, staging: GrowingSegment | None, *, waits_for_rank: bool) -> None:
        """See Membership.join. From then on operations that wait too long fail."""
        await self.membership.join(staging, waits_for_rank=waits_for_rank)
        self._expiry = asyncio.create_task(self._expire())

    async def leave(self, patience: float) -> None:
        """See Membership.leave. Operations do not fail any more because they wait too long."""
        if self._expiry is not None:
            self._expiry.cancel()
            await asyncio.gather(self._expiry, return_exceptions=True)
        self.session.leaving = True
        await self.membership.leave(patience)

    def start_with_next(self, start: Callable[[], None]) -> None:
        """See Client.start_with_next."""
        self._upcoming.append(start)

    def start_upcoming(self) -> None:
        """Starts what was to be started with the next operation. From any thread."""
        while self._upcoming:
            # Another thread may be faster.
            with contextlib.suppress(IndexError):
                self._upcoming.popleft()()

    def drop_upcoming(self) -> None:
        """Drops what was to be started with the next operation, since there will be none."""
        self._upcoming.clear()

    def catch_up(self, timeout: float) -> bool:
        """See Client.catch_up."""
        if self.is_current_thread:
            self.outstanding.empty_inbox()
        elif self.thread is not None:
            caught_up = threading.Event()
            # RuntimeError: the thread has ended.
            with contextlib.suppress(RuntimeError):
                self.thread.call(caught_up.set)
                return caught_up.wait(timeout)
        return True

    def fail(self, error: PsumError) -> None:
        """Fails every outstanding operation with this error, and all later ones. In the thread, if there is one."""
        self.session.fail(error)
        self.settle()

    def end(self, error: Exception) -> None:
        """Fails every operation, because something has ended without which none can be completed."""
        if not isinstance(error, PsumError):
            _log.error("psum's client failed", exc_info=error)
            error = PsumError(f"psum's client on {self.session.title} failed: {error!r}; this is a bug, see the log")
        self._report_fault(error)
        self.fail(error)

    def settle(self) -> None:
        """Carries out what the session has decided."""
        session = self.session
        if isinstance(session.failure, FaultError) and session.failure.key is None:
            # Before the program hears of the failure: it may then close the client in order.
            self.membership.pass_on(session.failure)
        # Before the operations are reported: their memory is the caller's then.
        if recalled := session.take_recalled():
            self.membership.recall(recalled)
        if session.notices:
            notices, session.notices = session.notices, []
            for text in notices:
                _log.warning("%s", text)
        if session.joins.changed or session.failure is not None:
            session.joins.changed = False
            future.wake()
        self.outstanding.report()
        for connection in self.membership.connections:
            connection.wake()

    async def _expire(self) -> None:
        """Fails operations that wait too long, and writes the timeline when its last step is over."""
        try:
            while True:
                await asyncio.sleep(_EXPIRY_SECONDS)
                now = time.monotonic()
                self.session.expire(self._round_timeout + _EXPIRY_MARGIN_SECONDS, now)
                for check in self.checks:
                    check(now)
                self.settle()
                if self.telemetry.is_timeline_due:
                    await asyncio.to_thread(self.telemetry.write_timeline)
        except Exception as error:
            self.end(error)

    def _hand_over(self, ticket: Ticket) -> None:
        self._guard.check()
        if self._upcoming:
            self.start_upcoming()
        self.outstanding.add(ticket)

    def _report_fault(self, error: BaseException) -> None:
        self.telemetry.report_fault(error)
