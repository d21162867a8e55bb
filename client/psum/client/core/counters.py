"""What a worker counts: written to in the client's thread, read in any."""

import dataclasses
from collections import Counter
from collections.abc import Mapping

from psum.client.core.keys import Operation
from psum.runtime import ROUND_BOUNDS_SECONDS, Histogram


class OperationCounters:
    """What became of one kind of operation."""

    __slots__ = ("exchange", "queue", "received_bytes", "sent_bytes", "total")

    def __init__(self) -> None:
        self.queue = Histogram(ROUND_BOUNDS_SECONDS)
        """Seconds that a shard waited to be sent: for its turn, and for credit."""
        self.exchange = Histogram(ROUND_BOUNDS_SECONDS)
        """Seconds from when a shard was sent to its result: the wire, the other ranks, and the sum."""
        self.total = Histogram(ROUND_BOUNDS_SECONDS)
        """Seconds from when an operation was begun to when its result was whole."""
        self.sent_bytes = 0
        self.received_bytes = 0


class Counters:
    """What one client did."""

    def __init__(self) -> None:
        self.operations = {operation: OperationCounters() for operation in Operation}
        self.stalls = 0
        """How often shards that could have been sent had to wait for credit."""
        self.stall_seconds = 0.0
        self.reconnects = 0
        self.restores = 0
        """Sums that were given back to an aggregator that was started again."""
        self.faults: Counter[str] = Counter()
        """What aggregators reported, by kind."""


@dataclasses.dataclass(frozen=True, slots=True)
class Times:
    """How long something took.

    Attributes:
        count: How often it happened.
        seconds: All of them together.
        buckets: How often it took at most that many seconds, by the bound as text, '+Inf' last.
    """

    count: int
    seconds: float
    buckets: Mapping[str, int]

    @property
    def mean_seconds(self) -> float:
        """The average, 0 where there was none."""
        return self.seconds / self.count if self.count else 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class OperationStatistics:
    """What became of one kind of operation.

    Attributes:
        total: From when an operation was begun (its value was there, the round before of its key was complete) to when
            its result was whole; one for each operation that succeeded.
        queue: Of that, how long each shard waited to be sent: for its turn, and for credit.
        exchange: How long each shard's result took from then on: the wire, the other ranks, and the sum.
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
    """What one client did until now.

    Attributes:
        push_pull: Its push-pulls.
        broadcast: Its broadcasts.
        in_progress: Operations under way now.
        credit_stalls: How often shards that could have been sent had to wait for credit (PSUM_CREDIT_BYTES).
        credit_stall_seconds: For how long, all aggregators together.
        reconnects: Streams that were opened anew.
        restored_sums: Sums that were given back to an aggregator that was started again.
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


def statistics(tally: Counters, in_progress: int) -> Statistics:
    """What was counted until now."""
    return Statistics(
        push_pull=_operation(tally.operations[Operation.SUM]),
        broadcast=_operation(tally.operations[Operation.BROADCAST]),
        in_progress=in_progress,
        credit_stalls=tally.stalls,
        credit_stall_seconds=tally.stall_seconds,
        reconnects=tally.reconnects,
        restored_sums=tally.restores,
        faults=dict(tally.faults),
    )


def _operation(tally: OperationCounters) -> OperationStatistics:
    return OperationStatistics(
        total=_times(tally.total),
        queue=_times(tally.queue),
        exchange=_times(tally.exchange),
        sent_bytes=tally.sent_bytes,
        received_bytes=tally.received_bytes,
    )


def _times(histogram: Histogram) -> Times:
    buckets = {bound: int(count) for bound, count in histogram.buckets()}
    return Times(count=buckets["+Inf"], seconds=histogram.sum, buckets=buckets)
