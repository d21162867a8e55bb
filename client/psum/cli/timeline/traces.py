"""Timelines of ranks as their files have them: reading, bringing their clocks together, and making one of many."""

import json
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any, Final

from psum.client.observe import trace as _trace

#: Clocks of hosts are not this far apart, but runs are.
_SUSPICIOUS_SECONDS: Final = 300.0

Event = dict[str, Any]

#: A shard of a round: the key's name, whether it is broadcast, the round, the shard's number.
Place = tuple[str, bool, int, int]


class TraceError(Exception):
    """A file that cannot be used, or files that do not belong together; the text names them."""


class Trace:
    """One rank's timeline.

    Args:
        path: Where it is from, for errors.
        content: What is there.

    Attributes:
        path: Its file.
        rank, job, num_workers, worker: Whose it is.
        wall_seconds: The time of day at its 0, in seconds since 1970, by the clock of its host.
        full: Whether it ends early, since it had become too large.
        names: The events that name its rows.
        slices: Its slices, in microseconds.
        steps: Begin and end of each whole step, in microseconds.

    Raises:
        TraceError: It is no timeline of psum's.
    """

    def __init__(self, path: pathlib.Path, content: Any) -> None:
        self.path = path
        other = _about(path, content)
        self.rank: int = self._field(other, "rank", int)
        self.num_workers: int = self._field(other, "num_workers", int)
        self.job: str = self._field(other, "job", str)
        self.worker: str = self._field(other, "worker", str)
        self.full: bool = self._field(other, "full", bool)
        self.wall_seconds: float = self._field(other, "wall_seconds", (int, float))
        self.names: list[Event] = []
        self.slices: list[Event] = []
        self.steps: dict[int, tuple[float, float]] = {}
        for number, event in enumerate(self._field(content, "traceEvents", list)):
            if not self._take(event):
                raise TraceError(f"{path} is damaged: its event {number} is {str(event)[:100]}")

    def delivered(self) -> dict[Place, float]:
        """When each result came, in microseconds."""
        return {
            _place(event): event["ts"]
            for event in self.slices
            if event["cat"] == _trace.COPY_OUT.kind and "bytes" in event["args"]
        }

    def _field(self, where: Any, name: str, kind: Any) -> Any:
        value = where.get(name) if isinstance(where, dict) else None
        if (
            not isinstance(value, kind)
            or (isinstance(value, bool) and kind is not bool)
            or value in (math.inf, -math.inf)
        ):
            raise TraceError(f"{self.path} is damaged: {name} is {str(value)[:100]}")
        return value

    def _take(self, event: Any) -> bool:
        """Adds an event; returns False where it is none that psum writes."""
        if not isinstance(event, dict) or not isinstance(event.get("args"), dict):
            return False
        if event.get("ph") == "M":
            self.names.append(event)
            return True
        arguments = event["args"]
        if (
            event.get("ph") != "X"
            or not isinstance(event.get("name"), str)
            or not isinstance(event.get("cat"), str)
            or not all(_is_time(event.get(field)) for field in ("ts", "dur"))
            or not all(isinstance(event.get(field), int) for field in ("pid", "tid"))
            or not isinstance(arguments.get("step"), int)
            or not isinstance(arguments.get("round", 0), int)
            or not isinstance(arguments.get("shard", 0), int)
            or not isinstance(arguments.get("last_rank", 0), int)
            or (event["cat"] == _trace.WAIT.kind and "last_rank" not in arguments)
        ):
            return False
        if event["cat"] == _trace.STEP.kind:
            self.steps[arguments["step"]] = event["ts"], event["ts"] + event["dur"]
        self.slices.append(event)
        return True


def load(paths: Sequence[pathlib.Path]) -> list[Trace]:
    """The timelines of some ranks of one job, by rank.

    Raises:
        TraceError: One cannot be used, or they do not belong together.
    """
    by_rank: dict[int, Trace] = {}
    for path in paths:
        trace = Trace(path, _read(path))
        if (other := by_rank.get(trace.rank)) is not None:
            raise TraceError(f"{other.path} and {path} are both of rank {trace.rank}")
        by_rank[trace.rank] = trace
    first, *others = traces = [by_rank[rank] for rank in sorted(by_rank)]
    for trace in others:
        if (trace.job, trace.num_workers) != (first.job, first.num_workers):
            raise TraceError(
                f"{first.path} is of job {first.job!r} with {first.num_workers} workers, {trace.path} of job"
                f" {trace.job!r} with {trace.num_workers}"
            )
    for trace in traces:
        if not trace.steps:
            raise TraceError(f"{trace.path} has no whole step")
    return traces


def common_steps(traces: Sequence[Trace]) -> list[int]:
    """The steps that all have.

    Raises:
        TraceError: There are none.
    """
    steps = sorted(set.intersection(*(set(trace.steps) for trace in traces)))
    if not steps:
        ranges = (f"{trace.path} has {min(trace.steps)} to {max(trace.steps)}" for trace in traces)
        raise TraceError(f"there is no step that all files have: {', '.join(ranges)}")
    return steps


def offsets(traces: Sequence[Trace]) -> list[float]:
    """What is to be added to each timeline's microseconds, so that those of the first are meant.

    A result is sent to all ranks at once; so the median of how much later it came by another rank's clock is what that
    clock is ahead. This needs no clock that is right, and errs by how much longer results take to one rank.

    Raises:
        TraceError: Two have no round in common.
    """
    first = traces[0].delivered()
    found = [0.0]
    for trace in traces[1:]:
        differences = [first[place] - came for place, came in trace.delivered().items() if place in first]
        if not differences:
            raise TraceError(f"{traces[0].path} and {trace.path} have no round in common; are they of one run?")
        found.append(statistics.median(differences))
    return found


def doubts(traces: Sequence[Trace]) -> list[str]:
    """What speaks against that the files are of one run."""
    found = []
    for trace, offset in zip(traces, offsets(traces), strict=True):
        ahead = trace.wall_seconds - traces[0].wall_seconds - offset / 1e6
        if abs(ahead) > _SUSPICIOUS_SECONDS:
            found.append(
                f"{traces[0].path} and {trace.path} may be of different runs: their clocks differ by {abs(ahead):.0f} s"
            )
    return found


def merged(traces: Sequence[Trace]) -> dict[str, Any]:
    """One timeline of many, with a process per rank, by the clock of the first."""
    shifts = offsets(traces)
    begin = min(event["ts"] + shift for trace, shift in zip(traces, shifts, strict=True) for event in trace.slices)
    events: list[Event] = []
    for trace, shift in zip(traces, shifts, strict=True):
        # All slices of a rank by the same, and in eighths of a microsecond again: see psum.client.observe.trace.
        moved = round((shift - begin) * 8) / 8
        events += trace.names
        events += [{**event, "ts": max(0.0, event["ts"] + moved)} for event in trace.slices]
    other = {"merged": [trace.rank for trace in traces], "job": traces[0].job, "num_workers": traces[0].num_workers}
    return {"displayTimeUnit": "ms", "otherData": other, "traceEvents": events}


def _read(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path} is no JSON: {error}") from None


def _about(path: pathlib.Path, content: Any) -> dict[str, Any]:
    """What a file tells beside its events."""
    other = content.get("otherData") if isinstance(content, dict) else None
    if isinstance(other, dict) and "merged" in other:
        raise TraceError(f"{path} is a merged timeline; give the files that the ranks wrote")
    if not isinstance(other, dict) or "psum" not in other:
        raise TraceError(f"{path} is no timeline of psum's")
    if other["psum"] != _trace.FORMAT:
        raise TraceError(f"{path} has the form {str(other['psum'])[:20]}; this version of psum reads {_trace.FORMAT}")
    return other


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _place(event: Event) -> Place:
    arguments = event["args"]
    return event["name"], bool(arguments.get("broadcast")), arguments["round"], arguments["shard"]
