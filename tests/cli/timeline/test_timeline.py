"""`psum timeline` on files that each test writes."""

import itertools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from psum.cli.timeline.command import timeline
from psum.cli.timeline.merging import merged, offsets
from psum.cli.timeline.step_times import KINDS, Report, step_times
from psum.cli.timeline.traces import LastRanks, Trace, load
from psum.client.observe.trace import (
    COPY_IN,
    COPY_OUT,
    EXCHANGE,
    FORMAT,
    FORWARD,
    QUEUE,
    STEP,
    SUM,
    WAIT,
    WIRE_OUT,
    Slice,
    Stage,
    events,
)
from tests.trace_events import check, checked

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


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Write the file of a rank."""

    def write(slices: list[Slice], rank: int = 0, **other: Any) -> pathlib.Path:
        path = tmp_path / f"rank-{rank}.json"
        path.write_text(json.dumps(document(slices, rank, **other)))
        return path

    return write


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


def test_the_slow_rank_is_named_with_the_cause(write: Callable[..., pathlib.Path]) -> None:
    """The cause is what the rank spends more time on than the others: here computing."""
    done = run(*slow_job(write, computing=7, wire=1))
    assert done.exit_code == 0, done.output
    assert "job night  2 steps from 0 to 1, 10000 ms a step\n" in done.output
    assert (
        "The others waited for rank 2: 5000 ms a step, the longest wait in 2 of 2 steps; it computes for"
        " 7000 ms a step, where the others need 1000 ms." in done.output
    )
    rows = {line[:6].strip(): line.split()[2::2] for line in done.output.splitlines()}
    assert rows["rank 0"] == ["10000", "1000", "5000", "1000", "1000", "1000", "1000"]
    assert rows["rank 2"] == ["10000", "7000", "0.0", "1000", "1000", "1000", "0.0"]
    assert done.output.splitlines()[-3].split()[-2:] == ["rank", "2"]


def test_forwarding_by_a_relay_has_a_column_if_there_is_any(write: Callable[..., pathlib.Path]) -> None:
    """Timelines without a relay look as ever."""
    assert "forwarding" not in run(*slow_job(write, computing=7, wire=1)).output
    slices = shard(0, wire=(0, 1), sum=(1, 2), copy_out=(6, 7))
    slices += [step(0, 0, 7), Slice(2, 6, FORWARD, "w", {"step": 0, "round": 0, "shard": 0})]
    done = run(write(slices))
    assert done.exit_code == 0, done.output
    headings = done.output.splitlines()[2].split()
    row = next(line for line in done.output.splitlines() if line.startswith("rank 0")).split()[2::2]
    assert dict(zip(headings[2:], row[1:], strict=True))["forwarding"] == "4000"


def test_a_rank_whose_wire_is_slow_is_told_from_one_that_computes(write: Callable[..., pathlib.Path]) -> None:
    """The others wait for it too, but the cause is the wire."""
    done = run("--json", *slow_job(write, computing=1, wire=7))
    (slowest,) = json.loads(done.output)["slowest"]
    assert (slowest["rank"], slowest["cause"], slowest["own_seconds"], slowest["usual_seconds"]) == (2, "wire", 7, 1)


def test_the_cause_is_what_differs_most(write: Callable[..., pathlib.Path]) -> None:
    """The cause is not the longest time: here all ranks compute for long."""
    done = run("--json", *slow_job(write, computing=5, wire=3, usual=4))
    (slowest,) = json.loads(done.output)["slowest"]
    assert (slowest["cause"], slowest["own_seconds"], slowest["usual_seconds"]) == ("wire", 3, 1)


def test_json_has_the_numbers(write: Callable[..., pathlib.Path]) -> None:
    """The document has the times of each rank and step, in seconds."""
    paths = slow_job(write, computing=7, wire=1)
    found = json.loads(run("--json", *paths).output)
    assert (found["job"], found["num_workers"]) == ("night", 3)
    assert [(r["rank"], r["worker"], r["file"]) for r in found["ranks"]] == [
        (rank, f"host pid {rank}", str(paths[rank])) for rank in range(3)
    ]
    assert found["ranks"][1]["seconds"] == {
        "total": 10,
        "computing": 1,
        "waiting": 5,
        "wire": 1,
        "summing": 1,
        "forwarding": 0,
        "copying": 1,
        "queued": 1,
        "unknown": 0,
    }
    assert [s["waited_for"] for s in found["steps"]] == [2, 2]
    assert found["steps"][0]["ranks"]["0"]["waited_for"] == {"2": 5}
    assert found["steps"][0]["ranks"]["2"]["waited_for"] == {}
    assert found["slowest"] == [
        {
            "rank": 2,
            "steps": 2,
            "waiting_seconds": 5,
            "cause": "computing",
            "own_seconds": 7,
            "usual_seconds": 1,
        }
    ]


def test_one_file_is_enough_to_name_the_rank(write: Callable[..., pathlib.Path]) -> None:
    """The cause needs the slow rank's own file. The headline lists the missing ones."""
    done = run(slow_job(write, computing=7, wire=1)[1])
    assert "files of ranks 0, 2 are missing" in done.output
    last = "The others waited for rank 2: 5000 ms a step, the longest wait in 2 of 2 steps."
    assert done.output.rstrip().endswith(last)


def test_nobody_is_blamed_for_little(write: Callable[..., pathlib.Path]) -> None:
    """Some rank is always last, so short waits are not reported."""
    done = run(*slow_job(write, computing=2, wire=1.4))
    assert "The ranks hardly waited for each other." in done.output
    assert json.loads(run("--json", *slow_job(write, computing=2, wire=1.4)).output)["slowest"] == []


def test_ranks_that_wait_for_each_other_are_all_named(write: Callable[..., pathlib.Path]) -> None:
    """Each has its number of steps. No cause is given if they do the same."""
    paths = []
    for rank in range(2):
        slices = []
        for number in range(3):
            begin, last = number * 10.0, 1 if number == 1 else 0
            slices.append(step(number, begin, begin + 10))
            wait = (begin + 5, begin + 9) if rank != last else None
            slices += shard(
                number, wire=(begin + 4, begin + 5), wait=wait, copy_out=(begin + 9, begin + 10), last_rank=last
            )
        paths.append(write(slices, rank))
    found = json.loads(run("--json", *paths).output)
    assert [(s["rank"], s["steps"], s["cause"]) for s in found["slowest"]] == [(0, 2, "computing"), (1, 1, None)]
    assert run(*paths).output.count("The others waited for rank") == 2


def test_behind_a_relay_the_slow_rank_itself_is_named(write: Callable[..., pathlib.Path]) -> None:
    """Ranks of another host are told the first rank of its group, and its own group which rank it was."""
    told = {0: 2, 1: 2, 2: 3, 3: 3}
    paths = [
        write([step(0, 0, 10), *shard(0, wire=(0, 1), wait=(1, 9), copy_out=(9, 10), last_rank=last)], rank)
        for rank, last in told.items()
        if rank != 3
    ]
    (slowest,) = json.loads(run("--json", *paths).output)["slowest"]
    assert slowest["rank"] == 3
    (slowest,) = json.loads(run("--json", *paths[:2]).output)["slowest"]
    assert slowest["rank"] == 2, "without a file of the group, its first rank stands for it"


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


def traced(slices: list[Slice], rank: int = 0, **other: Any) -> Trace:
    """Return a rank's timeline."""
    path = pathlib.Path("/nowhere") / f"rank-{rank}.json"
    return Trace(path, document(slices, rank, **other))


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


def test_a_merged_timeline_has_a_process_for_each_rank(
    write: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """It also has all events of the files."""
    paths = slow_job(write, computing=7, wire=1)
    output = tmp_path / "all.json"
    assert run(*paths, "--output", output).exit_code == 0
    together = checked(output)["traceEvents"]
    alone = [event for path in paths for event in checked(path)["traceEvents"]]
    assert sorted(map(json.dumps, together)) == sorted(map(json.dumps, alone))
    assert {e["args"]["name"] for e in together if e["name"] == "process_name"} == {
        f"rank {rank} (host pid {rank})" for rank in range(3)
    }


def test_changes_of_the_members_are_kept_in_a_merged_timeline(
    write: Callable[..., pathlib.Path], tmp_path: pathlib.Path
) -> None:
    """They take no part in the numbers. An event of another kind is refused as before."""
    paths = slow_job(write, computing=7, wire=1)
    mark = {"name": "rank 1 is lost", "cat": "members", "ph": "i", "s": "p", "ts": 5, "pid": 0, "tid": 0, "args": {}}
    content = json.loads(paths[0].read_text())
    before = run(*paths, "--json").output
    paths[0].write_text(json.dumps({**content, "traceEvents": [*content["traceEvents"], mark]}))
    output = tmp_path / "all.json"
    assert run(*paths, "--output", output).exit_code == 0
    assert mark in checked(output)["traceEvents"]
    assert run(*paths, "--json").output == before
    paths[0].write_text(json.dumps({**content, "traceEvents": [*content["traceEvents"], {**mark, "cat": "other"}]}))
    assert run(*paths).exit_code == 1


def test_names_from_workers_do_nothing_to_the_terminal(write: Callable[..., pathlib.Path]) -> None:
    """Control characters in a job's name are replaced."""
    done = run(write([step(0, 0, 1), *shard(0, copy_out=(0, 1))], job="\x1b]0;owned\x07[red]"))
    assert "job \N{REPLACEMENT CHARACTER}]0;owned\N{REPLACEMENT CHARACTER}[red]  step 0, 1000 ms a step" in done.output
    assert "\x1b" not in done.output


def test_of_a_long_timeline_the_longest_steps_are_shown(write: Callable[..., pathlib.Path]) -> None:
    """--all lists all steps."""
    slices = []
    for number in range(30):
        begin = 100.0 * number
        slices += [step(number, begin, begin + 1 + number % 7), *shard(number, copy_out=(begin, begin))]
    path = write(slices)
    short, everything = run(path).output, run("--all", path).output
    assert "… 10 shorter ones (--all)" in short
    assert short.count("\nstep ") == 20
    assert "\nstep 0 " not in short
    assert everything.count("\nstep ") == 30


ONE_STEP = [step(3, 0, 1), *shard(3, copy_out=(0, 1))]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON: "),
        ("[" * 100_000, "is not JSON: "),
        ("\xff", "is not JSON: "),
        ("[]", "is not a timeline of psum"),
        ('{"traceEvents": []}', "is not a timeline of psum"),
        (document(ONE_STEP, psum=2), "has format 2; this version of psum reads format 1"),
        (document(ONE_STEP, psum=None), "has format None"),
        (document(ONE_STEP, job=7), "is damaged: job is 7"),
        (document(ONE_STEP, num_workers=True), "is damaged: num_workers is True"),
        (document(ONE_STEP, wall_seconds=math.inf), "is damaged: wall_seconds is inf"),
        ({**document(ONE_STEP), "traceEvents": {}}, "is damaged: traceEvents is {}"),
        ({**document(ONE_STEP), "traceEvents": [7]}, "is damaged: its event 0 is 7"),
        ({**document(ONE_STEP), "traceEvents": [{"ph": "B", "args": {}}]}, "is damaged: its event 0"),
        (document([]), "has no complete step"),
        (
            {**document(ONE_STEP), "otherData": {"merged": [0]}},
            "is a merged timeline; pass the files that the ranks wrote",
        ),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: pathlib.Path, content: object, complaint: str) -> None:
    """One line names the file and its fault."""
    path = tmp_path / "bad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="latin-1")
    done = run(path)
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: {path} {complaint}")
    assert done.output.count("\n") == 1


@pytest.mark.parametrize("field", ["name", "cat", "ts", "dur", "pid", "tid", "args"])
@pytest.mark.parametrize("value", [None, -1.5, "x", [], math.nan])
def test_an_event_that_is_none_is_refused(tmp_path: pathlib.Path, field: str, value: object) -> None:
    """Any field that psum would not write so is an error."""
    content = document([*shard(3, wait=(0, 1), copy_out=(0, 1)), *ONE_STEP])
    event = next(e for e in content["traceEvents"] if e.get("cat") == WAIT.kind)
    if isinstance(value, str) and isinstance(event[field], str):
        del event[field]
    else:
        event[field] = value
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    done = run(path)
    assert done.exit_code == 1
    assert f"Error: {path} is damaged: its event" in done.output


def test_files_that_do_not_belong_together_are_refused(write: Callable[..., pathlib.Path]) -> None:
    """The error names both files."""
    first = write(ONE_STEP)
    for slices, other, complaint in (
        (ONE_STEP, {"job": "day"}, f"{first} is of job 'night' with 3 workers, "),
        (ONE_STEP, {"num_workers": 2}, "of job 'night' with 2"),
        (
            [step(4, 0, 1), *shard(4, copy_out=(0, 1))],
            {},
            f"the files have no step in common: {first} has 3 to 3, ",
        ),
        (
            [step(3, 0, 1), *shard(3, copy_out=(0, 1), key="v")],
            {},
            "have no round in common; are they of the same run?",
        ),
    ):
        second = write(slices, 1, **other)
        done = run(first, second)
        assert done.exit_code == 1
        assert complaint in done.output
        assert str(second) in done.output


def test_the_same_rank_twice_is_refused(write: Callable[..., pathlib.Path], tmp_path: pathlib.Path) -> None:
    """This also holds for two different files."""
    first = write(ONE_STEP)
    second = tmp_path / "copy.json"
    second.write_bytes(first.read_bytes())
    assert run(first, second).output == f"Error: {first} and {second} are both of rank 0\n"


def test_files_of_different_runs_are_doubted(write: Callable[..., pathlib.Path]) -> None:
    """Their clocks were hours apart when they received the same rounds."""
    paths = write(ONE_STEP), write(ONE_STEP, 1, wall_seconds=1e9 + 7200)
    done = run(*paths)
    assert done.exit_code == 0
    assert f"psum: {paths[0]} and {paths[1]} may be of different runs: their clocks differ by 7200 s" in done.output


def test_no_file_that_is_read_is_written_over(write: Callable[..., pathlib.Path], tmp_path: pathlib.Path) -> None:
    """--output refuses an input file. A file that cannot be written is an error without a traceback."""
    path = write(ONE_STEP)
    before = path.read_bytes()
    assert run(path, "--output", path).output == f"Error: {path} is one of the files to be merged\n"
    assert path.read_bytes() == before
    nowhere = tmp_path / "no" / "x.json"
    assert run(path, "--output", nowhere).output == f"Error: {nowhere} cannot be written: No such file or directory\n"
    missing = tmp_path / "missing.json"
    assert run(missing).output == f"Error: {missing} cannot be read: No such file or directory\n"


def test_a_timeline_that_ends_early_says_so(write: Callable[..., pathlib.Path]) -> None:
    """Otherwise users would look for the missing steps."""
    path = write(ONE_STEP, full=True)
    assert f"psum: {path} ends early" in run(path).output


def test_the_traces_are_sorted_by_rank(write: Callable[..., pathlib.Path]) -> None:
    """The order of the arguments does not matter."""
    paths = slow_job(write, computing=7, wire=1)
    assert [trace.rank for trace in load(paths[::-1])] == [0, 1, 2]
