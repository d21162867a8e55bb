"""Where the time of each step went, from the timelines of some ranks."""

import dataclasses
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from psum.cli.timeline.traces import Trace, common_steps
from psum.client.observe import trace as _trace

#: What the time of a step is divided into, each with its name for people.
KINDS: Final[Mapping[str, str]] = {
    "computing": "computing",
    _trace.WAIT.kind: "waiting",
    _trace.WIRE_OUT.kind: "wire",
    _trace.SUM.kind: "summing",
    _trace.COPY_IN.kind: "copying",
    _trace.QUEUE.kind: "queued",
    _trace.EXCHANGE.kind: "unknown",
}

#: Where the cause of a rank's being late can be.
_CAUSES: Final = ("computing", _trace.WIRE_OUT.kind, _trace.COPY_IN.kind, _trace.QUEUE.kind)

#: A rank is only named where the others lost this part of their time to it.
_NOTABLE: Final = 0.05


#: What it does more than the others is only named where it explains this part of their waiting.
_CAUSAL: Final = 0.25


@dataclasses.dataclass(slots=True)
class StepTimes:
    """One step of one rank, in seconds.

    Each moment of it belongs to what the rank's shards were doing then; where they did several things at once, to each
    in proportion to how many did it. Shards that were queued count only while no other was under way, since it is for
    those that they wait. With no shard anywhere, the rank was computing, or doing something else of its own.

    Attributes:
        seconds: By kind.
        waited_for: Of the waiting, how much was for which rank.
    """

    seconds: defaultdict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    waited_for: defaultdict[int, float] = dataclasses.field(default_factory=lambda: defaultdict(float))

    @property
    def total(self) -> float:
        """How long it took."""
        return sum(self.seconds.values())

    def add(self, lasted: float, shards: Mapping[str, int], waits: Mapping[int, int]) -> None:
        """For this long so many shards were in each stage, those that waited by the rank they waited for."""
        queued = shards.get(_trace.QUEUE.kind, 0)
        under_way = sum(shards.values()) - queued
        if not under_way:
            self.seconds[_trace.QUEUE.kind if queued else "computing"] += lasted
            return
        for kind, count in shards.items():
            if kind != _trace.QUEUE.kind and count:
                self.seconds[kind] += lasted * count / under_way
        for rank, count in waits.items():
            if count:
                self.waited_for[rank] += lasted * count / under_way


@dataclasses.dataclass(frozen=True, slots=True)
class Slowest:
    """A rank for which the others waited.

    Attributes:
        rank: Which.
        steps: In how many steps the others waited longer for it than for any other rank.
        waiting: How long each of the others waited for it, in seconds a step on average.
        cause: The kind of time of which it needs more than the others, '' where that is not known.
        own: How much of that it needs, in seconds a step.
        usual: How much the others need: their median.
    """

    rank: int
    steps: int
    waiting: float
    cause: str = ""
    own: float = 0.0
    usual: float = 0.0


class Report:
    """Where the time went in the steps that all timelines have.

    Attributes:
        steps: Those steps.
        by_rank: The times by rank and step.

    Raises:
        TraceError: They have no step in common.
    """

    def __init__(self, traces: Sequence[Trace]) -> None:
        self.steps = common_steps(traces)
        self.by_rank = {trace.rank: step_times(trace, self.steps) for trace in traces}

    def mean(self, ranks: Iterable[int] | None = None, steps: Iterable[int] | None = None) -> dict[str, float]:
        """How long a step took on average over ranks and steps, by default all of them, by kind, in seconds."""
        cells = [
            self.by_rank[rank][step]
            for rank in (self.by_rank if ranks is None else ranks)
            for step in (self.steps if steps is None else steps)
        ]
        return {kind: sum(cell.seconds[kind] for cell in cells) / len(cells) for kind in KINDS}

    def waited_for(self, steps: Sequence[int]) -> dict[int, float]:
        """How long each of the other ranks waited for a rank on average, in seconds a step."""
        waited: defaultdict[int, float] = defaultdict(float)
        for times in self.by_rank.values():
            for step in steps:
                for rank, seconds in times[step].waited_for.items():
                    waited[rank] += seconds
        return {
            rank: seconds / len(steps) / max(1, len(self.by_rank.keys() - {rank})) for rank, seconds in waited.items()
        }

    def slowest_in(self, step: int) -> int | None:
        """The rank that was waited for longest in a step, None where hardly anybody waited."""
        return next((rank for rank, _ in self._notable([step])), None)

    def slowest(self) -> list[Slowest]:
        """The ranks that were waited for more than a little, the one that was waited for longest first."""
        firsts = Counter(self.slowest_in(step) for step in self.steps)
        return [
            self._explained(Slowest(rank, steps=firsts[rank], waiting=waiting))
            for rank, waiting in self._notable(self.steps)
        ]

    def _notable(self, steps: Sequence[int]) -> list[tuple[int, float]]:
        """Ranks for which the others waited long, the longest first, with how long: in seconds a step."""
        least = _NOTABLE * sum(self.mean(steps=steps).values())
        waited = sorted(self.waited_for(steps).items(), key=lambda item: (-item[1], item[0]))
        return [(rank, seconds) for rank, seconds in waited if seconds and seconds >= least]

    def _explained(self, found: Slowest) -> Slowest:
        """With what the rank does for longer than the others, where that is known."""
        others = self.by_rank.keys() - {found.rank}
        if found.rank not in self.by_rank or not others:
            return found
        own = self.mean([found.rank])
        usual = {kind: statistics.median(self.mean([other])[kind] for other in others) for kind in _CAUSES}
        cause = max(_CAUSES, key=lambda kind: own[kind] - usual[kind])
        if own[cause] - usual[cause] < _CAUSAL * found.waiting:
            return found
        return dataclasses.replace(found, cause=cause, own=own[cause], usual=usual[cause])


def step_times(trace: Trace, steps: Iterable[int]) -> dict[int, StepTimes]:
    """Where the time of these steps went on one rank."""
    found = {step: StepTimes() for step in steps}
    counted = KINDS.keys() - {"computing"}
    # Stages and steps begin and end; between two such moments nothing changes.
    changes: list[tuple[float, int, str, int]] = []
    for event in trace.slices:
        if event["cat"] in counted and event["dur"]:
            last_rank = event["args"].get("last_rank", -1) if event["cat"] == _trace.WAIT.kind else -1
            changes.append((event["ts"], 1, event["cat"], last_rank))
            changes.append((event["ts"] + event["dur"], -1, event["cat"], last_rank))
    for step in found:
        begin, end = trace.steps[step]
        if begin < end:
            changes.append((begin, 1, _trace.STEP.kind, step))
            changes.append((end, -1, _trace.STEP.kind, step))
    shards: Counter[str] = Counter()
    waits: Counter[int] = Counter()
    current: int | None = None
    now = 0.0
    for moment, change, kind, number in sorted(changes):
        if current is not None and moment > now:
            found[current].add((moment - now) / 1e6, shards, waits)
        now = moment
        if kind == _trace.STEP.kind:
            # What ends at a moment is sorted before what begins then.
            current = number if change > 0 else None
            continue
        shards[kind] += change
        if kind == _trace.WAIT.kind:
            waits[number] += change
    return found
