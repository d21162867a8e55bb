"""Files that `psum timeline` refuses or doubts."""

import json
import math
import pathlib
from collections.abc import Callable

import pytest

from psum.cli.timeline.traces import load
from psum.client.observe.trace import (
    WAIT,
)
from tests.cli.timeline.written import document, run, shard, slow_job, step

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
    assert run(first, second).output == f"Error: {first} and {second} are both of rank 0; pass the files of one run\n"


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
