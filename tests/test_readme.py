"""The programs of the README and of pages for users run unchanged."""

import importlib.util
import json
import pathlib
import re
import statistics
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"


def program(section: str) -> str:
    """Return the Python program of a section of the README."""
    text = README.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    (found,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return str(found)


def launch(text: str) -> "subprocess.CompletedProcess[str]":
    """Run a program with two workers."""
    command = [sys.executable, "-m", "psum.cli", "launch", "--workers", "2", "--", sys.executable, "-c", text]
    return subprocess.run(command, capture_output=True, text=True, timeout=50)


@pytest.mark.skipif(importlib.util.find_spec("mxnet") is None, reason="needs MXNet")
def test_the_training_example_trains() -> None:
    """It runs unchanged, except for its data. Two workers have the same parameters in the end, though one has a smaller
    last batch."""
    setup, loop = program("Train with it").split("for data, label in", 1)
    data = (
        "mx.random.seed(store.rank)\n"
        "my_part_of_the_data = [\n"
        "    (mx.nd.random.normal(shape=(n, 5)), mx.nd.arange(n)) for n in (4, 4, 4 - 2 * store.rank)\n"
        "]\n"
    )
    done = launch(f"{setup}{data}for data, label in{loop}print('sum:', net.weight.data().sum().asscalar())\n")
    assert done.returncode == 0, done.stdout + done.stderr
    sums = [line.partition("sum: ")[2] for line in done.stdout.splitlines() if "sum: " in line]
    assert len(sums) == 2
    assert sums[0] == sums[1]


def test_the_example_without_mxnet_runs() -> None:
    """It runs unchanged: two workers push-pull ones twice."""
    done = launch(program("Without MXNet") + 'print("got", gradient[0])\n')
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("got [4. 4. 4.]") == 2


def test_the_example_of_averaging_runs() -> None:
    """It runs unchanged: both workers have the same counts, and so the same accuracy."""
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/averaging.md").read_text(), re.DOTALL)
    done = launch(str(text) + 'print("counts", counts.tolist())\n')
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("accuracy over all ranks: 0.900") == 2
    assert done.stdout.count("counts [180.0, 200.0]") == 2


@pytest.mark.alike
def test_the_table_of_speeds_shows_what_was_measured() -> None:
    """Each figure is the median in docs/benchmarks.json, and the text has the date of each measurement."""
    text = README.read_text()
    results = json.loads((ROOT / "docs/benchmarks.json").read_text())
    rows = re.findall(r"^\| (big|resnet50|small)\b[^|]*, (\d)(; ms a step)? \|(.*) \|$", text, re.MULTILINE)
    assert len(rows) == 5
    for workload, workers, in_ms, figures in rows:
        found = results[f"{workload}, 2 cores of AMD EPYC"]
        assert found["date"] in text.partition("The next table compares speed")[2].partition("|")[0]
        measured = []
        for variant in ("psum shm", "psum direct", "psum inline", "dist_sync", "gloo"):
            runs = [each for each in found["runs"] if (each["variant"], each["workers"]) == (variant, int(workers))]
            value = statistics.median(each["ms_per_step" if in_ms else "gb_per_s_per_worker"] for each in runs)
            measured.append(f"{value:.1f}" if in_ms else f"{value:.2f}")
        assert [figure.strip() for figure in figures.split("|")] == measured, f"{workload}, {workers} workers"
