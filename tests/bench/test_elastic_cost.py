"""What tests.bench.elastic_cost measures, and what it makes of it."""

import random

import pytest

from tests.bench.elastic_cost import Block, main, row, spread


def test_the_range_has_the_median() -> None:
    """Of a hundred values the median lies between the 40th and the 61st, and of few between the ends."""
    assert spread([float(n) for n in range(1, 101)]) == (50.5, 40.0, 61.0)
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_the_range_is_right_19_times_in_20() -> None:
    """It contains the median of the distribution that the values come from."""
    chance = random.Random(1)
    right = 0
    for _ in range(1000):
        _, low, high = spread([chance.gauss(1.0, 0.1) for _ in range(40)])
        right += low <= 1.0 <= high
    assert right >= 950


def test_a_row_compares_pairs() -> None:
    """Each pair has a ratio of its own, so a machine that becomes slower does not matter."""
    pairs = [(Block(s, 2 * s, s), Block(1.1 * s, 2 * s, 1.03 * s)) for s in (0.1, 0.2, 0.4)]
    assert row("small", "shm", 10, pairs) == (
        "| small | shm | 3 × 10 | 20.0 | 60.00 | +10.0 % (+10.0 … +10.0) | +1.0 % (+1.0 … +1.0) | +0.60 |"
    )


def test_it_measures_both_jobs(capfd: pytest.CaptureFixture[str]) -> None:
    """Two workers make a block of steps in each job in turn, in two runs, and the table has what that cost."""
    main(["--workloads", "small", "--planes", "inline", "--pairs", "3", "--runs", "2", "--seconds", "0.001"])
    cells = capfd.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert cells[:3] == ["small", "inline", "3 × 1"]
    assert float(cells[4]) > 0
