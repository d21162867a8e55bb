"""What tests.bench.elastic makes of its measurements."""

import itertools

import pytest

from tests.bench.elastic import evaluate, table


def steps(*parts: tuple[float, int, int]) -> list[tuple[float, int]]:
    """Return steps of 0.1 s: for each part its beginning, its first step, and how many it has."""
    made = [[(at + 0.1 * n, first + n) for n in range(count)] for at, first, count in parts]
    return sorted(itertools.chain.from_iterable(made))


def test_a_pause_is_lost_time() -> None:
    """A training that stands still for 2 s after each of two kills loses 2 s for each."""
    result = evaluate("psum", 2, steps((0, 1, 100), (12, 101, 80), (22, 181, 100)), 0.1, 10.0, 32.0)
    assert result.step == pytest.approx(0.1)
    assert result.lost == pytest.approx(2.0, abs=0.1)
    assert result.repeated == 0


def test_steps_that_are_made_again_are_lost_time() -> None:
    """After 3 s a training goes on from a checkpoint that is 20 steps old: 5 s are lost."""
    result = evaluate("restart", 1, steps((0, 1, 100), (13, 81, 170)), 0.1, 10.0, 30.0)
    assert result.lost == pytest.approx(5.0, abs=0.1)
    assert result.repeated == pytest.approx(20, abs=2)


def test_a_training_that_does_not_come_back_loses_all() -> None:
    """Nothing is reported after the kill."""
    assert evaluate("restart", 1, steps((0, 1, 100)), 0.1, 10.0, 30.0).lost == pytest.approx(20)


def test_the_table_has_a_row_for_each_way() -> None:
    """It is Markdown."""
    result = evaluate("psum", 1, steps((0, 1, 100), (11, 101, 100)), 0.1, 10.0, 21.0)
    assert table([result]).splitlines()[-1] == "| psum | 1 | 100 ms | 1.0 s | 0 |"
