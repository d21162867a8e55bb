"""Align the clocks of timelines, and merge them into one."""

import statistics
from collections.abc import Sequence
from typing import Any, Final

from psum.cli.timeline.traces import Event, Trace, TraceError

#: Files whose clocks differ by more than this are probably of different runs.
_SUSPICIOUS_SECONDS: Final = 300.0


def offsets(traces: Sequence[Trace]) -> list[float]:
    """Return the microseconds to add to each timeline to convert it to the clock of the first.

    An aggregator sends each result to all ranks at the same time. So the median difference of arrival times is the
    difference of two clocks. It does not need correct clocks. Its error is the difference of the results' travel times.

    Raises:
        TraceError: Two timelines have no round in common.
    """
    first = traces[0].delivered()
    found = [0.0]
    for trace in traces[1:]:
        differences = [first[place] - came for place, came in trace.delivered().items() if place in first]
        if not differences:
            raise TraceError(f"{traces[0].path} and {trace.path} have no round in common; are they of the same run?")
        found.append(statistics.median(differences))
    return found


def doubts(traces: Sequence[Trace]) -> list[str]:
    """Return a sentence for each file that is probably of another run than the first."""
    found = []
    for trace, offset in zip(traces, offsets(traces), strict=True):
        ahead = trace.wall_seconds - traces[0].wall_seconds - offset / 1e6
        if abs(ahead) > _SUSPICIOUS_SECONDS:
            found.append(
                f"{traces[0].path} and {trace.path} may be of different runs: their clocks differ by {abs(ahead):.0f} s"
            )
    return found


def merged(traces: Sequence[Trace]) -> dict[str, Any]:
    """Merge timelines into one with a process per rank, by the clock of the first."""
    shifts = offsets(traces)
    begin = min(event["ts"] + shift for trace, shift in zip(traces, shifts, strict=True) for event in trace.slices)
    events: list[Event] = []
    for trace, shift in zip(traces, shifts, strict=True):
        # All events of a rank move by the same amount, a multiple of 1/8 µs: see psum.client.observe.trace.
        moved = round((shift - begin) * 8) / 8
        events += trace.names
        events += [{**event, "ts": max(0.0, event["ts"] + moved)} for event in (*trace.slices, *trace.marks)]
    other = {"merged": [trace.rank for trace in traces], "job": traces[0].job, "num_workers": traces[0].num_workers}
    return {"displayTimeUnit": "ms", "otherData": other, "traceEvents": events}
