"""Workers of an elastic job are killed, replaced, join and leave: all members hold the same bits after each step."""

import pathlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from faults.elastic_training import ElasticTraining

#: A state that takes a while to transfer.
LARGE = 96 << 20


@pytest.fixture
def make_job(tmp_path: pathlib.Path) -> Iterator[Callable[..., ElasticTraining]]:
    """Makes a training. Its workers end with the test."""
    made: list[ElasticTraining] = []

    def make(aggregators: list[Any], **given: Any) -> ElasticTraining:
        addresses = [each.address for each in aggregators]
        made.append(ElasticTraining(tmp_path / f"training-{len(made)}", addresses, **given))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def aggregators(make_aggregator: Callable[..., Any]) -> list[Any]:
    """Two aggregators."""
    return [make_aggregator() for _ in range(2)]


Make = Callable[..., ElasticTraining]


def test_killed_workers_are_replaced(make_job: Make, aggregators: list[Any]) -> None:
    """The others go on. A replacement gets their state, and has their bits from then on, also that of rank 0. A rank
    that the job did not have at its beginning joins too. At the end, all have made the same steps."""
    job = make_job(aggregators)
    first, second, third = job.start(0, 1, 2)
    third.await_batch(5)
    third.kill()
    first.await_event(lambda event: event.get("members") == [0, 1], "step without rank 2")
    third, fourth = job.start(2, 3)
    for worker in (third, fourth):
        worker.await_join()
    first.kill()
    second.await_event(lambda event: event.get("members") == [1, 2, 3], "step without rank 0")
    [first] = job.start(0)
    second.await_batch(first.await_join() + 5)
    job.check([0, 1, 2], [0, 1], [0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3])


@pytest.mark.parametrize("killed", ["donor", "newcomer", "aggregator"])
def test_what_is_killed_during_a_transfer(make_job: Make, aggregators: list[Any], killed: str) -> None:
    """If it is the donor, the next member begins again. If it is the newcomer, the others go on without it, and the
    next one joins. If it is an aggregator, the transfer goes on when it is back."""
    job = make_job(aggregators, size=LARGE)
    first, second, third = job.start(0, 1, 2)
    second.await_batch(3)
    third.kill()
    second.await_event(lambda event: event.get("members") == [0, 1], "step without rank 2")
    [third] = job.start(2)
    job.await_mark(first, "gives")
    if killed == "donor":
        first.kill()
        job.await_mark(second, "gives")
        third.await_join()
        assert "rank 0 was lost while it gave its state" in third.log
    elif killed == "newcomer":
        third.kill()
        second.await_batch(second.batch + 3)
        assert "rank 2 was admitted to the job and was lost before it had the state" in second.log
        [third] = job.start(2)
    else:
        aggregators[1].end()
        aggregators[1].start()
    second.await_batch(third.await_join() + 5)
    job.check([0, 1, 2], [0, 1], [1, 2] if killed == "donor" else [0, 1, 2])


def test_a_worker_leaves_at_a_boundary(make_job: Make, aggregators: list[Any]) -> None:
    """SIGTERM lets it finish its step. It ends with status 0, no sum lacks a part of it, and nobody hears of a loss.
    Then another process joins in its place."""
    job = make_job(aggregators)
    first, second, third = job.start(0, 1, 2)
    second.await_batch(3)
    third.kill(signal.SIGTERM)
    assert third.end() == 0
    third.await_event(lambda event: event.get("left", False), "farewell")
    second.await_batch(third.batch + 5)
    assert " is lost" not in first.log + second.log
    [third] = job.start(2)
    second.await_batch(third.await_join() + 3)
    job.check([0, 1, 2], [0, 1], [0, 1, 2])


def test_the_last_member_hands_over_before_it_leaves(make_job: Make, aggregators: list[Any]) -> None:
    """Its state goes on in the process that has joined."""
    job = make_job(aggregators, num_workers=1, elastic=(1, 2))
    [first] = job.start(0)
    first.await_batch(3)
    [second] = job.start(1)
    second.await_join()
    first.kill(signal.SIGTERM)
    assert first.end() == 0
    second.await_batch(first.batch + 5)
    job.check([0], [0, 1], [1])


def test_a_state_that_cannot_be_pickled_keeps_newcomers_out(make_job: Make, aggregators: list[Any]) -> None:
    """The newcomer ends with an error that names the entry, and so does the donor's log. The members go on."""
    job = make_job(aggregators, num_workers=2, size=8, bad=True)
    first, second = job.start(0, 1)
    second.await_batch(3)
    [third] = job.start(2)
    error = third.await_error()
    assert error["error"] == "InvalidError"
    assert "entry 'more' of the elastic state cannot be pickled" in error["text"]
    assert third.end() == 1
    second.await_batch(second.batch + 5)
    assert "cannot give its state to rank 2: entry 'more'" in first.log
    job.check([0, 1])


def test_a_newcomer_with_another_state_is_kept_out(make_job: Make, aggregators: list[Any]) -> None:
    """It ends with an error that says what differs. The members go on."""
    job = make_job(aggregators, num_workers=2)
    _, second = job.start(0, 1)
    second.await_batch(3)
    [third] = job.start(2, size=8)
    error = third.await_error()
    assert "the job has no more" in error["text"]
    second.await_batch(second.batch + 5)
    job.check([0, 1])
