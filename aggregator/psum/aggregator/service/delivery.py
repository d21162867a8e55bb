"""Delivers sums: puts the messages with results into the queues of the workers that wait for them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from psum.aggregator.core.actions import Deliver
from psum.aggregator.core.job import Job
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.send_queue import MAX_BATCH
from psum.aggregator.sums.large_sum import LargeSum
from psum.aggregator.sums.results import Results
from psum.aggregator.sums.small_sums import SmallSums
from psum.wire import BATCH_BYTES, LARGE_PAYLOAD_BYTES, ShardRound

_NOTHING: Final = memoryview(b"")


class Delivery:
    """Puts results into queues, and counts what is sent.

    Args:
        connections: The connection of a job's rank, None if it is not connected.
    """

    def __init__(self, connections: Callable[[Job, int], WorkerConnection | None]) -> None:
        self._connections = connections

    def deliver(self, job: Job, actions: Iterable[Deliver]) -> None:
        """Delivers results of one job in order. Consecutive small ones for the same ranks share a message."""
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

    def deliver_together(self, job: Job, sums: SmallSums, ranks: Iterable[int]) -> None:
        """Delivers small sums that were made together, as one message to each rank."""
        for rank in ranks:
            if (connection := self._connections(job, rank)) is not None:
                connection.filled.set()
                connection.queue.put(sums)
                job.workers[rank].sent_bytes += sums.size
                job.counters.sum.sent_bytes += sums.size


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
