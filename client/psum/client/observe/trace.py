"""Writes a timeline: a file in the trace event format, which Perfetto and Chrome open.

A rank is a process of the format. A stage is a row of its threads: slices of one thread must not overlap, so a stage
has as many threads as it had shards at once. A slice has the name of its key, and its step, round and shard as
arguments. `otherData` has what `psum timeline` needs besides.
"""

import heapq
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from psum.client.core.recorder import Recorder, ShardRecord

#: Increased when readers of this format would misread a file.
FORMAT: Final = 1


class Stage(NamedTuple):
    """A row of threads.

    Attributes:
        number: Its place, from the top.
        kind: The category of its slices.
        label: The name of its first thread.
    """

    number: int
    kind: str
    label: str


STEP: Final = Stage(0, "step", "step")
#: From the program's call until the value is there: MXNet computes it, or copies it from its device.
VALUE: Final = Stage(1, "value", "value")
QUEUE: Final = Stage(2, "queue", "queue")
COPY_IN: Final = Stage(3, "copy", "copy in")
WIRE_OUT: Final = Stage(4, "wire", "wire, to the aggregator")
WAIT: Final = Stage(5, "wait", "wait for the last rank")
SUM: Final = Stage(6, "sum", "sum")
#: Between a relay and the shard's aggregator, in both directions.
FORWARD: Final = Stage(7, "forward", "forward")
WIRE_BACK: Final = Stage(8, "wire", "wire, from the aggregator")
#: The stages from WIRE_OUT on in one, if the aggregator did not tell how long it waited and summed.
EXCHANGE: Final = Stage(9, "exchange", "wire and round")
COPY_OUT: Final = Stage(10, "copy", "copy out")

#: The most threads of one stage; there are fewer shards.
_THREADS: Final = 100_000

#: The category of changes of the members of an elastic job.
MEMBERS: Final = "members"

Event = dict[str, Any]


class Slice(NamedTuple):
    """The time of a shard, operation or step in one stage; in seconds."""

    start: float
    end: float
    stage: Stage
    name: str
    arguments: Mapping[str, Any]


def file_name(rank: int) -> str:
    """Returns the name of a rank's file."""
    return f"rank-{rank}.json"


def write(path: pathlib.Path, recorder: Recorder, *, rank: int, wall_offset: float, about: Mapping[str, Any]) -> None:
    """Writes a file. On failure the old file stays as it was.

    Args:
        path: The file.
        recorder: What was recorded.
        rank: This worker's rank.
        wall_offset: The time of day, in seconds since 1970, at 0 s of the recorder's clock.
        about: More about this worker, for `otherData`.

    Raises:
        OSError: The file cannot be written.
    """
    operations = recorder.operations
    origin = min((o.reserved for o in operations), default=0.0)
    if recorder.before is not None:
        origin = min(origin, recorder.before)
    other = {"psum": FORMAT, "rank": rank, "wall_seconds": wall_offset + origin, "full": recorder.full, **about}
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(f'{{"displayTimeUnit":"ms","otherData":{json.dumps(other)},"traceEvents":[\n')
            made = events(slices(recorder), rank, origin, str(about.get("worker", "")))
            for number, event in enumerate(itertools.chain(made, marks(recorder, rank, origin))):
                file.write((",\n" if number else "") + json.dumps(event, separators=(",", ":")))
            file.write("\n]}\n")
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def slices(recorder: Recorder) -> Iterator[Slice]:
    """Yields the slices of a recording."""
    shards = recorder.shards()
    yield from _steps(recorder, shards)
    for operation in recorder.operations:
        if operation.ready is not None and operation.step <= recorder.last:
            arguments = {"step": operation.step, "round": operation.round}
            yield Slice(operation.reserved, operation.ready, VALUE, operation.key, arguments)
    for shard in shards:
        yield from _stages(shard)


def _steps(recorder: Recorder, shards: Iterable[ShardRecord]) -> Iterator[Slice]:
    """Yields each whole step, from the end of the step before until its last result was written."""
    ends: dict[int, float] = {}
    for shard in shards:
        step = shard.operation.step
        if not shard.operation.broadcast and shard.written is not None:
            ends[step] = max(ends.get(step, -math.inf), shard.written)
    begun: dict[int, float] = {}
    for operation in recorder.operations:
        begun[operation.step] = min(begun.get(operation.step, math.inf), operation.reserved)
    previous: tuple[int, float] | None = None
    if recorder.before is not None:
        previous = recorder.first - 1, recorder.before
    for step in recorder.steps():
        if step not in ends:
            # All tensors of the step were empty, or the job has no aggregators.
            continue
        start = previous[1] if previous is not None and previous[0] == step - 1 else begun[step]
        previous = step, max(start, ends[step])
        yield Slice(start, previous[1], STEP, f"step {step}", {"step": step})


def _stages(shard: ShardRecord) -> Iterator[Slice]:
    operation = shard.operation
    sent, copied, received, written = shard.sent, shard.copied, shard.received, shard.written
    if sent is None or copied is None or received is None or written is None:
        return
    arguments: dict[str, Any] = {"step": operation.step, "round": operation.round, "shard": shard.index}
    if operation.broadcast:
        arguments["broadcast"] = True
    yield Slice(shard.queued, sent, QUEUE, operation.key, arguments)
    yield Slice(sent, copied, COPY_IN, operation.key, arguments)
    if shard.last_rank is None:
        yield Slice(copied, received, EXCHANGE, operation.key, arguments)
    else:
        arguments["last_rank"] = shard.last_rank
        # An aggregator may have waited since before the shard was sent again over a new connection.
        exchange = max(0.0, received - copied)
        waiting = min(max(0.0, shard.waiting), exchange)
        summing = min(max(0.0, shard.summing), exchange - waiting)
        forwarding = min(max(0.0, shard.forwarding), exchange - waiting - summing)
        # Only the sum of both directions is known.
        arrived = copied + (exchange - waiting - summing - forwarding) / 2
        complete = arrived + waiting
        summed = complete + summing
        yield Slice(copied, arrived, WIRE_OUT, operation.key, arguments)
        yield Slice(arrived, complete, WAIT, operation.key, arguments)
        yield Slice(complete, summed, SUM, operation.key, arguments)
        if forwarding:
            yield Slice(summed, summed + forwarding, FORWARD, operation.key, arguments)
        yield Slice(summed + forwarding, received, WIRE_BACK, operation.key, arguments)
    yield Slice(received, written, COPY_OUT, operation.key, {**arguments, "bytes": shard.size})


def events(recorded: Iterable[Slice], rank: int, origin: float, worker: str) -> Iterator[Event]:
    """Yields the events of one rank's timeline: the names of its rows, and its slices.

    Args:
        recorded: The slices to show.
        rank: The rank, which becomes the process.
        origin: The time that becomes 0.
        worker: The host and pid of the worker.
    """
    yield _named("process_name", rank, 0, name=f"rank {rank}" + (f" ({worker})" if worker else ""))
    yield _named("process_sort_index", rank, 0, sort_index=rank)
    rows: dict[Stage, list[Slice]] = {}
    for one in recorded:
        rows.setdefault(one.stage, []).append(one)
    for stage, row in sorted(rows.items()):
        row.sort(key=lambda one: (one.start, one.end))
        threads: set[int] = set()
        for one, thread in _thread_numbers(row):
            tid = stage.number * _THREADS + thread
            if tid not in threads:
                threads.add(tid)
                yield _named(
                    "thread_name", rank, tid, name=stage.label if thread == 0 else f"{stage.label} {thread + 1}"
                )
                yield _named("thread_sort_index", rank, tid, sort_index=tid)
            # Rounds both ends, so that slices that meet still meet. Eighths of a microsecond are exact in binary, so
            # slices do not overlap for a reader that counts nanoseconds either.
            start, end = (round((moment - origin) * 8e6) for moment in (one.start, one.end))
            yield {
                "name": one.name,
                "cat": stage.kind,
                "ph": "X",
                "ts": start / 8,
                "dur": max(0, end - start) / 8,
                "pid": rank,
                "tid": tid,
                "args": one.arguments,
            }


def marks(recorder: Recorder, rank: int, origin: float) -> Iterator[Event]:
    """Yields an event for each change of the members of an elastic job: a moment of the rank's whole timeline."""
    for mark in recorder.marks:
        yield {
            "name": mark.name,
            "cat": MEMBERS,
            "ph": "i",
            "s": "p",
            "ts": max(0, round((mark.at - origin) * 8e6)) / 8,
            "pid": rank,
            "tid": 0,
            "args": {"text": mark.text},
        }


def _named(what: str, pid: int, tid: int, **arguments: object) -> Event:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": arguments}


def _thread_numbers(row: Iterable[Slice]) -> Iterator[tuple[Slice, int]]:
    """Gives each slice, in order of their starts, the lowest number of a thread that is free then."""
    taken: list[tuple[float, int]] = []
    free: list[int] = []
    count = 0
    for one in row:
        while taken and taken[0][0] <= one.start:
            heapq.heappush(free, heapq.heappop(taken)[1])
        if free:
            thread = heapq.heappop(free)
        else:
            thread, count = count, count + 1
        heapq.heappush(taken, (max(one.end, one.start), thread))
        yield one, thread
