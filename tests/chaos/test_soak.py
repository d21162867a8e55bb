"""A short run of scripts/soak."""

import pathlib

import pytest

from faults.schedule import schedule
from faults.soak import soak


@pytest.mark.soak
@pytest.mark.timeout(240)
def test_a_minute_of_random_faults(tmp_path: pathlib.Path) -> None:
    """Under random faults every sum of many small jobs is right, and no resource grows."""
    report = soak(tmp_path, minutes=1.0, seed=4)
    assert report.problems == [], report.table
    assert report.jobs["done"] > 20
    assert report.checked > 1000
    assert report.faults["aggregator killed"] > 2
    assert report.faults["connections cut"] > 2


def test_the_seed_fixes_the_schedule() -> None:
    """The same seed gives the same faults. A longer run has the same faults at first, and more after them."""
    assert schedule(1, 60) == schedule(1, 600)[: len(schedule(1, 60))] != schedule(2, 60)
