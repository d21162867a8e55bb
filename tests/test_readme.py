"""The programs of the README and of pages for users run unchanged."""

import importlib.util
import pathlib
import re
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
