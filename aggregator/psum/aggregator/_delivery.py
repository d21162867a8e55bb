"""Carries out a job's actions: makes sums in threads, and puts what is to be sent into the workers' outboxes."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from psum.aggregator._actions import Action, Ask, Deliver, Release, Report, ReturnCredit, Sum, Sync, TellTiming, Warn
from psum.aggregator._arena import Arena
from psum.aggregator._job import Job
from psum.aggregator._outbox import Outbox
from psum.aggregator._pool import UrgentPool
from psum.aggregator._sums import add_up
from psum.v1 import aggregator_pb2 as pb
from psum.wire import SHARED_BYTES, Pipe, Segment, allocate, encode
from psum.wire.errors import FaultError, InternalError, ProtocolError

_log = logging.getLogger(__name__)

#: So many bytes of contributions are added up at once: handing them to a thread would take longer.
_AT_ONCE_BYTES: Final = 512 << 10

_NOTHING: Final = memoryview(b"")

#: How many keys of a job that fail for the same kind of reason are logged as warnings.
_FAULTS_LOGGED = 3


class Line:
    """The way to one connected worker: its outbox, and what tells its sender that there is something in it."""

    def __init__(self) -> None:
        self.segment: Segment | None = None
        """The memory in which the worker places what it pushes, where it shares memory with this process."""
        self.pipe: Pipe | None = None
        """The worker's data connection, where it has opened one."""
        self._attached = asyncio.Event()
        self.outbox = Outbox()
        self.filled = asyncio.Event()
        self.closing = False
        """Whether the stream ends once the outbox is empty."""
        self.room = asyncio.Event()
        """Set while the worker may be heard, since its outbox is not crowded."""
        self.room.set()

    def attach(self, pipe: Pipe) -> None:
        """The worker has opened its data connection."""
        self.pipe = pipe
        self._attached.set()

    async def attached(self) -> Pipe:
        """The worker's data connection, once it has opened one."""
        await self._attached.wait()
        assert self.pipe is not None
        return self.pipe

    def close(self) -> None:
        """The stream has ended, and what belongs to it goes too."""
        if self.segment is not None:
            self.segment.close()
        if self.pipe is not None:
            self.pipe.close()

    def placed(self, entry: pb.ShardRound) -> memoryview:
        """What a worker has placed in the memory that it shares.

        Raises:
            ProtocolError: It shares not as much.
        """
        size = 0 if self.segment is None else self.segment.size
        if self.segment is None or entry.place + entry.placed > size or entry.length:
            raise ProtocolError(
                f"a shard of {entry.placed} bytes at {entry.place} of shared memory, and {entry.length} in the message;"
                f" this worker shares {size} bytes"
            )
        return self.segment.view[entry.place : entry.place + entry.placed]


class Small(NamedTuple):
    """The sum of a small shard.

    Attributes:
        entry: Which it is, and how long.
        memory: The sum.
    """

    entry: pb.ShardRound
    memory: memoryview


class Large:
    """The sum of a large shard, in shared memory, in a message or in both, as its receivers want it.

    Args:
        entry: Which it is, without where it lies.
        place: Its offset in the job's shared memory, None where it lies in a message.
        memory: The sum.
        message: The message that it lies in.
    """

    __slots__ = ("_entry", "_message", "memory", "piped", "placed")

    def __init__(self, entry: pb.ShardRound, place: int | None, memory: memoryview, message: bytes | None) -> None:
        # What `allocate` gives for writing must not outlive the message; this does not.
        self.memory = memory if message is None else memoryview(message)[-len(memory) :]
        self.piped = _copied(entry, placed=len(memory))
        """What announces it on a data connection."""
        self.placed: pb.ShardRound | None = None
        """What tells a worker that shares the memory."""
        if place is not None:
            self.placed = _copied(entry, place=place, placed=len(memory))
        self._entry = entry
        self._message = message

    def message(self) -> bytes:
        """The message for everybody else, made once."""
        if self._message is None:
            self._entry.length = len(self.memory)
            self._message = encode(pb.ExchangeResponse(result=pb.Result(shards=[self._entry])), self.memory)
        return self._message


def _copied(entry: pb.ShardRound, *, placed: int, place: int = 0) -> pb.ShardRound:
    return pb.ShardRound(
        id=entry.id, shard=entry.shard, round=entry.round, priority=entry.priority, place=place, placed=placed
    )


class Delivery:
    """Carries out actions, and feeds what comes of them back into the job.

    Args:
        pool: Where sums are made.
        lines: The line of a job's rank, None where it is not connected.
        arena: Where a job's sums lie that are read from shared memory, None where nobody does.
    """

    def __init__(
        self,
        pool: UrgentPool,
        lines: Callable[[Job, int], Line | None],
        arena: Callable[[Job], Arena | None] = lambda job: None,
    ) -> None:
        self._pool = pool
        self._lines = lines
        self._arena = arena
        self._faults: WeakKeyDictionary[Job, Counter[int]] = WeakKeyDictionary()
        """How many keys failed, by job and code."""

    def perform(self, job: Job, actions: Iterable[Action]) -> None:
        """Carries out the actions of one job, in order."""
        for action in actions:
            match action:
                case Sum():
                    self._sum(job, action)
                case Deliver():
                    self._deliver(job, action)
                case TellTiming():
                    self._tell_timing(job, action)
                case ReturnCredit(rank, rounds):
                    job.tally.returned_credits += len(rounds)
                    taken = pb.Taken(shards=[pb.ShardRound(id=k, shard=s, round=r) for k, s, r in rounds])
                    self._tell(job, rank, pb.ExchangeResponse(taken=taken))
                case Ask(rank, rounds):
                    wanted = [pb.ShardRound(id=k, shard=s, round=r) for k, s, r in rounds]
                    self._tell(job, rank, pb.ExchangeResponse(want=pb.Want(shards=wanted)))
                case Sync(number, ranks):
                    for rank in ranks:
                        if (line := self._lines(job, rank)) is not None:
                            line.outbox.put_last(pb.ExchangeResponse(sync=pb.Sync(number=number)))
                            line.filled.set()
                case Release(rank):
                    self._tell(job, rank, pb.ExchangeResponse(farewell=pb.Farewell()), last=True)
                case Warn(text, ranks):
                    _log.warning("%s", text)
                    for rank in ranks:
                        self._tell(job, rank, pb.ExchangeResponse(notice=pb.Notice(text=text)))
                case Report(fault, ranks):
                    job.tally.faults[fault.kind] += 1
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
        if fault.key is None:
            _log.error("job %s: %s", job.name, fault)
            return
        # What fails one key mostly fails all of them, of which a network has hundreds.
        counts = self._faults.setdefault(job, Counter())
        counts[fault.code] += 1
        if counts[fault.code] < _FAULTS_LOGGED:
            _log.warning("job %s: %s", job.name, fault)
        elif counts[fault.code] == _FAULTS_LOGGED:
            _log.warning("job %s: %s (other keys that fail likewise are logged at level debug)", job.name, fault)
        else:
            _log.debug("job %s: %s", job.name, fault)

    def _tell(self, job: Job, rank: int, message: pb.ExchangeResponse, *, last: bool = False) -> None:
        if (line := self._lines(job, rank)) is not None:
            if last:
                line.outbox.clear()
                line.closing = True
            line.outbox.put_control(message)
            line.filled.set()

    def _sum(self, job: Job, action: Sum) -> None:
        try:
            self._begin_sum(job, action)
        except Exception as error:
            # Else the stream that brought the last contribution would end, and the round wait for a sum for ever.
            self._sum_failed(job, action, error)

    def _sum_failed(self, job: Job, action: Sum, error: BaseException) -> None:
        _log.error("job %s: the sum of %r failed", job.name, action.key, exc_info=error)
        failure = InternalError(
            f"the aggregator could not sum key {action.key.name!r} round {action.round} of job {job.name!r}: {error!r}"
        )
        self.perform(job, job.fail(failure, asyncio.get_running_loop().time()))

    def _begin_sum(self, job: Job, action: Sum) -> None:
        key, size, contributions = action.key, action.key.sizes[action.shard], action.contributions
        entry = pb.ShardRound(id=key.id, shard=action.shard, round=action.round, priority=action.priority, length=size)
        if size < SHARED_BYTES:
            total = memoryview(bytearray(size))
            result: Small | Large = Small(entry, total)
        else:
            result, total = self._large(job, entry, size)
        if size * len(contributions) <= _AT_ONCE_BYTES:
            add_up(key.element_type, contributions, total)
            self._made(job, action, result)
            return

        seconds = 0.0

        def make() -> None:
            nonlocal seconds
            begin = time.perf_counter()
            add_up(key.element_type, contributions, total)
            seconds = time.perf_counter() - begin

        def done(error: BaseException | None) -> None:
            if error is None:
                self._made(job, action, result, seconds)
            else:
                self._sum_failed(job, action, error)

        self._pool.submit(action.priority, make, done, size * len(contributions))

    def _large(self, job: Job, entry: pb.ShardRound, size: int) -> tuple[Large, memoryview]:
        """Where a sum is to be made: where it is sent from, in memory that workers share or within its message."""
        arena = self._arena(job)
        if arena is not None and (found := arena.place(entry.id, entry.shard, size)) is not None:
            place, total = found
            entry.length = 0
            return Large(entry, place, total, None), total
        message, total = allocate(pb.ExchangeResponse(result=pb.Result(shards=[entry])), size)
        return Large(entry, None, total, message), total

    def _made(self, job: Job, action: Sum, result: object, seconds: float | None = None) -> None:
        """A sum is there, and took a thread so many seconds."""
        if action.restored:
            job.tally.restores += 1
            self.perform(job, job.restored(action.key, action.shard, action.round, result))
            return
        shard = action.key.shards.get(action.shard)
        since = None if shard is None else shard.since
        if (actions := job.summed(action.key, action.shard, result)) and since is not None:
            tally = job.tally.of(broadcast=action.key.broadcast)
            if seconds is not None:
                tally.summing.observe(seconds)
            tally.duration.observe(time.monotonic() - since)
        self.perform(job, actions)

    def _deliver(self, job: Job, action: Deliver) -> None:
        key, result = action.key, action.result
        size, place = key.sizes[action.shard], (key.id, action.shard)
        sent = 0
        for rank in action.ranks:
            line = self._lines(job, rank)
            if line is None:
                continue
            if key.broadcast and rank == 0:
                # It has the value; this says that everybody asked for it.
                entry = pb.ShardRound(id=key.id, shard=action.shard, round=action.round, priority=action.priority)
                line.outbox.put_small(place, entry, _NOTHING)
                line.filled.set()
                continue
            if isinstance(result, Small):
                line.outbox.put_small(place, result.entry, result.memory)
            else:
                assert isinstance(result, Large)
                if line.segment is not None and result.placed is not None:
                    line.outbox.put_small(place, result.placed, _NOTHING)
                elif line.pipe is not None and line.segment is None and size >= SHARED_BYTES:
                    line.outbox.put_small(place, result.piped, _NOTHING, beside=result.memory)
                else:
                    line.outbox.put_message(place, action.priority, result.message())
            line.filled.set()
            job.workers[rank].sent_bytes += size
            sent += size
        job.tally.of(broadcast=key.broadcast).sent_bytes += sent
