"""Workers of an elastic job are killed, replaced, join and leave: all members hold the same bits after each step."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from faults.elastic_training import ElasticTraining


@pytest.fixture
def training(tmp_path: pathlib.Path, make_aggregator: Callable[..., Any]) -> Iterator[Callable[..., ElasticTraining]]:
    """Starts aggregators, and makes a training on them."""
    made = []

    def make(aggregators: int = 2, **given: Any) -> ElasticTraining:
        fleet = [make_aggregator() for _ in range(aggregators)]
        made.append(ElasticTraining(tmp_path / "training", [each.address for each in fleet], **given))
        made[-1].aggregators = fleet  # type: ignore[attr-defined]
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_killed_worker_is_replaced(training: Callable[..., ElasticTraining]) -> None:
    """The others go on without it. Its replacement gets their state, and from then on has their bits."""
    job = training()
    first, _, third = job.start(0, 1, 2)
    third.await_batch(5)
    third.kill()
    first.await_batch(third.batch + 20)
    [replacement] = job.start(2)
    joined = replacement.await_event(lambda event: event.get("joined", False), "step after its join")
    replacement.await_batch(joined["batch"] + 20)
    job.check([0, 1, 2], [0, 1], [0, 1, 2])
