"""What an aggregator counts, per job: written to on the event loop as things happen, read when somebody asks.

Nothing here is per key or per worker, and jobs that ended are forgotten: what is exported does not grow.
"""

from collections import Counter, OrderedDict
from typing import Final

from psum.aggregator.core.round import Verdict
from psum.runtime import ROUND_BOUNDS_SECONDS, Histogram

#: How long a job that ended is still exported, so that what it did last is scraped.
KEEP_SECONDS: Final = 300.0

#: A shard has 2 MiB by default. Its sum takes about a millisecond for every few workers.
_SUM_BOUNDS_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)

#: How many jobs that ended are exported at most, however many there were in that time.
_MAX_ENDED: Final = 100


# Found faster than as attributes of the class, which are asked for with each contribution.
_TAKE: Final = Verdict.TAKE
_COMPLETE: Final = Verdict.COMPLETE


class OperationCounters:
    """What a job did with one operation."""

    __slots__ = ("contributions", "duration", "received_bytes", "sent_bytes", "summing", "waiting")

    def __init__(self) -> None:
        self.contributions = 0
        """Those that counted."""
        self.received_bytes = 0
        self.sent_bytes = 0
        self.waiting = Histogram(ROUND_BOUNDS_SECONDS)
        """Seconds from a round's first contribution to its last."""
        self.summing = Histogram(_SUM_BOUNDS_SECONDS)
        """Seconds that a sum took to make; without the small ones."""
        self.duration = Histogram(ROUND_BOUNDS_SECONDS)
        """Seconds from a round's first contribution to its result."""


class JobCounters:
    """What one job did, over all jobs of its name that came one soon after another."""

    __slots__ = ("broadcast", "duplicates", "ended_at", "faults", "reconnects", "restores", "returned_credits", "sum")

    def __init__(self) -> None:
        self.sum = OperationCounters()
        self.broadcast = OperationCounters()
        self.duplicates = 0
        """Contributions that came once more."""
        self.restores = 0
        """Sums that workers gave back to this process."""
        self.reconnects = 0
        """Streams that were opened anew."""
        self.returned_credits = 0
        """Contributions whose credit was returned before their round was complete, since it waited for others."""
        self.faults: Counter[str] = Counter()
        """What failed, by kind."""
        self.ended_at: float | None = None
        """When the job ended, None while it has not."""

    def of(self, *, broadcast: bool) -> OperationCounters:
        """That of one operation."""
        return self.broadcast if broadcast else self.sum

    def contributed(self, broadcast: bool, verdict: Verdict, size: int, waited: float) -> None:
        """A worker contributed this many bytes to a round, this long after that round's first contribution."""
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
    """Those of all jobs by name."""

    def __init__(self) -> None:
        self._jobs: dict[str, JobCounters] = {}
        self._ended: OrderedDict[str, JobCounters] = OrderedDict()
        """Those of jobs that ended, the one that ended first first."""
        self._forgotten_received_bytes = 0
        self._forgotten_sent_bytes = 0
        self.refusals: Counter[str] = Counter()
        """Streams that were refused before they belonged to a job, by kind of fault."""

    def __len__(self) -> int:
        return len(self._jobs)

    def begin(self, name: str) -> JobCounters:
        """A job begins. One whose predecessor of the same name is still exported goes on counting from there."""
        self._ended.pop(name, None)
        tally = self._jobs.setdefault(name, JobCounters())
        tally.ended_at = None
        return tally

    def end(self, name: str, now: float) -> None:
        """A job ended."""
        if (tally := self._jobs.get(name)) is not None and tally.ended_at is None:
            tally.ended_at = now
            self._ended[name] = tally

    def expire(self, now: float) -> None:
        """Forgets what ended long ago."""
        while self._ended:
            name, tally = next(iter(self._ended.items()))
            if len(self._ended) <= _MAX_ENDED and now - (tally.ended_at or now) <= KEEP_SECONDS:
                return
            del self._ended[name], self._jobs[name]
            for operation in (tally.sum, tally.broadcast):
                self._forgotten_received_bytes += operation.received_bytes
                self._forgotten_sent_bytes += operation.sent_bytes

    def items(self) -> list[tuple[str, JobCounters]]:
        """Those of all jobs that are exported."""
        return list(self._jobs.items())

    def totals(self) -> tuple[int, int]:
        """Payload bytes received and sent since this process was started."""
        operations = [o for tally in self._jobs.values() for o in (tally.sum, tally.broadcast)]
        return (
            self._forgotten_received_bytes + sum(o.received_bytes for o in operations),
            self._forgotten_sent_bytes + sum(o.sent_bytes for o in operations),
        )
