"""What a step boundary needs of the client: sums of the roll call, admissions, and losses. From any thread."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

import numpy as np

from psum.client.core.buffers import Memory
from psum.client.core.key import Key
from psum.client.core.operation import Operation
from psum.client.core.roll_call import COLUMNS, Process, Row, Table, contribution
from psum.client.core.session import Session
from psum.client.core.store_numbers import INTERNAL, STEERING
from psum.client.core.ticket import Ticket
from psum.client.future import Outcome, wait_for
from psum.client.reserving import Reserving
from psum.client.settings import Settings
from psum.client.transport.loop_thread import LoopThread
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ElementType
from psum.wire.errors import RoundTimeoutError

T = TypeVar("T")

_log = logging.getLogger(__name__)

#: The name of the roll call's key.
NAME: Final = "roll call"

#: Before everything that a program pushes, and after the agreement on weights.
_PRIORITY: Final = (1 << 63) - 2

#: How long processes may wait to join a job whose program has had no boundary until it is warned.
_UNATTENDED_SECONDS: Final = 20.0

#: How long a process waits for its admission until it says so again.
_REMINDER_SECONDS: Final = 30.0


class Owner(Reserving, Protocol):
    """What a link needs of the client that owns it."""

    @property
    def incarnation(self) -> int:
        """The number of this process at its aggregators."""

    @property
    def waits_for_admission(self) -> bool:
        """Whether this process waits until the members of a running job let it in."""

    @property
    def title(self) -> str:
        """Which worker this is, for people."""

    def start_with_next(self, start: Callable[[], None]) -> None:
        """Starts an operation together with the next one."""

    def start_upcoming(self) -> None:
        """Starts what was to be started with the next operation."""


class RollCall:
    """A roll call that has begun, or is about to.

    Args:
        owner: The client.
        ticket: The operation.
        row: What this rank contributes: a table that nobody writes to.
        table: Holds the sum then.
    """

    __slots__ = ("_future", "_owner", "_row", "_table", "_ticket")

    def __init__(self, owner: Owner, ticket: Ticket, row: Table, table: Table) -> None:
        self._owner = owner
        self._ticket = ticket
        self._row = row
        self._table = table
        self._future = Outcome()

    def start(self) -> None:
        """Starts it. To be called once."""
        self._ticket.start(self._row, self._table, self._future)

    @property
    def done(self) -> bool:
        """Whether the table is there, or has failed."""
        return self._future.done()

    def result(self) -> Table:
        """The table, which is waited for. It is the link's: the next roll call writes to it.

        Raises:
            PsumError: It could not be summed.
        """
        self._owner.start_upcoming()
        self._future.result()
        return self._table


class Link:
    """A client of an elastic job, as its step boundaries see it.

    Args:
        owner: The client.
        settings: Its settings.
        session: Its session, which only the thread uses.
        thread: Its thread.
        settle: To be called in the thread after the session was changed.

    Attributes:
        rank: This worker's rank.
        boundaries: How many boundaries the program has had.
    """

    def __init__(
        self, owner: Owner, settings: Settings, session: Session, thread: LoopThread, settle: Callable[[], None]
    ) -> None:
        assert settings.elastic is not None
        self.rank = settings.rank
        self.boundaries = 0
        self._owner = owner
        self._settings = settings
        self._session = session
        self._thread = thread
        self._settle = settle
        self._ranks = settings.elastic.maximum
        self._key: Key | None = None
        """The key of roll calls, once it was used."""
        self._said: tuple[Row, Table] | None = None
        """What this rank has said last, and the table with it. In nearly all steps it says the same again."""
        self._table = np.zeros((self._ranks, COLUMNS), np.int64)
        """Where the sum is written."""
        self._claimed = False
        self._candidates_since: float | None = None
        """Since when candidates wait although the program has had no boundary; None if none do."""
        self._has_warned = False

    @property
    def title(self) -> str:
        """Which worker this is, for people."""
        return self._owner.title

    @property
    def joining(self) -> bool:
        """Whether this process joins a running job, and has not got its state. It may have been let in meanwhile."""
        return self._owner.waits_for_admission or self._session.joins.lacks_state

    def claim(self) -> None:
        """Notes that an ElasticState uses the link.

        Raises:
            RuntimeError: Another one does. A boundary is that of the whole program.
        """
        if self._claimed:
            raise RuntimeError("this client has an ElasticState already; a program has one, with everything in it")
        self._claimed = True

    def call(self, *, leaving: bool, ready: bool = True, ahead: bool = False) -> RollCall:
        """Begins a roll call. The table of the one before was read.

        Args:
            leaving: Whether this rank leaves at this boundary.
            ready: Whether this process has the state of the others.
            ahead: Whether it is that of the next boundary. Then it travels with the next step's first operation.
        """
        candidate = self._session.joins.admissions.candidate if ready else None
        said = Row(self._owner.incarnation, leaving, ready, candidate)
        if self._said is None or self._said[0] != said:
            self._said = said, contribution(self._ranks, self.rank, said)
        call = RollCall(self._owner, self._reserve(), self._said[1], self._table)
        if ahead:
            self._owner.start_with_next(call.start)
        else:
            call.start()
        return call

    def give(self, name: str, memory: Memory, giver: int, receiver: int, *, steers: bool = False) -> Outcome:
        """Begins a broadcast between two ranks; other ranks have no part in it.

        Args:
            name: The key's name. No other pair may use it, and it has memory of one size.
            memory: What is given, or where it is received. Not to be changed or used before the future is done.
            giver: Whose memory it is.
            receiver: Who receives it.
            steers: Whether the first aggregator process owns the key.
        """
        store, size = STEERING if steers else INTERNAL, memory.nbytes
        ticket = self._owner.reserve(
            store, name, (size,), ElementType.UINT8, Operation.BROADCAST, _PRIORITY, ranks=(giver, receiver)
        )
        future = Outcome()
        ticket.start(memory if giver == self.rank else None, memory, future)
        return future

    def wait(self, predicate: Callable[[], bool]) -> None:
        """Waits until a predicate is true that depends on futures and losses.

        Raises:
            PsumError: The job has failed.
        """
        wait_for(lambda: predicate() or self._session.failure is not None)
        if not predicate() and (failure := self._session.failure) is not None:
            raise failure.with_traceback(None)

    def is_lost(self, rank: int) -> bool:
        """Whether the present process of a rank is known to be lost."""
        return self._session.joins.is_lost(rank)

    @property
    def weights_total(self) -> Sequence[int] | None:
        """What the ranks have agreed on for the weights of aggregators, None if they need not."""
        return self._session.weights_total

    @property
    def admitted(self) -> list[pb.Admission]:
        """The last admission of each rank."""
        return list(self._session.joins.admissions.admitted.values())

    def admit(self, process: Process) -> int:
        """Tells all aggregators that a process is admitted, when all operations of this rank are complete.

        Returns:
            The newcomer's generation.

        Raises:
            RoundTimeoutError: Some operation did not end. The text names the keys.
        """
        joins = self._session.joins
        give_up = time.monotonic() + self._settings.round_timeout
        while keys := self._in_thread(joins.unfinished):
            if time.monotonic() > give_up:
                names = ", ".join(key.title for key in keys[:8])
                raise RoundTimeoutError(
                    f"{self.title} cannot admit rank {process.rank} at this step boundary: operations on {len(keys)}"
                    f" keys were announced and are not complete ({names}). Wait for all results of a step before"
                    " state.step()"
                )
            time.sleep(0.01)
        return self._in_thread(lambda: joins.admit(process))

    def complete(self) -> None:
        """Notes that the join at this boundary is over, with or without the newcomer."""
        self._in_thread(self._session.joins.complete)

    def wait_for_admission(self) -> None:
        """Waits until the members have let this process in, and all aggregators have welcomed it.

        Raises:
            PsumError: It was refused.
        """
        began = time.monotonic()
        while not wait_for(
            lambda: not self._owner.waits_for_admission or self._session.failure is not None, timeout=_REMINDER_SECONDS
        ):
            _log.warning(
                "%s has waited for %.0f s to be let into the running job; its members do so at a step boundary, when"
                " their programs call ElasticState.step()",
                self.title,
                time.monotonic() - began,
            )
        if (failure := self._session.failure) is not None:
            raise failure.with_traceback(None)
        self._in_thread(self._session.joins.begin)

    def adopt_weights(self, total: Sequence[int]) -> None:
        """Takes over what the others have agreed on for the weights of aggregators."""
        self._in_thread(lambda: self._session.adopt_weights(total))

    def adopt(self, admitted: Sequence[pb.Admission]) -> None:
        """Notes that this process has the state of the others, and takes part in all operations."""
        self._in_thread(lambda: self._session.joins.adopt(admitted))

    def look_for_candidates(self, now: float) -> None:
        """Warns once if processes wait to join and the program has no boundaries. In the client's thread only."""
        waiting = None if self.boundaries else self._session.joins.admissions.waiting
        if not waiting:
            self._candidates_since = None
        elif self._candidates_since is None:
            self._candidates_since = now
        elif now - self._candidates_since >= _UNATTENDED_SECONDS and not self._has_warned:
            self._has_warned = True
            names = ", ".join(f"rank {process.rank} ({worker})" for process, worker in sorted(waiting.items()))
            _log.warning(
                "%s waits to join the job, which %s cannot let it do: processes are let in at step boundaries, and this"
                " program has not called ElasticState.step() so far. The job goes on without it",
                names,
                self.title,
            )

    def leave(self, timeout: float) -> None:
        """Leaves the job in good order."""
        self._owner.close(timeout)

    def _reserve(self) -> Ticket:
        """Reserves the next round of the roll call's key."""
        if self._key is not None:
            return self._owner.reserve_again(self._key, _PRIORITY)
        shape = self._ranks, COLUMNS
        ticket = self._owner.reserve(STEERING, NAME, shape, ElementType.INT64, Operation.SUM, _PRIORITY)
        self._key = ticket.key
        return ticket

    def _in_thread(self, function: Callable[[], T]) -> T:
        """Runs a function where the session may be used, and sends what follows from it."""

        async def run() -> T:
            try:
                return function()
            finally:
                self._settle()

        return self._thread.run(run())
