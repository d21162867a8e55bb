"""Timelines that tests write."""

import pathlib
from collections.abc import Callable
from typing import Any

from click.testing import CliRunner, Result

from psum.cli.timeline.command import timeline
from psum.cli.timeline.traces import Trace
from psum.client.observe.trace import (
    COPY_OUT,
    FORMAT,
    QUEUE,
    STEP,
    SUM,
    WAIT,
    WIRE_OUT,
    Slice,
    events,
)

Span = tuple[float, float]


def shard(
    step: int,
    *,
    queue: Span | None = None,
    wire: Span | None = None,
    wait: Span | None = None,
    sum: Span | None = None,
    copy_out: Span,
    last_rank: int = 0,
    key: str = "w",
) -> list[Slice]:
    """The slices of one shard."""
    arguments = {"step": step, "round": step, "shard": 0, "last_rank": last_rank}
    spans = {QUEUE: queue, WIRE_OUT: wire, WAIT: wait, SUM: sum}
    slices = [Slice(*span, stage, key, arguments) for stage, span in spans.items() if span is not None]
    return [*slices, Slice(*copy_out, COPY_OUT, key, {**arguments, "bytes": 4})]


def step(number: int, begin: float, end: float) -> Slice:
    return Slice(begin, end, STEP, f"step {number}", {"step": number})


def document(slices: list[Slice], rank: int = 0, **other: Any) -> dict[str, Any]:
    """Return the content of a rank's file."""
    about = {"job": "night", "num_workers": 3, "worker": f"host pid {rank}", "full": False, "wall_seconds": 1e9}
    return {
        "displayTimeUnit": "ms",
        "otherData": {"psum": FORMAT, "rank": rank, **about, **other},
        "traceEvents": list(events(slices, rank, 0.0, f"host pid {rank}")),
    }


def run(*arguments: object) -> Result:
    """`psum timeline`."""
    return CliRunner().invoke(timeline, [str(argument) for argument in arguments])


def slow_job(
    write: Callable[..., pathlib.Path], *, computing: float, wire: float, usual: float = 1
) -> list[pathlib.Path]:
    """Write the files of three ranks with two steps of 10 s.

    The last rank computes and has its bytes on the wire for the given seconds. The others compute for `usual` seconds,
    are queued for 1 s, and have their bytes on the wire for 1 s.
    """
    came = computing + wire
    paths = []
    for rank in range(3):
        slices = []
        for number in range(2):
            begin = number * 10.0
            slices.append(step(number, begin, begin + 10))
            if rank == 2:
                slices += shard(
                    number,
                    wire=(begin + computing, begin + came),
                    sum=(begin + came, begin + 9),
                    copy_out=(begin + 9, begin + 10),
                    last_rank=2,
                )
            else:
                slices += shard(
                    number,
                    queue=(begin + usual, begin + usual + 1),
                    wire=(begin + usual + 1, begin + usual + 2),
                    wait=(begin + usual + 2, begin + came),
                    sum=(begin + came, begin + 9),
                    copy_out=(begin + 9, begin + 10),
                    last_rank=2,
                )
        paths.append(write(slices, rank))
    return paths


def traced(slices: list[Slice], rank: int = 0, **other: Any) -> Trace:
    """Return a rank's timeline."""
    path = pathlib.Path("/nowhere") / f"rank-{rank}.json"
    return Trace(path, document(slices, rank, **other))
