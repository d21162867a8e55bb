"""Carries out a job's actions: makes sums in threads, and puts what is to be sent into the workers' outboxes."""

import asyncio
import logging
from collections.abc import Callable, Iterable

from psum.aggregator._actions import Action, Ask, Deliver, Release, Report, ReturnCredit, Sum, Sync
from psum.aggregator._job import Job
from psum.aggregator._outbox import Outbox
from psum.aggregator._pool import UrgentPool
from psum.aggregator._sums import add_up
from psum.v1 import aggregator_pb2 as pb
from psum.wire import allocate
from psum.wire.errors import InternalError

_log = logging.getLogger(__name__)

#: Sums below this are made at once: handing them to a thread would cost more.
_INLINE_SUM_BYTES = 32 << 10


class Line:
    """The way to one connected worker: its outbox, and what tells its sender that there is something in it."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.filled = asyncio.Event()
        self.sent = asyncio.Event()
        """Set whenever something was taken out of it."""
        self.closing = False
        """Whether the stream ends once the outbox is empty."""


class Delivery:
    """Carries out actions, and feeds what comes of them back into the job.

    Args:
        pool: Where sums are made.
        lines: The line of a job's rank, None where it is not connected.
    """

    def __init__(self, pool: UrgentPool, lines: Callable[[Job, int], Line | None]) -> None:
        self._pool = pool
        self._lines = lines

    def perform(self, job: Job, actions: Iterable[Action]) -> None:
        """Carries out the actions of one job, in order."""
        for action in actions:
            match action:
                case Sum():
                    self._sum(job, action)
                case Deliver():
                    self._deliver(job, action)
                case ReturnCredit(rank, rounds):
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
                case Report(fault, ranks):
                    level = logging.ERROR if fault.key is None else logging.WARNING
                    _log.log(level, "job %s: %s", job.name, fault)
                    for rank in ranks:
                        self._tell(job, rank, pb.ExchangeResponse(fault=fault.to_message()), last=fault.key is None)

    def _tell(self, job: Job, rank: int, message: pb.ExchangeResponse, *, last: bool = False) -> None:
        if (line := self._lines(job, rank)) is not None:
            if last:
                line.outbox.clear()
                line.closing = True
            line.outbox.put_control(message)
            line.filled.set()

    def _sum(self, job: Job, action: Sum) -> None:
        key, size = action.key, action.key.sizes[action.shard]
        entry = pb.ShardRound(id=key.id, shard=action.shard, round=action.round, priority=action.priority, length=size)
        if size < _INLINE_SUM_BYTES:
            total = memoryview(bytearray(size))
            add_up(key.element_type, action.contributions, total)
            self._made(job, action, (entry, total))
            return

        # The sum is made where it is sent from, within the message that goes to every rank.
        message, total = allocate(pb.ExchangeResponse(result=pb.Result(shards=[entry])), size)

        def done(error: BaseException | None) -> None:
            if error is None:
                self._made(job, action, message)
                return
            _log.error("job %s: the sum of %r failed", job.name, key, exc_info=error)
            failure = InternalError(f"the aggregator could not sum key {key.name!r} round {action.round}: {error!r}")
            self.perform(job, job.fail(failure, asyncio.get_running_loop().time()))

        self._pool.submit(action.priority, lambda: add_up(key.element_type, action.contributions, total), done)

    def _made(self, job: Job, action: Sum, result: object) -> None:
        if action.restored:
            self.perform(job, job.restored(action.key, action.shard, action.round, result))
        else:
            self.perform(job, job.summed(action.key, action.shard, result))

    def _deliver(self, job: Job, action: Deliver) -> None:
        size = action.key.sizes[action.shard]
        for rank in action.ranks:
            line = self._lines(job, rank)
            if line is None:
                continue
            if action.key.broadcast and rank == 0:
                # It has the value; this says that everybody asked for it.
                entry = pb.ShardRound(
                    id=action.key.id, shard=action.shard, round=action.round, priority=action.priority
                )
                line.outbox.put_small(entry, memoryview(b""))
            elif isinstance(action.result, bytes):
                line.outbox.put_message(action.priority, action.result)
                job.workers[rank].sent_bytes += size
            else:
                line.outbox.put_small(*action.result)  # type: ignore[misc]
                job.workers[rank].sent_bytes += size
            line.filled.set()
