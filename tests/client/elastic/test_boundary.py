"""A boundary at which a process joins: it gets the state of the first living member, and the others wait for that."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import pytest

from psum.client import InvalidError, WorkerLostError
from psum.client.core.roll_call import Process, Reading
from psum.client.elastic import boundary
from tests.client.elastic.members import PATIENCE_SECONDS, Killed, Member, World

NEWCOMER = Process(1, 101)


def run(work: Callable[[], Any]) -> "Future[Any]":
    """Runs something in a thread of its own. It does not end the test if it is killed."""
    future: Future[Any] = Future()

    def begin() -> None:
        try:
            future.set_result(work())
        except Killed:
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=begin, daemon=True).start()
    return future


class Job:
    """The ranks 0, 2 and 3, at a boundary at which rank 1 joins.

    Args:
        state: Gives the state of a rank.
        leaving: The ranks that leave.
    """

    def __init__(self, state: Callable[[int], Mapping[str, object]], leaving: tuple[int, ...] = ()) -> None:
        self.world = World([0, 2, 3])
        self.world.candidate = NEWCOMER
        self.members = {rank: Member(self.world, rank) for rank in (0, 2, 3)}
        self.newcomer = Member(self.world, 1, newcomer=True)
        self.members[0].weights_total = self.members[2].weights_total = self.members[3].weights_total = [3, 1]
        self.loaded: dict[str, Any] = {}
        self._state = state
        self._leaving = leaving

    def member(self, rank: int) -> Reading:
        """What a member does at the boundary."""
        member = self.members[rank]
        return boundary.conclude(
            member,
            member.call(leaving=rank in self._leaving),
            settle=lambda: None,
            save=lambda: self._state(rank),
            is_leaving=lambda: rank in self._leaving,
        )

    def join(self) -> Reading:
        """What the newcomer does."""
        return boundary.join(self.newcomer, self.loaded.update)

    def pass_boundary(self) -> dict[int, Any]:
        """Everybody passes the boundary. Returns the ranks that each one sees then; None for those that were killed."""
        futures = {rank: run(partial(self.member, rank)) for rank in self.members}
        futures[1] = run(self.join)
        read = {rank: future.result(PATIENCE_SECONDS) for rank, future in futures.items()}
        return {rank: None if seen is None else sorted(seen.rows) for rank, seen in read.items()}


def large(rank: int) -> Mapping[str, object]:
    """A state of many chunks, which tells whose it is."""
    return {"w": np.full(1_000_000, rank, np.int32), "epoch": rank}


def small(rank: int) -> Mapping[str, object]:
    """A state that fits into the first message."""
    return {"w": np.full(10, rank, np.int32), "epoch": rank}


@pytest.mark.parametrize("state", [small, large])
def test_a_newcomer_gets_the_state_of_the_lowest_member(state: Callable[[int], Mapping[str, object]]) -> None:
    """With the agreed weights, and what the others know of admissions. All see the same members afterwards."""
    job = Job(state)
    assert job.pass_boundary() == {rank: [0, 1, 2, 3] for rank in range(4)}
    assert job.loaded["epoch"] == 0
    assert np.array_equal(job.loaded["w"], state(0)["w"])  # type: ignore[arg-type]
    assert job.newcomer.weights_total == [3, 1]
    assert [each.rank for each in job.newcomer.adopted] == [1]
    assert {donor for name, donor in job.world.chunks if donor != 1} == {0}
    assert [member.completed for member in (*job.members.values(), job.newcomer)] == [1] * 4


def test_who_leaves_gives_its_state_only_if_nobody_else_can() -> None:
    """Its time may be short. It leaves after the boundary, so all still see it."""
    job = Job(small, leaving=(0,))
    assert job.pass_boundary() == {rank: [0, 1, 2, 3] for rank in range(4)}
    assert job.loaded["epoch"] == 2
    job = Job(small, leaving=(0, 2, 3))
    assert job.pass_boundary() == {rank: [0, 1, 2, 3] for rank in range(4)}
    assert job.loaded["epoch"] == 0


@pytest.mark.parametrize("number", [0, 1, 3])
def test_if_the_donor_dies_the_next_one_begins_anew(number: int) -> None:
    """Before it has sent anything, after the beginning, and in the midst of it. Also if the next one dies too."""
    job = Job(large)

    def kill(donor: int, sent: int) -> None:
        if donor in (0, 2) and sent == number:
            job.members[donor].die()

    job.world.on_chunk = kill
    # What the dead have contributed to the last roll call counts, so they may be seen once more.
    assert job.pass_boundary() == {0: None, 1: [0, 1, 2, 3], 2: None, 3: [0, 1, 2, 3]}
    assert job.loaded["epoch"] == 3
    assert set(job.loaded["w"].tolist()) == {3}


@pytest.mark.parametrize("number", [0, 1, 3])
def test_if_the_newcomer_dies_the_boundary_passes_without_it(number: int) -> None:
    """The donor gives up, and the members go on."""
    job = Job(large)

    def kill(donor: int, sent: int) -> None:
        if sent == number:
            job.world.lose(1)

    job.world.on_chunk = kill
    assert job.pass_boundary() == {0: [0, 2, 3], 1: None, 2: [0, 2, 3], 3: [0, 2, 3]}
    assert job.loaded == {}


def test_if_all_members_die_the_newcomer_says_so() -> None:
    """There is no state any more."""
    job = Job(large)
    job.world.on_chunk = lambda donor, sent: job.members[donor].die()
    with pytest.raises(WorkerLostError, match="all members were lost before they had given it their state"):
        job.pass_boundary()


def test_a_state_that_cannot_be_pickled_keeps_only_the_newcomer_out() -> None:
    """It gets the error, which names the entry. When it has ended, the others go on."""
    job = Job(lambda rank: {"fine": 1, "lock": threading.Lock()})
    futures = {rank: run(partial(job.member, rank)) for rank in job.members}
    with pytest.raises(InvalidError, match="rank 0 could not give its state to this process: entry 'lock' of the elas"):
        run(job.join).result(PATIENCE_SECONDS)
    job.world.leave(1)
    assert [sorted(future.result(PATIENCE_SECONDS).rows) for future in futures.values()] == [[0, 2, 3]] * 3


def test_without_a_candidate_a_boundary_is_the_roll_call_alone() -> None:
    """Nothing is waited for."""
    job = Job(small)
    job.world.candidate = None
    futures = [run(partial(job.member, rank)) for rank in job.members]
    assert [sorted(future.result(PATIENCE_SECONDS).rows) for future in futures] == [[0, 2, 3]] * 3
    assert [member.completed for member in job.members.values()] == [0, 0, 0]
