"""`psum timeline` names the slow rank and the cause, in a table, as JSON and in a merged timeline."""

import json
import pathlib
from collections.abc import Callable

from psum.client.observe.trace import (
    FORWARD,
    Slice,
)
from tests.cli.timeline.written import run, shard, slow_job, step
from tests.trace_events import checked


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
