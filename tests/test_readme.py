"""The README's programs run as they stand."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"


def program(section: str) -> str:
    """The Python program in a section of the README."""
    text = README.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    (found,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return str(found)


def launch(text: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program as two workers."""
    command = [sys.executable, "-m", "psum.cli", "launch", "--workers", "2", "--", sys.executable, "-c", text]
    return subprocess.run(command, capture_output=True, text=True, timeout=50)


@pytest.mark.skipif(importlib.util.find_spec("mxnet") is None, reason="needs MXNet")
def test_the_training_example_trains() -> None:
    """Word for word, but for the data: two workers run it and hold the same parameters in the end."""
    setup, loop = program("Train with it").split("for data, label in", 1)
    data = (
        "mx.random.seed(store.rank)\n"
        "my_part_of_the_data = [(mx.nd.random.normal(shape=(4, 5)), mx.nd.array([0, 1, 2, 3])) for _ in range(3)]\n"
    )
    done = launch(f"{setup}{data}for data, label in{loop}print('sum:', net.weight.data().sum().asscalar())\n")
    assert done.returncode == 0, done.stdout + done.stderr
    sums = [line.partition("sum: ")[2] for line in done.stdout.splitlines() if "sum: " in line]
    assert len(sums) == 2
    assert sums[0] == sums[1]


def test_the_example_without_mxnet_runs() -> None:
    """Word for word: two push-pulls of ones by two workers."""
    done = launch(program("Without MXNet") + 'print("got", gradient[0])\n')
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("got [4. 4. 4.]") == 2
