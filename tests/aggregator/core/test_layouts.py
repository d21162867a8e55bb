"""What messages name is kept, up to a limit."""

import pytest

from psum.aggregator.core import layouts
from psum.aggregator.core.job import Job
from psum.aggregator.core.layouts import Layouts
from tests.aggregator.core.two_workers import checked_job, declare
from tests.aggregator.keys import key

job = pytest.fixture(checked_job)


def test_only_the_oldest_layouts_are_forgotten(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training whose messages seldom end at the same key makes new ones all the time. Others go on being found."""
    monkeypatch.setattr(layouts, "_MOST_ROWS", 6)
    for id in range(8):
        declare(job, key(id=id))
    kept = Layouts(job.keys)
    first, second, third = [kept.find([id, id + 1], [], [4]) for id in range(3)]
    assert kept.find([0, 1], [], [4]) is first
    longer = kept.find([4, 5, 6], [], [4])
    assert kept.find([2, 3], [], [4]) is third
    assert kept.find([4, 5, 6], [], [4]) is longer
    assert kept.find([1, 2], [], [4]) is not second
    assert kept.find([0, 1], [], [4]) is not first
