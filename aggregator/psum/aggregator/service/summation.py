"""Makes the sums that a job asks for: small ones at once, large ones in threads and where they are sent from."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from operator import is_
from typing import Final, cast

from psum.aggregator.core.actions import Action, Sum, SumTogether
from psum.aggregator.core.job import Job
from psum.aggregator.core.layouts import Message
from psum.aggregator.service.delivery import Delivery
from psum.aggregator.sums.large_sum import LargeSum
from psum.aggregator.sums.pool import PriorityPool
from psum.aggregator.sums.small_sums import SmallSums
from psum.aggregator.sums.sums import add_up, room
from psum.planes import Arena
from psum.v1 import aggregator_pb2 as pb
from psum.wire import LARGE_PAYLOAD_BYTES, Codec, ShardRound, allocate, to_columns
from psum.wire.errors import InternalError

_log = logging.getLogger(__name__)

_NOTHING: Final = memoryview(b"")


class Summation:
    """Makes sums, and tells the job when they are made.

    Args:
        pool: Makes sums in threads.
        arena: A job's shared memory for sums, None if none of its workers shares memory.
        perform: Carries out the actions that follow when a sum is made.
        delivery: Delivers sums that were made together.
    """

    def __init__(
        self,
        pool: PriorityPool,
        arena: Callable[[Job], Arena | None],
        perform: Callable[[Job, Iterable[Action]], None],
        delivery: Delivery,
    ) -> None:
        self._pool = pool
        self._arena = arena
        self._perform = perform
        self._delivery = delivery

    def sum(self, job: Job, actions: Iterable[Sum]) -> None:
        """Makes the sums of one job, or has threads make the large ones. The actions that follow are performed."""
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
                self._perform(job, made)
                made = []
                self._sum_failed(job, action, error)
        if partial:
            made += job.forward(partial)
        self._perform(job, made)

    def sum_together(self, job: Job, action: SumTogether) -> None:
        """Makes small sums together, and puts them into the queues."""
        if job.failure is not None:
            return
        # An action before this one may have failed some of them.
        action.shards = shards = [each for each in action.shards if each[0].failure is None]
        if not shards:
            return
        ranks, contributions = action.roster.members, [shard.contributions for _, _, shard in shards]
        addends = [_joined([each[rank] for each in contributions], action.messages.get(rank)) for rank in ranks]
        try:
            sums = SmallSums(
                [key.element_type for key, _, _ in shards],
                addends,
                [key.id for key, _, _ in shards],
                [index for _, index, _ in shards],
                [shard.round for _, _, shard in shards],
                [shard.priority or 0 for _, _, shard in shards],
                [key.sizes[index] for key, index, _ in shards],
                brief=job.brief,
            )
        except Exception:
            # One after the other: the error names the one that cannot be summed.
            self.sum(job, [Sum(key, i, s.round, s.priority or 0, s.to_sum()) for key, i, s in shards])
            return
        job.summed_together(action, sums.payloads, time.monotonic())
        self._delivery.deliver_together(job, sums, ranks)

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
                self._perform(job, job.forward([(action, partial)]))
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
        self._perform(job, job.fail(failure, asyncio.get_running_loop().time()))

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
                self._perform(job, self._made(job, action, result, seconds))
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


def _row(action: Sum) -> ShardRound:
    """Which sum an action makes."""
    return ShardRound(action.key.id, action.shard, action.round, action.priority, contributors=action.contributors)


def _joined(addends: list[memoryview], message: Message | None) -> memoryview:
    """Contributions one after the other. They need not be copied if they are those of a message, in its order."""
    # Not `==`, which compares the values of views one by one: that takes a hundred times as long as joining them.
    if message is not None and len(message.pieces) == len(addends) and all(map(is_, message.pieces, addends)):
        return message.payload
    return memoryview(b"".join(addends))
