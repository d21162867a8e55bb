"""Carries out a job's actions: makes sums in threads, and puts messages into the workers' queues."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from psum.aggregator.core.actions import (
    Action,
    Admit,
    Ask,
    ConnectUplinks,
    Decide,
    Deliver,
    Detach,
    EndStreams,
    LeaveUplinks,
    PartUplinks,
    Refuse,
    Release,
    ReopenUplinks,
    Report,
    ReturnCredit,
    SendUplinks,
    Sum,
    SumTogether,
    Sync,
    TellCandidates,
    TellLosses,
    TellTiming,
    UplinkAction,
    Warn,
)
from psum.aggregator.core.job import Job
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.send_queue import MAX_BATCH
from psum.aggregator.sums.large_sum import LargeSum
from psum.aggregator.sums.pool import PriorityPool
from psum.aggregator.sums.results import Results
from psum.aggregator.sums.small_sums import SmallSums
from psum.aggregator.sums.sums import add_up, room
from psum.planes import Arena
from psum.v1 import aggregator_pb2 as pb
from psum.wire import BATCH_BYTES, LARGE_PAYLOAD_BYTES, Codec, ShardRound, allocate, to_columns
from psum.wire.errors import FaultError, InternalError

_log = logging.getLogger(__name__)

_NOTHING: Final = memoryview(b"")

#: How many failed keys of a job are logged as warnings for each kind of failure.
_FAULTS_LOGGED = 3


class ActionRunner:
    """Carries out actions, and tells the job when a sum is made.

    Args:
        pool: Makes sums in threads.
        connections: The connection of a job's rank, None if it is not connected.
        arena: A job's shared memory for sums, None if none of its workers shares memory.
        uplinks: Tells the connections of a relay's group to the aggregators that it forwards to.
        detach: Forgets the connection of a job's rank, which is about to end.
        decide: Carries out what was decided about a process that waits to join.
    """

    def __init__(
        self,
        pool: PriorityPool,
        connections: Callable[[Job, int], WorkerConnection | None],
        arena: Callable[[Job], Arena | None] = lambda job: None,
        uplinks: Callable[[Job, UplinkAction], None] = lambda job, action: None,
        detach: Callable[[Job, int], None] = lambda job, rank: None,
        decide: Callable[[Job, Admit | Refuse], None] = lambda job, action: None,
    ) -> None:
        self._pool = pool
        self._connections = connections
        self._arena = arena
        self._uplinks = uplinks
        self._detach = detach
        self._decide = decide
        self._faults: WeakKeyDictionary[Job, Counter[int]] = WeakKeyDictionary()
        """How many keys of each job failed, by code."""

    def perform(self, job: Job, actions: Iterable[Action]) -> None:
        """Carries out the actions of one job in order; consecutive sums or results are carried out together."""
        sums: list[Sum] = []
        results: list[Deliver] = []
        for action in actions:
            match action:
                case Sum():
                    sums.append(action)
                case Deliver():
                    results.append(action)
                case TellTiming():
                    # In each queue it goes ahead of results anyway.
                    self._send_timing(job, action)
                case _:
                    self._sum_and_deliver(job, sums, results)
                    sums, results = [], []
                    self._perform_other(job, action)
        self._sum_and_deliver(job, sums, results)

    def _sum_and_deliver(self, job: Job, sums: Sequence[Sum], results: Sequence[Deliver]) -> None:
        if results:
            self._deliver(job, results)
        if sums:
            self._sum(job, sums)

    def _perform_other(self, job: Job, action: Action) -> None:
        match action:
            case SumTogether():
                self._sum_together(job, action)
            case ReturnCredit(rank, rounds):
                job.counters.returned_credits += len(rounds)
                taken = pb.Taken(shards=to_columns([ShardRound(*round) for round in rounds]))
                self._send(job, rank, pb.ExchangeResponse(taken=taken))
            case Ask(rank, rounds):
                wanted = pb.Want(shards=to_columns([ShardRound(*round) for round in rounds]))
                self._send(job, rank, pb.ExchangeResponse(want=wanted))
            case Sync(number, ranks, departures):
                for rank in ranks:
                    if (connection := self._connections(job, rank)) is not None:
                        sync = pb.Sync(number=number, departures=departures)
                        connection.queue.put_last(pb.ExchangeResponse(sync=sync))
                        connection.filled.set()
            case EndStreams(ranks):
                for rank in ranks:
                    if (connection := self._connections(job, rank)) is not None:
                        connection.queue.clear()
                        connection.closing = connection.recalled = True
                        connection.filled.set()
            case Release(rank):
                self._send(job, rank, pb.ExchangeResponse(farewell=pb.Farewell()), last=True)
            case Warn(text, ranks):
                _log.warning("%s", text, extra={"job": job.name})
                for rank in ranks:
                    self._send(job, rank, pb.ExchangeResponse(notice=pb.Notice(text=text)))
            case TellLosses(losses, ranks):
                for rank in ranks:
                    self._send(job, rank, pb.ExchangeResponse(losses=pb.Losses(losses=losses)))
            case TellCandidates(candidates, ranks):
                for rank in ranks:
                    self._send(job, rank, pb.ExchangeResponse(candidates=pb.Candidates(candidates=candidates)))
            case Decide(rank, decision):
                self._send(job, rank, pb.ExchangeResponse(decision=decision))
            case Detach(rank):
                self._detach(job, rank)
            case Admit() | Refuse():
                self._decide(job, action)
            case Report(fault, ranks):
                job.counters.faults[fault.kind] += 1
                self._log_fault(job, fault)
                for rank in ranks:
                    self._send(job, rank, pb.ExchangeResponse(fault=fault.to_message()), last=fault.key is None)
            case ConnectUplinks() | ReopenUplinks() | SendUplinks() | LeaveUplinks() | PartUplinks():
                self._uplinks(job, action)

    def _send_timing(self, job: Job, action: TellTiming) -> None:
        for rank, waiting in action.waiting.items():
            if (connection := self._connections(job, rank)) is not None:
                # The result follows at once, and wakes the sender.
                connection.queue.put_timing(
                    pb.Timing(
                        id=action.key.id,
                        shard=action.shard,
                        round=action.round,
                        last_rank=action.last_rank,
                        waiting_seconds=waiting,
                        summing_seconds=action.summing,
                        forwarding_seconds=action.forwarding,
                    )
                )

    def _log_fault(self, job: Job, fault: FaultError) -> None:
        about = {"job": job.name}
        # Most faults name the job.
        text = str(fault) if repr(job.name) in str(fault) else f"job {job.name}: {fault}"
        if fault.key is None:
            _log.error("%s", text, extra=about)
            return
        # A failure of one key mostly fails all keys, and a network has hundreds.
        counts = self._faults.setdefault(job, Counter())
        counts[fault.code] += 1
        if counts[fault.code] == _FAULTS_LOGGED:
            text += " (other keys that fail likewise are logged at level debug)"
        _log.log(logging.WARNING if counts[fault.code] <= _FAULTS_LOGGED else logging.DEBUG, "%s", text, extra=about)

    def _send(self, job: Job, rank: int, message: pb.ExchangeResponse, *, last: bool = False) -> None:
        if (connection := self._connections(job, rank)) is not None:
            if last:
                connection.queue.clear()
                connection.closing = True
            connection.queue.put_control(message)
            connection.filled.set()

    def _sum(self, job: Job, actions: Iterable[Sum]) -> None:
        made: list[Action] = []
        partial: list[tuple[Sum, memoryview]] = []
        for action in actions:
            try:
                if job.forwards and not (action.relayed or action.restored):
                    partial += self._begin_partial(job, action)
                else:
                    made += self._begin_sum(job, action)
            except Exception as error:
                # Otherwise the stream of the last contribution would end, and the round would wait for its sum.
                self.perform(job, made)
                made = []
                self._sum_failed(job, action, error)
        if partial:
            made += job.forward(partial)
        self.perform(job, made)

    def _sum_together(self, job: Job, action: SumTogether) -> None:
        """Makes small sums together, and puts them into the queues."""
        if job.failure is not None:
            return
        # An action before this one may have failed some of them.
        action.shards = shards = [each for each in action.shards if each[0].failure is None]
        if not shards:
            return
        ids, indices, rounds, priorities, contributions = zip(
            *[(key.id, index, shard.round, shard.priority, shard.contributions) for key, index, shard in shards],
            strict=True,
        )
        ranks = action.roster.members
        addends = [[each[rank] for each in contributions] for rank in ranks]
        try:
            types = [key.element_type for key, _, _ in shards]
            sums = SmallSums(types, addends, ids, indices, rounds, priorities, brief=job.brief)
        except Exception:
            # One after the other: the error names the one that cannot be summed.
            self._sum(job, [Sum(key, i, s.round, s.priority or 0, s.to_sum()) for key, i, s in shards])
            return
        job.summed_together(action, sums.payloads, time.monotonic())
        for rank in ranks:
            if (connection := self._connections(job, rank)) is not None:
                connection.filled.set()
                connection.queue.put(sums)
                job.workers[rank].sent_bytes += sums.size
                job.counters.sum.sent_bytes += sums.size

    def _begin_partial(self, job: Job, action: Sum) -> list[tuple[Sum, memoryview]]:
        """Makes a small sum of a relay's group and returns it, or has a thread make a large one.

        It is made in memory of its own: until the result of all groups is here, workers read the result before.
        """
        key, contributions = action.key, action.contributions
        size = sum(map(len, contributions))
        if not size:
            # The root of the broadcast is in another group.
            return [(action, _NOTHING)]
        partial = room(key.sizes[action.shard])
        if size <= self._pool.at_once_bytes:
            add_up(key.element_type, contributions, partial)
            return [(action, partial)]

        def done(error: BaseException | None) -> None:
            if error is None:
                self.perform(job, job.forward([(action, partial)]))
            else:
                self._sum_failed(job, action, error)

        self._pool.submit(action.priority, lambda: add_up(key.element_type, contributions, partial), done, size)
        return []

    def _sum_failed(self, job: Job, action: Sum, error: BaseException) -> None:
        _log.error("job %s: the sum of %r failed", job.name, action.key, exc_info=error)
        # Its traceback holds all contributions.
        error.__traceback__ = None
        failure = InternalError(
            f"the aggregator could not sum key {action.key.title} round {action.round} of job {job.name!r}: {error!r}"
        )
        self.perform(job, job.fail(failure, asyncio.get_running_loop().time()))

    def _begin_sum(self, job: Job, action: Sum) -> list[Action]:
        """Makes a small sum and returns the actions that follow, or has a thread make a large one."""
        key, contributions = action.key, action.contributions
        size = key.sizes[action.shard]
        result: object
        if action.relayed and key.codec is not None:
            # It is encoded already. Encoded again, it might not have the same bits as elsewhere.
            result = self._placed(job, action, key.codec, contributions[0])
            return self._made(job, action, result)
        if size < LARGE_PAYLOAD_BYTES or key.codec is not None:
            result = total = memoryview(bytearray(size))
        else:
            result, total = self._large(job, _row(action), size)
        seconds = 0.0

        def make() -> None:
            nonlocal seconds, result
            begin = time.perf_counter()
            add_up(key.element_type, contributions, total)
            if key.codec is not None:
                result = self._encoded(job, action, key.codec, total)
            seconds = time.perf_counter() - begin

        if size * len(contributions) <= self._pool.at_once_bytes:
            make()
            # Observing the small ones would take as long as making them.
            return self._made(job, action, result, seconds if size >= LARGE_PAYLOAD_BYTES else None)

        def done(error: BaseException | None) -> None:
            if error is None:
                self.perform(job, self._made(job, action, result, seconds))
            else:
                self._sum_failed(job, action, error)

        self._pool.submit(action.priority, make, done, size * len(contributions))
        return []

    def _encoded(self, job: Job, action: Sum, codec: Codec, total: memoryview) -> LargeSum | memoryview:
        """A sum in its key's encoding, where it is sent from. In any thread."""
        return self._placed(job, action, codec, codec.encode(total))

    def _placed(self, job: Job, action: Sum, codec: Codec, data: memoryview) -> LargeSum | memoryview:
        """An encoded sum where it is sent from. In any thread."""
        size = action.key.sizes[action.shard]
        if size < LARGE_PAYLOAD_BYTES:
            return data
        arena = self._arena(job)
        # A block is as large as any sum of the shard may become.
        block = None if arena is None else arena.block(action.key.id, action.shard, codec.most(size))
        if block is None:
            return LargeSum(_row(action), None, data, None)
        block.view[: len(data)] = data
        return LargeSum(_row(action), block.offset, block.view[: len(data)], None)

    def _large(self, job: Job, row: ShardRound, size: int) -> tuple[LargeSum, memoryview]:
        """A large sum, and the memory to make it in: where it is sent from, in shared memory or in its message."""
        arena = self._arena(job)
        if arena is not None and (found := arena.block(row.id, row.shard, size)) is not None:
            offset, total = found
            return LargeSum(row, offset, total, None), total
        columns = to_columns((row._replace(length=size),))
        message, total = allocate(pb.ExchangeResponse(result=pb.Result(shards=columns)), size)
        return LargeSum(row, None, total, message), total

    @staticmethod
    def _made(job: Job, action: Sum, result: object, seconds: float | None = None) -> list[Action]:
        """Tells the job that a sum is made; returns the actions that follow.

        Args:
            job: The job.
            action: The sum's action.
            result: The sum.
            seconds: How long it took, None if that is not observed.
        """
        if action.relayed and action.key.codec is None:
            job.keep(action, result.memory if isinstance(result, LargeSum) else cast(memoryview, result))
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
            key, ranks, result, sender = batch[0].key, batch[0].ranks, batch[0].result, batch[0].sender
            results = result if isinstance(result, LargeSum) else _small(batch)
            size, sent = sum([action.key.sizes[action.shard] for action in batch]), 0
            for rank in ranks:
                connection = self._connections(job, rank)
                if connection is None:
                    continue
                connection.filled.set()
                if rank == sender:
                    # It has the value; this tells it that all ranks have asked for it.
                    connection.queue.put(_empty(batch))
                    continue
                if isinstance(results, LargeSum):
                    connection.queue.put(results.at(connection.plane.locate(len(results.memory), results.offset)))
                else:
                    connection.queue.put(results)
                job.workers[rank].sent_bytes += size
                sent += size
            job.counters.of(broadcast=key.broadcast).sent_bytes += sent


def _batches(actions: Iterable[Deliver]) -> Iterator[list[Deliver]]:
    """Groups results for the same ranks: as many small ones as fit in one message, or one large one."""
    batch: list[Deliver] = []
    size = 0
    for action in actions:
        size += (more := action.key.sizes[action.shard])
        if batch and (
            size > BATCH_BYTES
            or len(batch) == MAX_BATCH
            or more >= LARGE_PAYLOAD_BYTES
            or action.ranks != batch[0].ranks
            or action.key.broadcast is not batch[0].key.broadcast
            or action.sender != batch[0].sender
        ):
            yield batch
            batch, size = [], more
        batch.append(action)
        if more >= LARGE_PAYLOAD_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _small(batch: Sequence[Deliver]) -> Results:
    """Small results with their values, in one message."""
    payloads: list[Any] = [action.result for action in batch]
    rows = [
        ShardRound(a.key.id, a.shard, a.round, a.priority, len(p), contributors=a.contributors)
        for a, p in zip(batch, payloads, strict=True)
    ]
    return Results(rows, payloads, priority=max([row.priority for row in rows]))


def _empty(batch: Sequence[Deliver]) -> Results:
    """The same results without their values, as the root of a broadcast is sent them."""
    rows = [ShardRound(action.key.id, action.shard, action.round, action.priority) for action in batch]
    return Results(rows, [_NOTHING] * len(rows), priority=max([row.priority for row in rows]))


def _row(action: Sum) -> ShardRound:
    """Which sum an action makes."""
    return ShardRound(action.key.id, action.shard, action.round, action.priority, contributors=action.contributors)
