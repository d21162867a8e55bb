"""A client: one worker process in its job."""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, Self

from psum.client import future, termination
from psum.client.core.counters import Counters, Statistics, statistics
from psum.client.core.key import Key
from psum.client.core.load import Load
from psum.client.core.operation import Operation
from psum.client.core.session import Session
from psum.client.core.store_numbers import StoreNumber, StoreNumbers
from psum.client.core.ticket import Ticket
from psum.client.elastic.link import Link
from psum.client.fleet import Fleet
from psum.client.membership import Membership
from psum.client.memory import ClientMemory
from psum.client.observe import process_name
from psum.client.observe.telemetry import Telemetry
from psum.client.outstanding import OutstandingOperations
from psum.client.store import Store
from psum.client.transport.loop_thread import LoopThread
from psum.client.transport.usable_planes import usable_planes
from psum.planes import Block, MappedSums
from psum.runtime import keep_large_blocks
from psum.wire import ElementType
from psum.wire.errors import ClosedError, FaultError, ForkedError, InvalidError, PsumError

_log = logging.getLogger(__name__)

#: How often the client looks for operations that wait too long.
_EXPIRY_SECONDS: Final = 0.5

#: The aggregators report a round that waits too long, and for whom. The client gives up by itself only if no report
#: comes either, because an aggregator is stuck.
_EXPIRY_MARGIN_SECONDS = 5.0

#: How much longer than its timeout `close` waits for the client's thread.
_CLOSE_MARGIN_SECONDS: Final = 5.0

#: The least time that the aggregators get to answer a goodbye.
_LEAST_LEAVE_SECONDS: Final = 0.5


def _lends_nothing(pieces: Sequence[memoryview]) -> None:
    """Maps no results, so that none is lent: aggregators do not wait for a lost rank before they reuse the memory.

    Such a rank may live, and must not see a sum change.
    """


class Client:
    """One worker process in its job. Made by `connect`. All methods may be called from any thread.

    The client lives in a thread of its own, where callbacks of operations run. It is made of four parts: the session
    decides, the membership holds the connections, the outstanding operations wait for their results, and the telemetry
    reports.

    Args:
        fleet: The settings of the job and of this worker, and where it connects to.
        staging: Whether `allocate` gives memory.
        numbering: What numbers its stores. None: they count from 0.

    Attributes:
        settings: Its settings, with all processes of the aggregators.
        numbering: What numbers its stores.

    Raises:
        ConnectError: This process may have too few file descriptors.
    """

    def __init__(self, fleet: Fleet, *, staging: bool = False, numbering: StoreNumbers | None = None) -> None:
        settings, route = fleet.settings, fleet.route
        self._planes = usable_planes(settings, route.connections, staging=staging, before=fleet.descriptors_before)
        self.settings = settings
        self.numbering = numbering or StoreNumbers()
        self._pid = process_name.pid
        self._session = Session(
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
            shares_known=lambda shares: self._membership.share_links(shares),
            report_fault=self._report_fault,
            map_pieces=_lends_nothing if self.elastic else MappedSums.of,
        )
        self._telemetry = Telemetry(settings, self._session)
        self._memory = ClientMemory(settings, shared=self._planes.shares_memory, staging=staging)
        self._thread: LoopThread | None = LoopThread("psum-client") if settings.aggregators else None
        self._outstanding = OutstandingOperations(self._session, self._thread, self._settle)
        self._membership = Membership(
            settings,
            route,
            self._session,
            by_roles=fleet.by_roles,
            planes=self._planes.planes,
            settle=self._settle,
            fail=self._end,
        )
        self.link: Link | None = None
        """What step boundaries need of an elastic job; None in others."""
        if settings.elastic is not None and self._thread is not None:
            self.link = Link(self, settings, self._session, self._thread, self._settle)
        self._upcoming: deque[Callable[[], None]] = deque()
        """What is to be started with the next operation."""
        self._expiry: asyncio.Task[None] | None = None
        # Reentrant: a signal's handler may close the client while the main thread does so.
        self._closing = threading.RLock()
        self._is_closing = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<Client job={self.settings.job!r} rank={self.rank}/{self.num_workers} {self._session!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it has left the job."""
        return self._closed

    @property
    def failure(self) -> PsumError | None:
        """Why no operation can succeed any more; None as long as the job works. From any thread."""
        return self._session.failure

    @property
    def forked(self) -> bool:
        """Whether it belongs to the process that this one was forked from, and cannot be used here."""
        return process_name.pid != self._pid

    @property
    def rank(self) -> int:
        """This worker's rank, from 0."""
        return self.settings.rank

    @property
    def num_workers(self) -> int:
        """The number of worker processes of the job."""
        return self.settings.num_workers

    @property
    def elastic(self) -> bool:
        """Whether the job goes on when workers are lost. `num_workers` is then its nominal size."""
        return self.settings.elastic is not None

    @property
    def incarnation(self) -> int:
        """The number of this process, by which aggregators know it again."""
        return self._membership.incarnation

    @property
    def waits_for_admission(self) -> bool:
        """Whether it waits to be let into a running elastic job. Operations are complete without the others then."""
        return self._membership.waits_for_admission

    @property
    def planes(self) -> tuple[str, ...]:
        """The plane that was agreed on for large payloads with each aggregator, or with the relay that stands for all:
        'shm', 'direct' or 'inline'."""
        return self._membership.planes

    @property
    def local_rank(self) -> int:
        """This worker's rank among those on its node."""
        return self.settings.local_rank

    @property
    def local_size(self) -> int:
        """The number of workers on this node."""
        return self.settings.local_size

    @property
    def metrics_address(self) -> str:
        """Where its metrics can be scraped; empty if the settings do not ask for them."""
        return self._telemetry.metrics_address

    @property
    def counters(self) -> Counters:
        """What the client counts."""
        return self._session.counters

    def statistics(self) -> Statistics:
        """What the client has done: how long operations took and where that time went, bytes, stalls and failures."""
        return statistics(self.counters, self._outstanding.count)

    def load(self) -> Load:
        """What is under way now."""
        return self._session.load()

    def store(self, number: StoreNumber | None = None) -> Store:
        """Makes a namespace of keys. All ranks must make theirs in the same order.

        Args:
            number: The number that `reserve_store` gave when the program made the store. None: the next number. A
                number from a client that was closed since counts as None.
        """
        self._check_process()
        if number is None or number.numbering is not self.numbering:
            number = self.numbering.next()
        return Store(self, number.value)

    def reserve(
        self,
        store: int,
        key: str,
        shape: tuple[int, ...],
        element_type: ElementType,
        operation: Operation,
        priority: int,
        label: str = "",
        ranks: tuple[int, ...] = (),
    ) -> Ticket:
        """See Store.reserve. `ranks` are those that use the key, in an elastic job; none if all do."""
        self._check_process()
        if ranks:
            self._check_ranks(key, ranks)
        if self._closed:
            raise ClosedError("this client was closed; connect again, or close it later")
        return self._session.reserve(store, key, shape, element_type, operation, priority, label, ranks)

    def reserve_again(self, key: Key, priority: int) -> Ticket:
        """Reserves the next round of a key as the last one was reserved."""
        if process_name.pid != self._pid or self._closed:
            return self.reserve(key.store, key.key, key.shape, key.element_type, key.operation, priority)
        return self._session.reserve_again(key, priority)

    def allocate(self, size: int) -> Block | None:
        """Allocates memory that aggregators on this host read from: what is pushed from it need not be copied.

        Use it for buffers that are reused, because allocating takes time. Pass its place to Ticket.start. Do not change
        what was pushed from it after the operation has failed: an aggregator may still sum it for other ranks.

        Args:
            size: The number of bytes.

        Returns:
            The memory. None if the client was made without staging, or no memory is shared.
        """
        return self._memory.allocate(size)

    def free(self, offset: int, size: int) -> None:
        """Frees memory that `allocate` gave, for other uses. From any thread and any finalizer.

        Never free memory from which an operation was started that is not done, or that has failed: an aggregator may
        still read it. A process that was forked from the client's frees nothing.

        Args:
            offset: The block's offset.
            size: Its size, as it was allocated.
        """
        if not self.forked:
            self._memory.free(offset, size)

    def room(self, size: int) -> AbstractContextManager[str | None]:
        """Says whether others may take so many bytes of /dev/shm, and meanwhile keeps psum from taking more there.

        A process that writes to a full /dev/shm is killed, so ask before a library writes there.

        Returns:
            A context. It gives None, or why they may not: it would be fuller than PSUM_SHM_LIMIT allows.

        Raises:
            OSError: There is no /dev/shm.
        """
        return self._memory.room(size)

    def drain(self, timeout: float | None = None) -> bool:
        """Waits until no operation is outstanding.

        Returns:
            False if some still are after timeout seconds.

        Raises:
            RuntimeError: A callback of an operation called this. It would wait for itself.
        """
        self._check_process()
        self.check_may_wait()
        return self._outstanding.wait(timeout)

    @property
    def title(self) -> str:
        """Which worker this is, for people."""
        return f"rank {self.rank} of job {self.settings.job!r}"

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller is in the client's own thread, where the callbacks of operations run."""
        return self._thread is not None and self._thread.is_current

    def catch_up(self, timeout: float) -> bool:
        """Waits until the client's thread has finished what it is doing, and has released all that it used for it.

        A call in that thread itself hands over the operations that it was given instead.

        Returns:
            False if that took longer than timeout seconds.
        """
        if self.is_current_thread:
            self._outstanding.empty_inbox()
        elif self._thread is not None and not self._closed:
            caught_up = threading.Event()
            # RuntimeError: the thread has ended in between.
            with contextlib.suppress(RuntimeError):
                self._thread.call(caught_up.set)
                return caught_up.wait(timeout)
        return True

    def fail(self, error: PsumError) -> None:
        """Fails every outstanding operation with this error, and all later ones."""
        if self._thread is None or self.is_current_thread:
            self._fail_now(error)
        elif not self._closed:
            self._thread.call(lambda: self._fail_now(error))

    def part(self, fault: FaultError) -> "Future[None] | None":
        """Leaves the job before its work is done. It fails for all ranks, unless this worker took part in no round.

        From any thread and any signal handler, since it takes no lock. The client cannot be used afterwards. Operations
        that are outstanding do not end by it.

        Returns:
            A future that ends when all aggregators have heard of it. None if there is no aggregator to tell.
        """
        if self._thread is None or self._closed or self.forked:
            return None
        self._memory.unlink()
        return asyncio.run_coroutine_threadsafe(self._membership.leave_early(fault), self._thread.loop)

    def close(self, timeout: float = 5.0) -> None:
        """Leaves the job: waits for outstanding operations, says goodbye, and ends the background thread.

        Operations that are still outstanding after timeout seconds fail with ClosedError. A second call does nothing,
        nor does a call in a signal's handler that has interrupted the first.

        Raises:
            RuntimeError: A callback of an operation called this. It would wait for itself.
        """
        if self.forked:
            return
        self.check_may_wait()
        with self._closing:
            if self._closed or self._is_closing:
                return
            self._is_closing = True
            # The others may begin it much later, or never.
            self._upcoming.clear()
            try:
                self._close(timeout)
            finally:
                self._is_closing = False

    def connect(self, *, waits_for_rank: bool = True) -> None:
        """Joins the job at every aggregator, or at its relay. `connect` of this package calls it once.

        Args:
            waits_for_rank: Whether to wait while another process has the rank, which may be about to end.

        Raises:
            ConnectError: An aggregator was not reached in time, or one side does not trust the other.
            FaultError: An aggregator refused this worker.
            ConfigurationError: A file for TLS or the token file cannot be used, or the settings ask for metrics and the
                library for them is not installed.
        """
        self._telemetry.set_up()
        # SIGTERM must be handled while the worker joins too.
        termination.watch(self)
        for text in self.settings.warnings():
            _log.warning("%s", text)
        if self._planes.lack is not None:
            _log.warning("%s", self._planes.lack)
        try:
            self._telemetry.serve_metrics()
            if self._thread is not None:
                keep_large_blocks(one_arena=False)
                self._memory.open()
                self._thread.run(self._join(waits_for_rank=waits_for_rank))
        except BaseException as error:
            self._report_fault(error)
            self._detach()
            if self._thread is not None:
                self._thread.stop()
            self._telemetry.close()
            self._memory.close()
            raise

    def start_with_next(self, start: Callable[[], None]) -> None:
        """Starts an operation together with the next one: they need no more messages than that alone.

        Args:
            start: Starts it. `start_upcoming` calls it too, if there is no next one. It is dropped if the client is
                closed before.
        """
        self._upcoming.append(start)

    def start_upcoming(self) -> None:
        """Starts what was to be started with the next operation. From any thread."""
        while self._upcoming:
            # Another thread may be faster.
            with contextlib.suppress(IndexError):
                self._upcoming.popleft()()

    def check_may_wait(self) -> None:
        """Raises RuntimeError in the client's own thread: the results to wait for come through that thread."""
        if self.is_current_thread:
            raise RuntimeError(
                "a callback of an operation called this in psum's own thread, where it would wait for itself. Use the"
                " asynchronous call there, or wait in another thread"
            )

    async def _join(self, *, waits_for_rank: bool) -> None:
        await self._membership.join(self._memory.staging, waits_for_rank=waits_for_rank)
        self._expiry = asyncio.create_task(self._expire())

    async def _leave(self, patience: float) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            await asyncio.gather(self._expiry, return_exceptions=True)
        self._session.leaving = True
        await self._membership.leave(patience)

    async def _expire(self) -> None:
        """Fails operations that wait too long, and writes the timeline when its last step is over. In an elastic job,
        warns of candidates that wait in vain."""
        try:
            while True:
                await asyncio.sleep(_EXPIRY_SECONDS)
                now = time.monotonic()
                self._session.expire(self.settings.round_timeout + _EXPIRY_MARGIN_SECONDS, now)
                if self.link is not None:
                    self.link.look_for_candidates(now)
                self._settle()
                if self._telemetry.is_timeline_due:
                    await asyncio.to_thread(self._telemetry.write_timeline)
        except Exception as error:
            self._end(error)

    def _close(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self.drain(timeout)
        try:
            if self._thread is not None:
                try:
                    patience = max(_LEAST_LEAVE_SECONDS, deadline - time.monotonic())
                    self._thread.run(self._leave(patience), timeout + _CLOSE_MARGIN_SECONDS)
                finally:
                    self._detach()
                    self._thread.stop()
        finally:
            # Even if leaving failed: nobody else would complete the outstanding operations.
            self._detach()
            self._telemetry.close()
            self._memory.close()
            self._session.fail(ClosedError("the client was closed before the operation was complete"))
            # Operations that came after the thread had emptied the inbox for the last time.
            self._outstanding.empty_inbox()
            self._telemetry.write_timeline()

    def _detach(self) -> None:
        """From now on nothing is left to the thread."""
        self._closed = True
        termination.forget(self)
        self._outstanding.detach()

    def _end(self, error: Exception) -> None:
        """Fails every operation, because something has ended without which none can be completed."""
        if not isinstance(error, PsumError):
            _log.error("psum's client failed", exc_info=error)
            error = PsumError(f"psum's client on rank {self.rank} failed: {error!r}; this is a bug, see the log")
        self._report_fault(error)
        self._fail_now(error)

    def _fail_now(self, error: PsumError) -> None:
        self._session.fail(error)
        self._settle()

    def _report_fault(self, error: BaseException) -> None:
        self._telemetry.report_fault(error)

    def _hand_over(self, ticket: Ticket) -> None:
        if process_name.pid != self._pid:
            raise self._forked_error()
        if self._upcoming:
            self.start_upcoming()
        self._outstanding.add(ticket)

    def _settle(self) -> None:
        """Carries out what the session has decided."""
        session = self._session
        if isinstance(session.failure, FaultError) and session.failure.key is None:
            # Before the program hears of the failure: it may then close the client in order.
            self._membership.pass_on(session.failure)
        # Before the operations are reported: their memory is the caller's then.
        if recalled := session.take_recalled():
            self._membership.recall(recalled)
        if session.notices:
            notices, session.notices = session.notices, []
            for text in notices:
                _log.warning("%s", text)
        if session.joins.changed or session.failure is not None:
            session.joins.changed = False
            future.wake()
        self._outstanding.report()
        for connection in self._membership.connections:
            connection.wake()

    def _check_ranks(self, key: str, ranks: tuple[int, ...]) -> None:
        """Checks the ranks of a key that is not for all ranks. An aggregator would end the stream for wrong ones."""
        elastic = self.settings.elastic
        if elastic is None:
            raise InvalidError(
                f"key {key!r} is for the ranks {list(ranks)} only, and {self.title} is in a job that is not elastic"
                " (PSUM_ELASTIC), in which each rank uses each key"
            )
        if (
            self.rank not in ranks
            or len(set(ranks)) != len(ranks)
            or not 0 <= min(ranks) <= max(ranks) < elastic.maximum
        ):
            raise ValueError(
                f"key {key!r} is for the ranks {list(ranks)}; expected each rank once, from 0 to {elastic.maximum - 1},"
                f" with rank {self.rank}, which is this one"
            )

    def _check_process(self) -> None:
        if process_name.pid != self._pid:
            raise self._forked_error()

    def _forked_error(self) -> ForkedError:
        return ForkedError(
            f"this process was forked from pid {self._pid} and cannot use that process's psum client: the connections"
            " stay with the parent. Use the store in the parent only, or start workers as processes of their own"
        )
