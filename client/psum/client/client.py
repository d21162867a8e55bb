"""A client: one worker process in its job."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from psum.client.client_loop import ClientLoop
from psum.client.core.buffers import Memory
from psum.client.core.counters import Counters, Statistics, statistics
from psum.client.core.key import Key
from psum.client.core.load import Load
from psum.client.core.operation import Operation
from psum.client.core.store_numbers import StoreNumber, StoreNumbers
from psum.client.core.ticket import Ticket
from psum.client.elastic.link import Link
from psum.client.elastic.ranked_keys import check_ranks
from psum.client.fleet import Fleet
from psum.client.fork_guard import ForkGuard
from psum.client.lifecycle import Lifecycle
from psum.client.memory import ClientMemory
from psum.client.shared_arrays import Place, Shape, SharedArrays
from psum.client.store import Store
from psum.client.transport.usable_planes import usable_planes
from psum.planes import Block
from psum.wire import ElementType
from psum.wire.errors import ClosedError, FaultError, PsumError


class Client:
    """One worker process in its job. Made by `connect`. All methods may be called from any thread.

    The client lives in a thread of its own, where callbacks of operations run; see ClientLoop.

    Args:
        fleet: The settings of the job and of this worker, and where it connects to.
        staging: Whether it has memory for `allocate`, `empty` and `zeros` that aggregators on its host read from.
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
        self._guard = ForkGuard()
        self._loop = loop = ClientLoop(fleet, self._planes.planes, self._guard)
        self._thread, self._session, self._membership = loop.thread, loop.session, loop.membership
        self._telemetry, self._outstanding = loop.telemetry, loop.outstanding
        self._memory = ClientMemory(settings, staging=self._planes.staging)
        self.arrays = SharedArrays(self._memory, self._shares_memory)
        """The arrays that `empty` and `zeros` made."""
        self.link: Link | None = None
        """What step boundaries need of an elastic job; None in others."""
        if settings.elastic is not None and loop.thread is not None:
            self.link = Link(self, settings, loop.session, loop.thread, loop.settle)
            loop.checks.append(self.link.look_for_candidates)
        self._lifecycle = Lifecycle(self, loop, self._memory, self.arrays)

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
        return self._lifecycle.closed

    @property
    def failure(self) -> PsumError | None:
        """Why no operation can succeed any more; None as long as the job works. From any thread."""
        return self._session.failure

    @property
    def forked(self) -> bool:
        """Whether it belongs to the process that this one was forked from, and cannot be used here."""
        return self._guard.forked

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
        self._guard.check()
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
        self._guard.check()
        if ranks:
            check_ranks(key, ranks, self.settings, self.title)
        if self._lifecycle.closed:
            raise ClosedError("this client was closed; connect again, or close it later")
        return self._session.reserve(store, key, shape, element_type, operation, priority, label, ranks)

    def empty(self, shape: Shape, dtype: object = np.float32) -> npt.NDArray[Any]:
        """Makes an array in memory that aggregators on this host read from: what is pushed from it is not copied.

        It is an ordinary NumPy array, for any keys, also in parts. Its memory is freed with the last array or view that
        uses it. Keep it from step to step, because making it takes longer than one of the same size elsewhere.

        Do not write to what was pushed before the operation's future is done: aggregators read it until then, one that
        was killed and started again too. After that, and also after a failure, it is yours.

        If no aggregator on this host shares memory with this worker, `PSUM_SHM_LIMIT` allows no more, or the array has
        less than 64 KiB, it lies in memory of this process only, and all works as with any other array. The memory
        stays valid after `close`. A forked process may use the array: it sees what its parent writes, until it writes
        itself; its own writes stay its own.

        Args:
            shape: The shape: an integer or a tuple.
            dtype: The type of its elements, which must be one that psum can sum. 'bfloat16' gives uint16.

        Raises:
            TypeError: psum cannot sum such elements.
            ForkedError: The client belongs to the process that this one was forked from.
        """
        self._guard.check()
        return self.arrays.empty(shape, dtype)

    def zeros(self, shape: Shape, dtype: object = np.float32) -> npt.NDArray[Any]:
        """Makes an array like `empty`, whose elements are all 0."""
        self._guard.check()
        return self.arrays.zeros(shape, dtype)

    def place_of(self, memory: Memory) -> Place | None:
        """Returns where aggregators can read a value that lies in an array of `empty` or `zeros`; None if nowhere."""
        return self.arrays.place_of(memory)

    def reserve_again(self, key: Key, priority: int, label: str = "") -> Ticket:
        """Reserves the next round of a key that is for all ranks, with the same shape and type as before."""
        if self._guard.forked or self._lifecycle.closed:
            return self.reserve(key.store, key.key, key.shape, key.element_type, key.operation, priority, label)
        return self._session.reserve_again(key, priority, label)

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
        self._guard.check()
        self.check_may_wait()
        return self._outstanding.wait(timeout)

    @property
    def title(self) -> str:
        """Which worker this is, for people."""
        return f"rank {self.rank} of job {self.settings.job!r}"

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller is in the client's own thread, where the callbacks of operations run."""
        return self._loop.is_current_thread

    def catch_up(self, timeout: float) -> bool:
        """Waits until the client's thread has finished what it is doing, and has released all that it used for it.

        A call in that thread itself hands over the operations that it was given instead.

        Returns:
            False if that took longer than timeout seconds.
        """
        return self._loop.catch_up(timeout) if self.is_current_thread or not self._lifecycle.closed else True

    def fail(self, error: PsumError) -> None:
        """Fails every outstanding operation with this error, and all later ones."""
        if self._thread is None or self.is_current_thread:
            self._loop.fail(error)
        elif not self._lifecycle.closed:
            self._thread.call(lambda: self._loop.fail(error))

    def part(self, fault: FaultError) -> "Future[None] | None":
        """Leaves the job before its work is done. It fails for all ranks, unless this worker took part in no round.

        From any thread and any signal handler, since it takes no lock. The client cannot be used afterwards. Operations
        that are outstanding do not end by it.

        Returns:
            A future that ends when all aggregators have heard of it. None if there is no aggregator to tell.
        """
        return None if self.forked else self._lifecycle.part(fault)

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
        self._lifecycle.close(timeout)

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
        lack = self._planes.lack
        warnings = [*self.settings.warnings(), *(() if lack is None else (lack,))]
        self._lifecycle.join(warnings, waits_for_rank=waits_for_rank)

    def start_with_next(self, start: Callable[[], None]) -> None:
        """Starts an operation together with the next one: they need no more messages than that alone.

        Args:
            start: Starts it. `start_upcoming` calls it too, if there is no next one. It is dropped if the client is
                closed before.
        """
        self._loop.start_with_next(start)

    def start_upcoming(self) -> None:
        """Starts what was to be started with the next operation. From any thread."""
        self._loop.start_upcoming()

    def check_may_wait(self) -> None:
        """Raises RuntimeError in the client's own thread: the results to wait for come through that thread."""
        if self.is_current_thread:
            raise RuntimeError(
                "a callback of an operation called this in psum's own thread, where it would wait for itself. Use the"
                " asynchronous call there, or wait in another thread"
            )

    def _shares_memory(self) -> bool:
        return "shm" in self.planes
