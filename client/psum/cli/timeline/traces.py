"""Read the timelines of ranks."""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, Final

from psum.client.observe.trace import COPY_OUT, FORMAT, MEMBERS, STEP, WAIT

#: The most levels of relays that are looked through.
_MAX_LEVELS: Final = 8

Event = dict[str, Any]

#: One round of a shard: the key's name, whether it is broadcast, the round, the shard's number.
Place = tuple[str, bool, int, int]


class TraceError(Exception):
    """A file cannot be used, or files do not belong together. The text names the files."""


class Trace:
    """The timeline of one rank.

    Args:
        path: The file, for errors.
        content: The parsed JSON of the file.

    Attributes:
        path: The file.
        rank, job, num_workers, worker: The rank's own description.
        wall_seconds: The time at the timeline's 0 by its host's clock, in seconds since 1970.
        full: Whether the timeline ends early because it had become too large.
        names: The events that name its rows.
        slices: Its slices, with times in microseconds.
        marks: The changes of the members of an elastic job.
        steps: Begin and end of each complete step, in microseconds.

    Raises:
        TraceError: The content is not a timeline of psum.
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
        self.marks: list[Event] = []
        self.steps: dict[int, tuple[float, float]] = {}
        for number, event in enumerate(self._field(content, "traceEvents", list)):
            if not self._take(event):
                raise TraceError(f"{path} is damaged: its event {number} is {str(event)[:100]}")

    def delivered(self) -> dict[Place, float]:
        """Return when each result arrived, in microseconds."""
        return {
            _place(event): event["ts"]
            for event in self.slices
            if event["cat"] == COPY_OUT.kind and "bytes" in event["args"]
        }

    def last_ranks(self) -> dict[Place, int]:
        """Return the rank that each shard of each round waited for, as this rank was told."""
        return {_place(event): event["args"]["last_rank"] for event in self.slices if event["cat"] == WAIT.kind}

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
        """Add an event. Return False if psum writes no such event."""
        if not isinstance(event, dict) or not isinstance(event.get("args"), dict):
            return False
        if event.get("ph") == "M":
            self.names.append(event)
            return True
        arguments = event["args"]
        if event.get("ph") == "i":
            self.marks.append(event)
            return event.get("cat") == MEMBERS and isinstance(event.get("name"), str) and _is_time(event.get("ts"))
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
            or (event["cat"] == WAIT.kind and "last_rank" not in arguments)
        ):
            return False
        if event["cat"] == STEP.kind:
            self.steps[arguments["step"]] = event["ts"], event["ts"] + event["dur"]
        self.slices.append(event)
        return True


def load(paths: Sequence[pathlib.Path]) -> list[Trace]:
    """Read the timelines of some ranks of one job, sorted by rank.

    Raises:
        TraceError: A file cannot be used, or the files do not belong together.
    """
    by_rank: dict[int, Trace] = {}
    for path in paths:
        trace = Trace(path, _read(path))
        if (other := by_rank.get(trace.rank)) is not None:
            raise TraceError(f"{other.path} and {path} are both of rank {trace.rank}; pass the files of one run")
        by_rank[trace.rank] = trace
    first, *others = traces = [by_rank[rank] for rank in sorted(by_rank)]
    for trace in others:
        if (trace.job, trace.num_workers) != (first.job, first.num_workers):
            raise TraceError(
                f"{first.path} is of job {first.job!r} with {first.num_workers} workers, but {trace.path} is of job"
                f" {trace.job!r} with {trace.num_workers}"
            )
    for trace in traces:
        if not trace.steps:
            raise TraceError(f"{trace.path} has no complete step")
    return traces


class LastRanks:
    """Which rank each shard of each round waited for.

    An owner of shards knows a group of ranks behind a relay only by its first rank, and names that one to ranks of
    other groups. The ranks of the group itself are told which of them was the last.

    Args:
        traces: The timelines of some ranks.
    """

    def __init__(self, traces: Sequence[Trace]) -> None:
        self._told = {trace.rank: trace.last_ranks() for trace in traces}

    def of(self, waiting: Event) -> int:
        """Return the rank that the slice of a wait, from any of the timelines, waited for."""
        rank: int = waiting["args"]["last_rank"]
        place = _place(waiting)
        for _ in range(_MAX_LEVELS):
            rank, before = self._told.get(rank, {}).get(place, rank), rank
            if rank == before:
                break
        return rank


def common_steps(traces: Sequence[Trace]) -> list[int]:
    """Return the steps that all timelines have.

    Raises:
        TraceError: There is no such step.
    """
    steps = sorted(set.intersection(*(set(trace.steps) for trace in traces)))
    if not steps:
        ranges = (f"{trace.path} has {min(trace.steps)} to {max(trace.steps)}" for trace in traces)
        raise TraceError(f"the files have no step in common: {', '.join(ranges)}")
    return steps


def _read(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path} is not JSON: {error}") from None


def _about(path: pathlib.Path, content: Any) -> dict[str, Any]:
    """Return a file's description of its rank."""
    other = content.get("otherData") if isinstance(content, dict) else None
    if isinstance(other, dict) and "merged" in other:
        raise TraceError(f"{path} is a merged timeline; pass the files that the ranks wrote")
    if not isinstance(other, dict) or "psum" not in other:
        raise TraceError(f"{path} is not a timeline of psum")
    if other["psum"] != FORMAT:
        raise TraceError(f"{path} has format {str(other['psum'])[:20]}; this version of psum reads format {FORMAT}")
    return other


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _place(event: Event) -> Place:
    arguments = event["args"]
    return event["name"], bool(arguments.get("broadcast")), arguments["round"], arguments["shard"]
