"""Carries out a job's actions: makes sums in threads, and puts what is to be sent into the workers' outboxes."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from psum.aggregator.core.actions import (
    Action,
    Ask,
    Deliver,
    Release,
    Report,
    ReturnCredit,
    Sum,
    Sync,
    TellTiming,
    Warn,
)
from psum.aggregator.core.job import Job
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.send_queue import MAX_BATCH
from psum.aggregator.sums.arena import Arena
from psum.aggregator.sums.pool import PriorityPool
from psum.aggregator.sums.results import Results, result_message
from psum.aggregator.sums.sums import add_up
from psum.v1 import aggregator_pb2 as pb
from psum.wire import BATCH_BYTES, SHARED_BYTES, ShardRound, allocate, to_columns
from psum.wire.errors import FaultError, InternalError

_log = logging.getLogger(__name__)

_NOTHING: Final = memoryview(b"")

#: How many keys of a job that fail for the same kind of reason are logged as warnings.
_FAULTS_LOGGED = 3


class Large:
    """The sum of a large shard, in shared memory, in a message or in both, as its receivers want it.

    Args:
        row: Which it is, without where it lies.
        place: Its offset in the job's shared memory, None where it lies in a message.
        memory: The sum.
        message: The message that it lies in.
    """

    __slots__ = ("_inline", "_row", "memory", "piped", "placed")

    def __init__(self, row: ShardRound, place: int | None, memory: memoryview, message: bytes | None) -> None:
        # What `allocate` gives for writing must not outlive the message; this does not.
        self.memory = memory if message is None else memoryview(message)[-len(memory) :]
        size, priority = len(memory), row.priority
        self.piped = Results((row._replace(placed=size),), beside=(self.memory,), priority=priority)
        """What announces it on a data connection."""
        self.placed: Results | None = None
        """What tells a worker that shares the memory."""
        if place is not None:
            self.placed = Results((row._replace(place=place, placed=size),), priority=priority)
        self._row = row
        self._inline = None if message is None else Results((row,), priority=priority, message=message)

    def on(self, line: WorkerConnection) -> Results:
        """What one worker is sent."""
        if line.segment is not None and self.placed is not None:
            return self.placed
        if line.pipe is not None and line.segment is None:
            return self.piped
        return self._with_value()

    def _with_value(self) -> Results:
        """The sum within its message, made once."""
        if self._inline is None:
            message = result_message((self._row._replace(length=len(self.memory)),), (self.memory,))
            self._inline = Results((self._row,), priority=self._row.priority, message=message)
        return self._inline


class ActionRunner:
    """Carries out actions, and feeds what comes of them back into the job.

    Args:
        pool: Where sums are made.
        lines: The line of a job's rank, None where it is not connected.
        arena: Where a job's sums lie that are read from shared memory, None where nobody does.
    """

    def __init__(
        self,
        pool: PriorityPool,
        lines: Callable[[Job, int], WorkerConnection | None],
        arena: Callable[[Job], Arena | None] = lambda job: None,
    ) -> None:
        self._pool = pool
        self._lines = lines
        self._arena = arena
        self._faults: WeakKeyDictionary[Job, Counter[int]] = WeakKeyDictionary()
        """How many keys failed, by job and code."""

    def perform(self, job: Job, actions: Iterable[Action]) -> None:
        """Carries out the actions of one job, in order; sums and results that come one after another together."""
        sums: list[Sum] = []
        results: list[Deliver] = []
        for action in actions:
            match action:
                case Sum():
                    sums.append(action)
                case Deliver():
                    results.append(action)
                case TellTiming():
                    # In each outbox it goes ahead of results, so it may do so here.
                    self._tell_timing(job, action)
                case _:
                    self._sum_and_deliver(job, sums, results)
                    sums, results = [], []
                    self._tell_others(job, action)
        self._sum_and_deliver(job, sums, results)

    def _sum_and_deliver(self, job: Job, sums: Sequence[Sum], results: Sequence[Deliver]) -> None:
        if results:
            self._deliver(job, results)
        if sums:
            self._sum(job, sums)

    def _tell_others(self, job: Job, action: Action) -> None:
        match action:
            case ReturnCredit(rank, rounds):
                job.counters.returned_credits += len(rounds)
                taken = pb.Taken(shards=to_columns([ShardRound(*place) for place in rounds]))
                self._tell(job, rank, pb.ExchangeResponse(taken=taken))
            case Ask(rank, rounds):
                wanted = pb.Want(shards=to_columns([ShardRound(*place) for place in rounds]))
                self._tell(job, rank, pb.ExchangeResponse(want=wanted))
            case Sync(number, ranks):
                for rank in ranks:
                    if (line := self._lines(job, rank)) is not None:
                        line.outbox.put_last(pb.ExchangeResponse(sync=pb.Sync(number=number)))
                        line.filled.set()
            case Release(rank):
                self._tell(job, rank, pb.ExchangeResponse(farewell=pb.Farewell()), last=True)
            case Warn(text, ranks):
                _log.warning("%s", text, extra={"job": job.name})
                for rank in ranks:
                    self._tell(job, rank, pb.ExchangeResponse(notice=pb.Notice(text=text)))
            case Report(fault, ranks):
                job.counters.faults[fault.kind] += 1
                self._log_fault(job, fault)
                for rank in ranks:
                    self._tell(job, rank, pb.ExchangeResponse(fault=fault.to_message()), last=fault.key is None)

    def _tell_timing(self, job: Job, action: TellTiming) -> None:
        for rank, waiting in action.waiting.items():
            if (line := self._lines(job, rank)) is not None:
                # The result, which follows at once, wakes the sender.
                line.outbox.put_timing(
                    pb.Timing(
                        id=action.key.id,
                        shard=action.shard,
                        round=action.round,
                        last_rank=action.last_rank,
                        waiting_seconds=waiting,
                        summing_seconds=action.summing,
                    )
                )

    def _log_fault(self, job: Job, fault: FaultError) -> None:
        about = {"job": job.name}
        # Most faults name the job.
        text = str(fault) if repr(job.name) in str(fault) else f"job {job.name}: {fault}"
        if fault.key is None:
            _log.error("%s", text, extra=about)
            return
        # What fails one key mostly fails all of them, of which a network has hundreds.
        counts = self._faults.setdefault(job, Counter())
        counts[fault.code] += 1
        if counts[fault.code] == _FAULTS_LOGGED:
            text += " (other keys that fail likewise are logged at level debug)"
        _log.log(logging.WARNING if counts[fault.code] <= _FAULTS_LOGGED else logging.DEBUG, "%s", text, extra=about)

    def _tell(self, job: Job, rank: int, message: pb.ExchangeResponse, *, last: bool = False) -> None:
        if (line := self._lines(job, rank)) is not None:
            if last:
                line.outbox.clear()
                line.closing = True
            line.outbox.put_control(message)
            line.filled.set()

    def _sum(self, job: Job, actions: Iterable[Sum]) -> None:
        made: list[Action] = []
        for action in actions:
            try:
                made += self._begin_sum(job, action)
            except Exception as error:
                # Else the stream that brought the last contribution would end, and the round wait for a sum for ever.
                self.perform(job, made)
                made = []
                self._sum_failed(job, action, error)
        self.perform(job, made)

    def _sum_failed(self, job: Job, action: Sum, error: BaseException) -> None:
        _log.error("job %s: the sum of %r failed", job.name, action.key, exc_info=error)
        # Its traceback has all contributions.
        error.__traceback__ = None
        failure = InternalError(
            f"the aggregator could not sum key {action.key.title} round {action.round} of job {job.name!r}: {error!r}"
        )
        self.perform(job, job.fail(failure, asyncio.get_running_loop().time()))

    def _begin_sum(self, job: Job, action: Sum) -> list[Action]:
        """Makes a sum, and returns what follows, or has a thread make it."""
        key, contributions = action.key, action.contributions
        size = key.sizes[action.shard]
        result: object
        if size < SHARED_BYTES:
            result = total = memoryview(bytearray(size))
        else:
            result, total = self._large(job, ShardRound(key.id, action.shard, action.round, action.priority), size)
        seconds = 0.0

        def make() -> None:
            nonlocal seconds
            begin = time.perf_counter()
            add_up(key.element_type, contributions, total)
            seconds = time.perf_counter() - begin

        if size * len(contributions) <= self._pool.at_once_bytes:
            make()
            # To count the small ones would take as long as to make them.
            return self._made(job, action, result, seconds if size >= SHARED_BYTES else None)

        def done(error: BaseException | None) -> None:
            if error is None:
                self.perform(job, self._made(job, action, result, seconds))
            else:
                self._sum_failed(job, action, error)

        self._pool.submit(action.priority, make, done, size * len(contributions))
        return []

    def _large(self, job: Job, row: ShardRound, size: int) -> tuple[Large, memoryview]:
        """Where a sum is to be made: where it is sent from, in memory that workers share or within its message."""
        arena = self._arena(job)
        if arena is not None and (found := arena.place(row.id, row.shard, size)) is not None:
            place, total = found
            return Large(row, place, total, None), total
        columns = to_columns((row._replace(length=size),))
        message, total = allocate(pb.ExchangeResponse(result=pb.Result(shards=columns)), size)
        return Large(row, None, total, message), total

    @staticmethod
    def _made(job: Job, action: Sum, result: object, seconds: float | None = None) -> list[Action]:
        """A sum is there, and took so many seconds, None where that is not counted; returns what follows."""
        if action.restored:
            job.counters.restores += 1
            return job.restored(action.key, action.shard, action.round, result)
        shard = action.key.shards.get(action.shard)
        since = None if shard is None else shard.since
        if (actions := job.summed(action.key, action.shard, result)) and since is not None:
            counters = job.counters.of(broadcast=action.key.broadcast)
            if seconds is not None:
                counters.summing.observe(seconds)
            counters.duration.observe(time.monotonic() - since)
        return actions

    def _deliver(self, job: Job, actions: Iterable[Deliver]) -> None:
        for batch in _batches(actions):
            key, ranks, result = batch[0].key, batch[0].ranks, batch[0].result
            results = result if isinstance(result, Large) else _small(batch)
            size, sent = sum([action.key.sizes[action.shard] for action in batch]), 0
            for rank in ranks:
                line = self._lines(job, rank)
                if line is None:
                    continue
                line.filled.set()
                if key.broadcast and rank == 0:
                    # It has the value; this says that everybody asked for it.
                    line.outbox.put(_empty(batch))
                    continue
                line.outbox.put(results.on(line) if isinstance(results, Large) else results)
                job.workers[rank].sent_bytes += size
                sent += size
            job.counters.of(broadcast=key.broadcast).sent_bytes += sent


def _batches(actions: Iterable[Deliver]) -> Iterator[list[Deliver]]:
    """Small results for the same ranks, as many as one message takes; a large one by itself."""
    batch: list[Deliver] = []
    size = 0
    for action in actions:
        size += (more := action.key.sizes[action.shard])
        if batch and (
            size > BATCH_BYTES
            or len(batch) == MAX_BATCH
            or more >= SHARED_BYTES
            or action.ranks != batch[0].ranks
            or action.key.broadcast is not batch[0].key.broadcast
        ):
            yield batch
            batch, size = [], more
        batch.append(action)
        if more >= SHARED_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _small(batch: Sequence[Deliver]) -> Results:
    """Small results with their values."""
    payloads: list[Any] = [action.result for action in batch]
    rows = [ShardRound(a.key.id, a.shard, a.round, a.priority, len(p)) for a, p in zip(batch, payloads, strict=True)]
    return Results(rows, payloads, priority=max([row.priority for row in rows]))


def _empty(batch: Sequence[Deliver]) -> Results:
    """The same without."""
    rows = [ShardRound(action.key.id, action.shard, action.round, action.priority) for action in batch]
    return Results(rows, [_NOTHING] * len(rows), priority=max([row.priority for row in rows]))
