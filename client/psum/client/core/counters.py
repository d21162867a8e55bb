"""What a worker counts. The client's thread writes, any thread may read."""

import dataclasses
from collections import Counter
from collections.abc import Mapping

from psum.client.core.operation import Operation
from psum.runtime import ROUND_BOUNDS_SECONDS, Histogram


class OperationCounters:
    """Counters of one kind of operation."""

    __slots__ = ("exchange", "queue", "received_bytes", "sent_bytes", "total")

    def __init__(self) -> None:
        self.queue = Histogram(ROUND_BOUNDS_SECONDS)
        """Seconds that a shard waited to be sent, for its turn and for credit."""
        self.exchange = Histogram(ROUND_BOUNDS_SECONDS)
        """Seconds from sending a shard to its result: the wire, the other ranks, and the sum."""
        self.total = Histogram(ROUND_BOUNDS_SECONDS)
        """Seconds from the beginning of an operation to its complete result."""
        self.sent_bytes = 0
        """Payload sent, also again after a connection broke."""
        self.received_bytes = 0
        """Payload of results that completed a shard."""


class Counters:
    """Counters of one client."""

    def __init__(self) -> None:
        self.operations = {operation: OperationCounters() for operation in Operation}
        self.stalls = 0
        """How often shards had to wait for credit."""
        self.stall_seconds = 0.0
        """For how long, over all aggregators."""
        self.reconnects = 0
        """Streams that were opened again."""
        self.restores = 0
        """Sums that this worker gave back to an aggregator that was started again."""
        self.faults: Counter[str] = Counter()
        """Failures that aggregators reported, by kind."""


@dataclasses.dataclass(frozen=True, slots=True)
class Times:
    """A distribution of durations.

    Attributes:
        count: How many there were.
        seconds: Their sum.
        buckets: How many took at most this many seconds, by the bound as text, '+Inf' last.
    """

    count: int
    seconds: float
    buckets: Mapping[str, int]

    @property
    def mean_seconds(self) -> float:
        """The mean, 0 if there was none."""
        return self.seconds / self.count if self.count else 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class OperationStatistics:
    """Statistics of one kind of operation.

    Attributes:
        total: From the beginning of an operation to its complete result, one for each operation that succeeded. An
            operation begins when its value is there and the previous round of its key is complete.
        queue: How long each shard waited to be sent, for its turn and for credit.
        exchange: How long each shard's result took after that: the wire, the other ranks, and the sum.
        sent_bytes: Payload sent.
        received_bytes: Payload received.
    """

    total: Times
    queue: Times
    exchange: Times
    sent_bytes: int
    received_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Statistics:
    """What one client has done so far.

    Attributes:
        push_pull: Its push-pulls.
        broadcast: Its broadcasts.
        in_progress: Operations in progress.
        credit_stalls: How often shards had to wait for credit (PSUM_CREDIT_BYTES).
        credit_stall_seconds: For how long, over all aggregators.
        reconnects: Streams that were opened again.
        restored_sums: Sums that this worker gave back to an aggregator that was started again.
        faults: Failures that aggregators reported, by kind.
    """

    push_pull: OperationStatistics
    broadcast: OperationStatistics
    in_progress: int
    credit_stalls: int
    credit_stall_seconds: float
    reconnects: int
    restored_sums: int
    faults: Mapping[str, int]


def statistics(counters: Counters, in_progress: int) -> Statistics:
    """The statistics so far.

    Args:
        counters: What was counted.
        in_progress: Operations in progress.
    """
    return Statistics(
        push_pull=_operation(counters.operations[Operation.SUM]),
        broadcast=_operation(counters.operations[Operation.BROADCAST]),
        in_progress=in_progress,
        credit_stalls=counters.stalls,
        credit_stall_seconds=counters.stall_seconds,
        reconnects=counters.reconnects,
        restored_sums=counters.restores,
        faults=dict(counters.faults),
    )


def _operation(counters: OperationCounters) -> OperationStatistics:
    return OperationStatistics(
        total=_times(counters.total),
        queue=_times(counters.queue),
        exchange=_times(counters.exchange),
        sent_bytes=counters.sent_bytes,
        received_bytes=counters.received_bytes,
    )


def _times(histogram: Histogram) -> Times:
    buckets = {bound: int(count) for bound, count in histogram.buckets()}
    return Times(count=buckets["+Inf"], seconds=histogram.sum, buckets=buckets)
