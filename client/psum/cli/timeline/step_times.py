"""Where the time of each step goes, computed from the timelines of some ranks."""

import dataclasses
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from psum.cli.timeline.traces import LastRanks, Trace, common_steps
from psum.client.observe.trace import COPY_IN, EXCHANGE, FORWARD, QUEUE, STEP, SUM, WAIT, WIRE_OUT

#: The kinds of time that a step consists of, with their names for people.
KINDS: Final[Mapping[str, str]] = {
    "computing": "computing",
    WAIT.kind: "waiting",
    WIRE_OUT.kind: "wire",
    SUM.kind: "summing",
    FORWARD.kind: "forwarding",
    COPY_IN.kind: "copying",
    QUEUE.kind: "queued",
    EXCHANGE.kind: "unknown",
}

#: The kinds of time that can make a rank late.
_CAUSES: Final = ("computing", WIRE_OUT.kind, COPY_IN.kind, QUEUE.kind)

#: A rank is reported as slow if the others spend at least this share of their time waiting for it.
_NOTABLE_SHARE: Final = 0.05

#: A cause is reported if it explains at least this share of the others' waiting.
_CAUSAL_SHARE: Final = 0.25


@dataclasses.dataclass(slots=True)
class StepTimes:
    """The time of one step of one rank, in seconds.

    Each moment counts as what the rank's shards did then. If shards did several things, the moment is divided in
    proportion to the number of shards. Queued shards wait for the shards under way, so they count only while there are
    no others. Without any shard, the rank was computing or busy with other work.

    Attributes:
        seconds: The time by kind.
        waited_for: The part of the waiting by the rank that was waited for.
    """

    seconds: defaultdict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    waited_for: defaultdict[int, float] = dataclasses.field(default_factory=lambda: defaultdict(float))

    @property
    def total(self) -> float:
        """The duration of the step."""
        return sum(self.seconds.values())

    def add(self, lasted: float, shards: Mapping[str, int], waits: Mapping[int, int]) -> None:
        """Add an interval.

        Args:
            lasted: The length of the interval.
            shards: The number of shards in each stage.
            waits: The number of waiting shards by the rank that they waited for.
        """
        queued = shards.get(QUEUE.kind, 0)
        under_way = sum(shards.values()) - queued
        if not under_way:
            self.seconds[QUEUE.kind if queued else "computing"] += lasted
            return
        for kind, count in shards.items():
            if kind != QUEUE.kind and count:
                self.seconds[kind] += lasted * count / under_way
        for rank, count in waits.items():
            if count:
                self.waited_for[rank] += lasted * count / under_way


@dataclasses.dataclass(frozen=True, slots=True)
class Slowest:
    """A rank that the others waited for.

    Attributes:
        rank: The rank.
        steps: The number of steps in which the others waited longer for it than for any other rank.
        waiting: How long each other rank waited for it, in seconds per step on average.
        cause: The kind of time that it spends more of than the others, '' if unknown.
        own: Its own time of that kind, in seconds per step.
        usual: The other ranks' median time of that kind, in seconds per step.
    """

    rank: int
    steps: int
    waiting: float
    cause: str = ""
    own: float = 0.0
    usual: float = 0.0


class Report:
    """Where the time went in the steps that all timelines share.

    Attributes:
        steps: The numbers of these steps.
        by_rank: The times by rank and step.

    Raises:
        TraceError: The timelines share no step.
    """

    def __init__(self, traces: Sequence[Trace]) -> None:
        self.steps = common_steps(traces)
        last_ranks = LastRanks(traces)
        self.by_rank = {trace.rank: step_times(trace, self.steps, last_ranks) for trace in traces}

    def mean(self, ranks: Iterable[int] | None = None, steps: Iterable[int] | None = None) -> dict[str, float]:
        """Return the average time of a step by kind, in seconds, over the given ranks and steps or over all."""
        cells = [
            self.by_rank[rank][step]
            for rank in (self.by_rank if ranks is None else ranks)
            for step in (self.steps if steps is None else steps)
        ]
        return {kind: sum(cell.seconds[kind] for cell in cells) / len(cells) for kind in KINDS}

    def waited_for(self, steps: Sequence[int]) -> dict[int, float]:
        """Return by rank how long each other rank waited for it on average, in seconds per step."""
        waited: defaultdict[int, float] = defaultdict(float)
        for times in self.by_rank.values():
            for step in steps:
                for rank, seconds in times[step].waited_for.items():
                    waited[rank] += seconds
        return {
            rank: seconds / len(steps) / max(1, len(self.by_rank.keys() - {rank})) for rank, seconds in waited.items()
        }

    def slowest_in(self, step: int) -> int | None:
        """Return the rank that the others waited for longest in a step, or None if they hardly waited."""
        return next((rank for rank, _ in self._notable([step])), None)

    def slowest(self) -> list[Slowest]:
        """Return the ranks that the others noticeably waited for, the longest waiting first."""
        firsts = Counter(self.slowest_in(step) for step in self.steps)
        return [
            self._explained(Slowest(rank, steps=firsts[rank], waiting=waiting))
            for rank, waiting in self._notable(self.steps)
        ]

    def _notable(self, steps: Sequence[int]) -> list[tuple[int, float]]:
        """Return the ranks that the others waited long for, the longest first, with the seconds per step."""
        least = _NOTABLE_SHARE * sum(self.mean(steps=steps).values())
        waited = sorted(self.waited_for(steps).items(), key=lambda item: (-item[1], item[0]))
        return [(rank, seconds) for rank, seconds in waited if seconds and seconds >= least]

    def _explained(self, found: Slowest) -> Slowest:
        """Add the kind of time that the rank spends more of than the others, if it explains the waiting."""
        others = self.by_rank.keys() - {found.rank}
        if found.rank not in self.by_rank or not others:
            return found
        own = self.mean([found.rank])
        usual = {kind: statistics.median(self.mean([other])[kind] for other in others) for kind in _CAUSES}
        cause = max(_CAUSES, key=lambda kind: own[kind] - usual[kind])
        if own[cause] - usual[cause] < _CAUSAL_SHARE * found.waiting:
            return found
        return dataclasses.replace(found, cause=cause, own=own[cause], usual=usual[cause])


def step_times(trace: Trace, steps: Iterable[int], last_ranks: LastRanks) -> dict[int, StepTimes]:
    """Return the times of these steps on one rank, by step."""
    found = {step: StepTimes() for step in steps}
    counted = KINDS.keys() - {"computing"}
    # Nothing changes between two moments at which a stage or step begins or ends.
    changes: list[tuple[float, int, str, int]] = []
    for event in trace.slices:
        if event["cat"] in counted and event["dur"]:
            last_rank = last_ranks.of(event) if event["cat"] == WAIT.kind else -1
            changes.append((event["ts"], 1, event["cat"], last_rank))
            changes.append((event["ts"] + event["dur"], -1, event["cat"], last_rank))
    for step in found:
        begin, end = trace.steps[step]
        if begin < end:
            changes.append((begin, 1, STEP.kind, step))
            changes.append((end, -1, STEP.kind, step))
    shards: Counter[str] = Counter()
    waits: Counter[int] = Counter()
    current: int | None = None
    now = 0.0
    for moment, change, kind, number in sorted(changes):
        if current is not None and moment > now:
            found[current].add((moment - now) / 1e6, shards, waits)
        now = moment
        if kind == STEP.kind:
            # Ends sort before beginnings at the same moment.
            current = number if change > 0 else None
            continue
        shards[kind] += change
        if kind == WAIT.kind:
            waits[number] += change
    return found
