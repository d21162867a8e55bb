"""An aggregator's counters, per job: incremented on the event loop, read by the exporters.

There is nothing per key or per worker, and ended jobs are dropped, so the number of exported series stays bounded.
"""

from collections import Counter, OrderedDict
from typing import Final

from psum.aggregator.core.round import Verdict
from psum.runtime import ROUND_BOUNDS_SECONDS, Histogram

#: How long an ended job is still exported, so that its last values are scraped.
KEEP_SECONDS: Final = 300.0

#: A shard has 2 MiB by default. Its sum takes about a millisecond for every few workers.
_SUM_BOUNDS_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)

#: The most ended jobs that are exported.
_MAX_ENDED: Final = 100


# Cached at module level: these lookups are on the hot path.
_TAKE: Final = Verdict.TAKE
_COMPLETE: Final = Verdict.COMPLETE


class OperationCounters:
    """The counters of one job for one operation."""

    __slots__ = ("contributions", "duration", "received_bytes", "sent_bytes", "summing", "waiting")

    def __init__(self) -> None:
        self.contributions = 0
        """Contributions that counted."""
        self.received_bytes = 0
        """Payload received, duplicates included."""
        self.sent_bytes = 0
        """Payload sent, to all ranks together."""
        self.waiting = Histogram(ROUND_BOUNDS_SECONDS)
        """Seconds from a round's first contribution to its last."""
        self.summing = Histogram(_SUM_BOUNDS_SECONDS)
        """Seconds that a sum took; small shards are not counted."""
        self.duration = Histogram(ROUND_BOUNDS_SECONDS)
        """Seconds from a round's first contribution to its result."""


class JobCounters:
    """The counters of one job. A job continues those of an earlier one of its name that is still exported."""

    __slots__ = (
        "broadcast",
        "duplicates",
        "ended_at",
        "faults",
        "losses",
        "reconnects",
        "restores",
        "returned_credits",
        "sum",
    )

    def __init__(self) -> None:
        self.sum = OperationCounters()
        self.broadcast = OperationCounters()
        self.duplicates = 0
        """Contributions that came a second time."""
        self.restores = 0
        """Sums that workers gave back to this process."""
        self.reconnects = 0
        """Streams that workers opened again."""
        self.returned_credits = 0
        """Contributions whose credit was returned before their round was complete, because it waited for others."""
        self.faults: Counter[str] = Counter()
        """Failures by kind."""
        self.losses: Counter[str] = Counter()
        """Ranks of an elastic job that were lost, by reason."""
        self.ended_at: float | None = None
        """When the job ended; None while it is in progress."""

    def of(self, *, broadcast: bool) -> OperationCounters:
        """The counters of one operation."""
        return self.broadcast if broadcast else self.sum

    def contributed(self, broadcast: bool, verdict: Verdict, size: int, waited: float) -> None:
        """Counts a contribution of this many bytes that came this many seconds after its round's first one."""
        operation = self.broadcast if broadcast else self.sum
        operation.received_bytes += size
        if verdict is _TAKE:
            operation.contributions += 1
        elif verdict is _COMPLETE:
            operation.contributions += 1
            operation.waiting.observe(waited)
        elif verdict is not Verdict.REFUSE:
            self.duplicates += 1


class AllCounters:
    """The counters of all jobs, by name."""

    def __init__(self) -> None:
        self._jobs: dict[str, JobCounters] = {}
        self._ended: OrderedDict[str, JobCounters] = OrderedDict()
        """The counters of ended jobs, the job that ended first comes first."""
        self._forgotten_received_bytes = 0
        self._forgotten_sent_bytes = 0
        self.refusals: Counter[str] = Counter()
        """Streams that were refused before they belonged to a job, by kind of fault."""

    def __len__(self) -> int:
        return len(self._jobs)

    def begin(self, name: str) -> JobCounters:
        """The counters for a job that begins; those of its predecessor if that is still exported."""
        self._ended.pop(name, None)
        counters = self._jobs.setdefault(name, JobCounters())
        counters.ended_at = None
        return counters

    def end(self, name: str, now: float) -> None:
        """Notes that a job has ended."""
        if (counters := self._jobs.get(name)) is not None and counters.ended_at is None:
            counters.ended_at = now
            self._ended[name] = counters

    def expire(self, now: float) -> None:
        """Drops the counters of jobs that ended long ago."""
        while self._ended:
            name, counters = next(iter(self._ended.items()))
            if len(self._ended) <= _MAX_ENDED and now - (counters.ended_at or now) <= KEEP_SECONDS:
                return
            del self._ended[name], self._jobs[name]
            for operation in (counters.sum, counters.broadcast):
                self._forgotten_received_bytes += operation.received_bytes
                self._forgotten_sent_bytes += operation.sent_bytes

    def items(self) -> list[tuple[str, JobCounters]]:
        """The name and the counters of each exported job."""
        return list(self._jobs.items())

    def totals(self) -> tuple[int, int]:
        """Payload bytes received and sent since this process started."""
        operations = [o for counters in self._jobs.values() for o in (counters.sum, counters.broadcast)]
        return (
            self._forgotten_received_bytes + sum(o.received_bytes for o in operations),
            self._forgotten_sent_bytes + sum(o.sent_bytes for o in operations),
        )
