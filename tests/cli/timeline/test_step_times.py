"""Where the time of a step has gone, and how clocks of ranks are brought together."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psum.cli.timeline.merging import merged, offsets
from psum.cli.timeline.step_times import KINDS, Report, step_times
from psum.cli.timeline.traces import LastRanks
from psum.client.observe.trace import (
    COPY_IN,
    EXCHANGE,
    QUEUE,
    SUM,
    WAIT,
    WIRE_OUT,
    Slice,
    Stage,
)
from tests.cli.timeline.written import Span, shard, step, traced
from tests.trace_events import check


def test_what_happens_at_once_shares_the_time() -> None:
    """Time is divided in proportion to shards. Queued shards count only if no others are under way."""
    trace = traced(
        [
            step(0, 0, 10),
            *shard(0, queue=(0, 4), wire=(4, 8), copy_out=(10, 10), key="a"),
            *shard(0, queue=(1, 6), wait=(6, 10), copy_out=(10, 10), key="b", last_rank=1),
            *shard(0, wait=(6, 10), copy_out=(10, 10), key="c", last_rank=2),
        ]
    )
    times = step_times(trace, [0], LastRanks([]))[0]
    assert {kind: seconds for kind, seconds in times.seconds.items() if seconds} == {
        "queue": pytest.approx(4),
        "wire": pytest.approx(2 + 2 / 3),
        "wait": pytest.approx(4 / 3 + 2),
    }
    assert dict(times.waited_for) == {1: pytest.approx(2 / 3 + 1), 2: pytest.approx(2 / 3 + 1)}


TIMES = st.integers(0, 400).map(lambda number: number / 8)


SPANS = st.tuples(TIMES, TIMES).map(lambda ends: (min(ends), max(ends)))


STAGES = st.sampled_from([QUEUE, COPY_IN, WIRE_OUT, WAIT, SUM, EXCHANGE])


@given(
    st.lists(st.tuples(SPANS, STAGES, st.integers(0, 2)), max_size=20),
    st.lists(TIMES, min_size=2, max_size=6, unique=True).map(sorted),
)
def test_every_moment_of_a_step_is_counted_once(busy: list[tuple[Span, Stage, int]], boundaries: list[float]) -> None:
    """This holds for any overlap of stages, and for stages outside of steps."""
    steps = [step(number, *ends) for number, ends in enumerate(itertools.pairwise(boundaries))]
    slices = [
        Slice(*span, stage, "w", {"step": 0, "round": 0, "shard": 0, "last_rank": last_rank})
        for span, stage, last_rank in busy
    ]
    times = step_times(traced([*steps, *slices]), range(len(steps)), LastRanks([]))
    for number, one in enumerate(steps):
        assert math.isclose(times[number].total, one.end - one.start, abs_tol=1e-9)
        assert math.isclose(sum(times[number].waited_for.values()), times[number].seconds["wait"], abs_tol=1e-9)
        assert times[number].seconds.keys() <= KINDS.keys()
        idle = one.end - one.start - covered([span for span, _, _ in busy], one.start, one.end)
        assert math.isclose(times[number].seconds["computing"], idle, abs_tol=1e-9)


def covered(spans: list[Span], begin: float, end: float) -> float:
    """Return how much of the time from begin to end is within any span."""
    total, reached = 0.0, begin
    for start, stop in sorted(spans):
        start, stop = max(start, reached), min(stop, end)
        if stop > start:
            total, reached = total + stop - start, stop
    return total


@settings(max_examples=30)
@given(st.lists(st.integers(0, 8_000_000), min_size=1, max_size=4), st.integers(1, 6))
def test_clocks_are_brought_together_by_what_all_received(ahead: list[int], rounds: int) -> None:
    """This holds for any difference of clocks. A rank's own figures do not depend on its clock."""
    shifts = [0.0, *(number / 8 for number in ahead)]
    traces = []
    for rank, shift in enumerate(shifts):
        slices = []
        for number in range(rounds):
            begin = shift + 10.0 * number
            slices.append(step(number, begin, begin + 10))
            slices += shard(number, wire=(begin + 2 + rank, begin + 9), copy_out=(begin + 9, begin + 10))
        traces.append(traced(slices, rank))
    assert offsets(traces) == [-shift * 1e6 for shift in shifts]
    together = merged(traces)
    check(together["traceEvents"])
    for number in range(rounds):
        found = [e for e in together["traceEvents"] if e["name"] == f"step {number}"]
        assert [(e["pid"], e["ts"], e["dur"]) for e in found] == [
            (rank, 1e7 * number, 1e7) for rank in range(len(shifts))
        ]
    assert Report(traces).mean([0]) == Report(traces[:1]).mean([0])
