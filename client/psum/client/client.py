"""A worker's membership in its job."""

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from psum.client import exit_status, termination
from psum.client.core.counters import Counters, Statistics, statistics
from psum.client.core.operation import Operation
from psum.client.core.session import Load, Session
from psum.client.core.store_numbers import StoreNumber, StoreNumbers
from psum.client.core.ticket import State, Ticket
from psum.client.joining import join
from psum.client.observe import process_name
from psum.client.observe.exporter import Exporter
from psum.client.observe.fault_report import write_report
from psum.client.observe.logging import set_up_logging
from psum.client.observe.timeline import Timeline
from psum.client.settings import Settings, next_port
from psum.client.store import Store
from psum.client.transport.connection import AggregatorConnection
from psum.client.transport.credentials import Credentials
from psum.client.transport.loop_thread import LoopThread
from psum.client.transport.plane_offers import PlaneOffers
from psum.client.transport.usable_planes import usable_planes
from psum.planes import Block, GrowingSegment, SegmentError
from psum.runtime import Waiters, keep_large_blocks
from psum.v1 import aggregator_pb2 as pb
from psum.wire import PROTOCOL_VERSION, ElementType
from psum.wire.errors import ClosedError, FaultError, ForkedError, PsumError

_log = logging.getLogger(__name__)

#: How often operations that wait too long are looked for.
_EXPIRY_SECONDS = 0.5

#: The aggregators report a round that waits too long, and for whom, themselves. Only when that does not come either,
#: because an aggregator is stuck, does the client give up by itself.
_EXPIRY_MARGIN_SECONDS = 5.0


class Client:
    """One worker process in its job. Made by `connect`; its methods may be called from any thread.

    Args:
        settings: Those of the job and of this worker.
        staging: Whether `allocate` is to be of use.
        numbering: Where its stores get their numbers; None: they count from 0.

    Attributes:
        settings: What it was made with.
        numbering: Where its stores get their numbers.

    Raises:
        ConnectError: This process may have too few file descriptors.
    """

    def __init__(self, settings: Settings, *, staging: bool = False, numbering: StoreNumbers | None = None) -> None:
        self._planes = usable_planes(settings, staging=staging)
        self.settings = settings
        self.numbering = numbering or StoreNumbers()
        self._wants_staging = staging
        self._staging: GrowingSegment | None = None
        self._pid = process_name.pid
        self._incarnation = secrets.randbits(64)
        self._session = Session(
            settings.aggregators,
            settings.weights,
            rank=settings.rank,
            partition_bytes=settings.partition_bytes,
            credit_bytes=settings.credit_bytes,
            keep_sums=settings.keep_sums,
            hand_over=self._hand_over,
            report_fault=self._report_fault,
        )
        self._timeline: Timeline | None = None
        self._inbox: deque[Ticket] = deque()
        self._scheduled = False
        """Whether the client's thread will look into the inbox."""
        self._outstanding = 0
        """Operations that were started, have left the inbox, and were not reported as done."""
        self._counting = threading.RLock()
        """Held while that number is changed."""
        self._idle = Waiters()
        self._submitting = threading.RLock()
        """Held while the session is changed; only of use where there is no thread that alone may do so."""
        # Reentrant, since a signal's handler may close the client where the main thread does that already.
        self._closing = threading.RLock()
        self._is_closing = False
        self._closed = False
        self._exporter: Exporter | None = None
        self._links: list[AggregatorConnection] = []
        self._parting = False
        """Whether it leaves the job before its work is done."""
        self._tasks: list[asyncio.Task[None]] = []
        self._thread: LoopThread | None = LoopThread("psum-client") if settings.aggregators else None

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
    def planes(self) -> tuple[str, ...]:
        """How large payloads cross to each aggregator, as agreed with it: 'shm', 'direct' or 'inline'."""
        return tuple(link.plane_name for link in self._links if link.plane_name)

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
        """Where its metrics can be scraped, empty where that was not asked for."""
        return self._exporter.address if self._exporter is not None else ""

    @property
    def counters(self) -> Counters:
        """What it counts."""
        return self._session.counters

    def statistics(self) -> Statistics:
        """What it did until now: how long operations took and where that time went, bytes, stalls and failures."""
        return statistics(self.counters, len(self._inbox) + self._outstanding)

    def load(self) -> Load:
        """What is under way now."""
        return self._session.load()

    def store(self, number: StoreNumber | None = None) -> Store:
        """A new namespace of keys. All ranks must create theirs in the same order.

        Args:
            number: What `reserve_store` gave where the program made the store; None: it is made now. A number of
                another client, which was closed since, counts for nothing here.
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
    ) -> Ticket:
        """See Store.reserve."""
        self._check_process()
        if self._closed:
            raise ClosedError("this client was closed; connect again, or close it later")
        return self._session.reserve(store, key, shape, element_type, operation, priority, label)

    def allocate(self, size: int) -> Block | None:
        """Memory that aggregators on this host read from: what is pushed from it need not be copied.

        For buffers that are reused, since it is never given back; to be named to Ticket.start. What was pushed from it
        must not be changed after the operation has failed either: an aggregator may yet sum it, for other ranks.

        Args:
            size: How many bytes.

        Returns:
            The memory, None where there is none: the client was not made with staging, or no memory is shared.
        """
        return self._staging.allocate(size) if self._staging is not None and size else None

    def drain(self, timeout: float | None = None) -> bool:
        """Waits until no operation is outstanding; returns False where that took longer than timeout seconds.

        Raises:
            RuntimeError: It is called in a callback of an operation, which would wait for itself.
        """
        self._check_process()
        self.check_may_wait()
        return self._idle.wait_for(lambda: not (self._inbox or self._outstanding), timeout)

    @property
    def title(self) -> str:
        """Which worker this is, for people."""
        return f"rank {self.rank} of job {self.settings.job!r}"

    @property
    def is_current_thread(self) -> bool:
        """Whether this is psum's own thread, in which the callbacks of operations run."""
        return self._thread is not None and self._thread.is_current

    def catch_up(self, timeout: float) -> bool:
        """Waits until psum's own thread is done with what it does now, and has let go of all that it used for it.

        In that thread itself, what was handed over to it is seen to instead.

        Returns:
            False where that took longer than timeout seconds.
        """
        if self.is_current_thread:
            self._look_into_inbox()
        elif self._thread is not None and not self._closed:
            caught_up = threading.Event()
            with contextlib.suppress(RuntimeError):
                self._thread.call(caught_up.set)
                return caught_up.wait(timeout)
            # The thread has ended in between.
        return True

    def fail(self, error: PsumError) -> None:
        """Ends every outstanding operation with this error, and makes all that come fail with it."""
        if self._thread is None:
            self._session.fail(error)
            self._report()
        elif self.is_current_thread:
            self._fail_now(error)
        elif not self._closed:
            self._thread.call(lambda: self._fail_now(error))

    def part(self, fault: FaultError) -> "Future[None] | None":
        """Leaves the job at once, before its work is done: it fails with this, for all ranks, unless this worker has
        taken part in nothing yet. From any thread and any handler of a signal, since it takes no lock.

        The client is of no use any more after it. What is under way does not end by it.

        Returns:
            What is done when all aggregators have heard of it, None where there are none.
        """
        if self._thread is None or self._closed or process_name.pid != self._pid:
            return None
        return asyncio.run_coroutine_threadsafe(self._part(fault), self._thread.loop)

    def close(self, timeout: float = 5.0) -> None:
        """Leaves the job: waits for outstanding operations, says goodbye, and ends the background thread.

        Operations that are outstanding after timeout seconds fail with ClosedError. A second call does nothing, and so
        does one in a signal's handler that interrupted the first.

        Raises:
            RuntimeError: It is called in a callback of an operation, which would wait for itself.
        """
        if process_name.pid != self._pid:
            return
        self.check_may_wait()
        with self._closing:
            if self._closed or self._is_closing:
                return
            self._is_closing = True
            try:
                self._close(timeout)
            finally:
                self._is_closing = False

    def _close(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self.drain(timeout)
        try:
            if self._thread is not None:
                try:
                    self._thread.run(self._leave(max(0.5, deadline - time.monotonic())), timeout + 5)
                finally:
                    self._closed = True
                    self._thread.stop()
        finally:
            # However the leaving ended: nobody else would complete what is outstanding.
            self._closed = True
            termination.forget(self)
            if self._exporter is not None:
                self._exporter.close()
            if self._staging is not None:
                self._staging.close()
            self._session.fail(ClosedError("the client was closed before the operation was complete"))
            # What was handed over after the thread looked for the last time.
            self._look_into_inbox()
            self._write_timeline()

    def connect(self, *, waits_for_rank: bool = True) -> None:
        """Joins the job at every aggregator. Called once, by `connect`.

        Args:
            waits_for_rank: Whether to wait where another process has the rank, which may be about to end.

        Raises:
            ConnectError: An aggregator could not be reached in time, or one side does not trust the other.
            FaultError: An aggregator refused this worker.
            ConfigurationError: A file for TLS or the token's cannot be used, or metrics are asked for and what they
                need is not installed.
        """
        set_up_logging(self.settings)
        # From here on: also while it joins.
        termination.watch(self)
        for text in self.settings.warnings():
            _log.warning("%s", text)
        if self._planes.lack is not None:
            _log.warning("%s", self._planes.lack)
        if self.settings.trace_dir:
            self._timeline = Timeline(self.settings)
            self._session.recorder = self._timeline.recorder
        try:
            if self.settings.metrics_port:
                self._exporter = Exporter(self, next_port(self.settings.metrics_port, self.settings.local_rank))
            if self._thread is not None:
                keep_large_blocks(one_arena=False)
                if self._wants_staging and self._planes.shares_memory:
                    with contextlib.suppress(SegmentError):
                        self._staging = GrowingSegment(
                            self.settings.shm_directory, _warn_of_copies, self.settings.shm_limit
                        )
                self._thread.run(self._connect(waits=waits_for_rank))
        except BaseException as error:
            self._report_fault(error)
            self._closed = True
            termination.forget(self)
            if self._thread is not None:
                self._thread.stop()
            if self._exporter is not None:
                self._exporter.close()
            if self._staging is not None:
                self._staging.close()
            raise

    def _report_fault(self, error: BaseException) -> None:
        if isinstance(error, FaultError):
            exit_status.note(error, self.rank)
            if self.settings.fault_file:
                write_report(error, self.settings.fault_file)

    async def _connect(self, *, waits: bool) -> None:
        settings = self.settings
        credentials = Credentials.of(settings)
        credentials.check()
        planes = PlaneOffers(settings, self._planes.planes, self._staging)

        def make() -> list[AggregatorConnection]:
            self._incarnation = secrets.randbits(64)
            self._links = [
                AggregatorConnection(
                    index,
                    address,
                    self._session,
                    credentials=credentials,
                    keepalive=settings.keepalive,
                    hello=self._hello,
                    planes=planes,
                    settle=self._settle,
                )
                for index, address in enumerate(settings.aggregators)
            ]
            return self._links

        try:
            await join(make, settings, waits=waits)
        except BaseException:
            self._links = []
            raise
        if self._parting:
            # The process ends, and nothing begins any more.
            await asyncio.Event().wait()
        self._tasks = [asyncio.create_task(self._guard(self._run(link))) for link in self._links]
        self._tasks.append(asyncio.create_task(self._guard(self._expire())))

    def _hello(self, aggregator: int, resuming: bool) -> pb.Hello:
        settings = self.settings
        return pb.Hello(
            protocol_version=PROTOCOL_VERSION,
            job=settings.job,
            rank=settings.rank,
            num_workers=settings.num_workers,
            incarnation=self._incarnation,
            partition_bytes=settings.partition_bytes,
            aggregators=settings.aggregators,
            weights=settings.weights,
            aggregator_index=aggregator,
            worker=process_name.name(),
            age_seconds=process_name.age_seconds(),
            resuming=resuming,
        )

    async def _run(self, link: AggregatorConnection) -> None:
        try:
            await link.run(self.settings.reconnect_timeout)
        finally:
            await link.abandon()

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Ends every operation where some work ends that should not: nobody would complete them any more."""
        try:
            await work
        except PsumError as error:
            self._report_fault(error)
            self._fail_now(error)
        except Exception as error:
            _log.exception("psum's client failed")
            self._fail_now(
                PsumError(f"psum's client on rank {self.rank} failed: {error!r}; this is a bug, see the log")
            )

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRY_SECONDS)
            self._session.expire(self.settings.round_timeout + _EXPIRY_MARGIN_SECONDS, time.monotonic())
            self._settle()
            if (recorder := self._session.recorder) is not None and recorder.over:
                await asyncio.to_thread(self._write_timeline)

    def _write_timeline(self) -> None:
        if self._timeline is not None:
            self._session.recorder = None
            self._timeline.write()

    async def _part(self, fault: FaultError) -> None:
        goodbye = pb.Goodbye(fault=fault.to_message(), replaceable=not self._session.took_part)
        self._parting = True
        for link in self._links:
            link.part(goodbye)
        await asyncio.gather(*(link.parted() for link in self._links), return_exceptions=True)

    async def _leave(self, patience: float) -> None:
        *running, expiry = self._tasks
        expiry.cancel()
        for link in self._links:
            await link.leave()
        if running:
            await asyncio.wait(running, timeout=patience)
        for link in self._links:
            await link.abandon()
        for task in running:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _fail_now(self, error: PsumError) -> None:
        self._session.fail(error)
        self._settle()

    def _pass_on(self) -> None:
        """What has ended the job at one aggregator ends it at the others too. Else those would know a job that is in
        progress, in which a process that comes in the place of another could be let in."""
        fault = self._session.failure
        if isinstance(fault, FaultError) and fault.key is None:
            for link in self._links:
                link.part(pb.Goodbye(fault=fault.to_message()))

    def _hand_over(self, ticket: Ticket) -> None:
        self._check_process()
        self._inbox.append(ticket)
        if self._thread is None or self._closed:
            self._look_into_inbox()
        elif not self._scheduled:
            self._scheduled = True
            try:
                self._thread.call(self._look_into_inbox)
            except RuntimeError:
                # The thread ended in between.
                self._look_into_inbox()

    def _look_into_inbox(self) -> None:
        # Before the inbox is looked into: what comes after that is announced anew.
        self._scheduled = False
        now = time.monotonic()
        with self._submitting:
            while tickets := list(self._inbox):
                with self._counting:
                    # Before they are taken out: whoever waits for the last one sees them here or there.
                    self._outstanding += sum([ticket.state is not State.ABORTED for ticket in tickets])
                for ticket in tickets:
                    self._inbox.popleft()
                    try:
                        self._session.submit(ticket, now)
                    except Exception as error:
                        self._not_begun(ticket, error)
        self._settle()

    def _not_begun(self, ticket: Ticket, error: Exception) -> None:
        _log.error("%r could not be begun", ticket, exc_info=error)
        failure = PsumError(f"{ticket!r} could not be begun: {error!r}; this is a bug, see the log")
        self._session.fail(failure)
        if ticket.state is State.QUEUED:
            # It was no longer where the session would have found it, and not yet where it would.
            self._session.finished.append((ticket, failure))
            ticket.state = State.FINISHED

    def _settle(self) -> None:
        if self._session.failure is not None:
            # Before the program hears of it, which may close the client in good order then.
            self._pass_on()
        self._report()
        for link in self._links:
            link.wake()

    def _report(self) -> None:
        recalled = self._session.take_recalled()
        for link in self._links:
            if link.index in recalled:
                link.recall()
        notices, self._session.notices = self._session.notices, []
        for text in notices:
            _log.warning("%s", text)
        count = 0
        # One by one: a callback that forks has the others reported before that.
        while self._session.finished:
            ticket, error = self._session.finished.pop(0)
            count += 1
            done, ticket.done = ticket.done, None
            ticket.source = ticket.target = None
            try:
                if done is not None:
                    done(error)
            except Exception:
                _log.exception("the callback of %r failed", ticket)
        if count:
            with self._counting:
                self._outstanding -= count
        if self._idle:
            self._idle.wake()

    def check_may_wait(self) -> None:
        """Raises RuntimeError in psum's own thread, without which nothing would come that could be waited for."""
        if self.is_current_thread:
            raise RuntimeError(
                "this is called where an operation's callback runs, in psum's own thread; what it waits for could never"
                " come. Use the asynchronous call there, or wait in another thread"
            )

    def _check_process(self) -> None:
        if process_name.pid != self._pid:
            raise ForkedError(
                f"this process was forked from pid {self._pid}, whose psum client it cannot use: the connections stay"
                " with the parent. Use the store in the parent only, or start workers as processes of their own"
            )


def _warn_of_copies(error: SegmentError) -> None:
    _log.warning("what is pushed from further buffers is copied once more: %s", error)
