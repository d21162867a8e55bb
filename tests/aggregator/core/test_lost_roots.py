"""Broadcasts of an elastic job whose root is lost: another rank's value takes the place of the root's."""

from collections.abc import Iterable
from typing import Any

import pytest

from psum.aggregator.core.actions import Action, Ask, Deliver, Report, Sum
from psum.aggregator.core.elastic_job import ElasticJob
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import ProtocolError, WorkerLostError
from tests.aggregator.core.elastic import faults, hello, loss, pull, started, sums
from tests.aggregator.core.joining import ELASTIC, admission, admit, candidate, waits
from tests.aggregator.keys import declare


def begun(ranks: Iterable[int] = range(3), round: int = 0, **change: Any) -> ElasticJob:
    """A job whose ranks have declared a broadcast."""
    job = started(ranks, **change)
    for rank in ranks:
        declare(job, rank, round, broadcast=True)
    return job


def lose(job: ElasticJob, *ranks: int) -> list[Action]:
    """Loses ranks, as the highest rank tells."""
    actions = job.learn_losses(2, [loss(rank) for rank in ranks], 3.0)
    job.check()
    return actions


def asked(actions: Iterable[Action]) -> list[tuple[int, int]]:
    """Who is asked for which round."""
    return [(action.rank, round) for action in actions if isinstance(action, Ask) for _, _, round in action.rounds]


def answer(job: ElasticJob, rank: int, value: bytes, round: int = 0) -> list[Action]:
    """A rank sends its value of a round, or the result of one."""
    entry = ShardRound(id=7, round=round, length=len(value))
    actions = job.restore(rank, entry, memoryview(value))
    job.check()
    return actions


def test_a_root_that_is_lost_after_its_push_is_not_replaced() -> None:
    """Its value is sent."""
    job = begun()
    job.contribute(0, ShardRound(id=7, length=4), memoryview(b"root"), 1.0)
    assert asked(lose(job, 0)) == []
    assert pull(job, 1) == []
    [action] = pull(job, 2)
    assert isinstance(action, Sum)
    assert [bytes(each) for each in action.contributions] == [b"root"]


def test_the_lowest_member_is_asked_when_all_wait() -> None:
    """Its value becomes the result, for itself too; nobody's count changes."""
    job = begun()
    assert asked(lose(job, 0)) == []
    assert pull(job, 2) == []
    assert asked(pull(job, 1)) == [(1, 0)]
    [action] = answer(job, 1, b"mine")
    assert isinstance(action, Sum)
    assert ([bytes(each) for each in action.contributions], action.contributors) == ([b"mine"], 0)
    [result] = job.summed(action.key, 0, b"mine")
    job.check()
    assert isinstance(result, Deliver)
    assert (result.ranks, result.contributors) == ((1, 2), 0)
    # The next broadcast of the key as well.
    pull(job, 1, 1)
    assert asked(pull(job, 2, 1)) == [(1, 1)]


def test_the_lowest_member_is_asked_as_soon_as_the_root_is_lost() -> None:
    """The others have waited for the root."""
    job = begun()
    pull(job, 1)
    pull(job, 2)
    assert asked(lose(job, 0)) == [(1, 0)]


def test_a_root_that_has_left_is_replaced_too() -> None:
    """A broadcast may come after rank 0 has left in good order."""
    job = begun()
    job.leave(0, 2.0)
    pull(job, 1)
    assert asked(pull(job, 2)) == [(1, 0)]


def test_the_next_member_is_asked_if_the_one_before_is_lost() -> None:
    """An answer of the lost one that comes late does not count."""
    job = begun()
    pull(job, 1)
    pull(job, 2)
    lose(job, 0)
    assert asked(lose(job, 1)) == [(2, 0)]
    assert answer(job, 1, b"late") == []
    [action] = answer(job, 2, b"mine")
    assert isinstance(action, Sum)
    assert bytes(action.contributions[0]) == b"mine"


def test_a_member_whose_stream_broke_is_asked_again() -> None:
    """It sends its pull again, and may not have heard the question."""
    job = begun()
    lose(job, 0)
    pull(job, 2)
    assert asked(pull(job, 1)) == [(1, 0)]
    job.lost(1, 4.0, closed=True)
    job.join(hello(1, resuming=True), "peer", 4.5)
    declare(job, 1, broadcast=True)
    assert asked(pull(job, 1)) == [(1, 0)]


def test_the_first_value_counts() -> None:
    """A second answer to the same question, or one of another size, changes nothing."""
    job = begun()
    lose(job, 0)
    pull(job, 1)
    pull(job, 2)
    with pytest.raises(ProtocolError, match="rank 1 gave 3 bytes as its value"):
        answer(job, 1, b"abc")
    job.check()
    [action] = answer(job, 1, b"mine")
    assert isinstance(action, Sum)
    assert answer(job, 1, b"none") == []
    job.summed(action.key, 0, b"mine")
    assert answer(job, 1, b"none") == []


def test_nobody_gives_a_value_that_was_not_asked_for() -> None:
    """While the root lives, its value alone counts; so it does if it was lost after it had sent it."""
    job = begun()
    pull(job, 1)
    assert answer(job, 1, b"mine") == []
    job.contribute(0, ShardRound(id=7, length=4), memoryview(b"root"), 1.0)
    lose(job, 0)
    assert answer(job, 1, b"mine") == []


def test_a_member_that_has_no_value_fails_the_key() -> None:
    """All that wait get the error that it gives; the job goes on."""
    job = begun()
    job.lost(0, 2.0)
    lose(job, 0)
    pull(job, 1)
    pull(job, 2)
    fault = WorkerLostError("rank 0 is gone", key=7, round=0, ranks=[0])
    actions = job.abort(1, pb.Abort(id=7, round=0, text=str(fault), fault=fault.to_message()))
    [report] = [action for action in actions if isinstance(action, Report)]
    assert isinstance(report.fault, WorkerLostError)
    assert (report.fault.key, set(report.ranks)) == (7, {1, 2})
    assert job.failure is None


def test_a_restarted_aggregator_asks_again() -> None:
    """Nobody has the result of the process before, so the round is made again."""
    job = begun([1, 2], 4, resuming=True)
    lose(job, 0)
    pull(job, 1, 4)
    assert asked(pull(job, 2, 4)) == [(1, 4)]


def test_a_restarted_aggregator_gives_the_result_that_a_member_has() -> None:
    """One member has the result, with another's value in it. The others get the same, not a value of their own."""
    job = begun([1], 4, resuming=True)
    lose(job, 0)
    assert asked(pull(job, 1, 4)) == []
    job.join(hello(2, resuming=True, losses=[loss(0)]), "peer", 4.0)
    assert asked(declare(job, 2, 5, broadcast=True)) == [(2, 4)]
    [action] = answer(job, 2, b"past", 4)
    assert isinstance(action, Sum)
    assert action.restored
    [result] = job.restored(action.key, 0, 4, b"past")
    job.check()
    assert isinstance(result, Deliver)
    assert 1 in result.ranks


def test_no_sum_is_affected() -> None:
    """A sum needs no root: it is made without rank 0."""
    job = started()
    for rank in range(3):
        declare(job, rank)
    for rank in (1, 2):
        job.contribute(rank, ShardRound(id=7, length=4), memoryview(bytes(4)), 1.0)
    [action] = sums(lose(job, 0))
    assert len(action.contributions) == 2
    assert faults(lose(job, 0)) == []


def test_a_newcomer_is_no_root_of_rounds_before_its_admission() -> None:
    """Rank 0 is replaced while the others wait for its value. The new process has nothing to do with that round."""
    job = begun()
    pull(job, 2)
    lose(job, 0)
    job.admit(1, pb.Admission(rank=0, generation=1, incarnation=9, ids=[7], rounds=[1]), 4.0)
    assert asked(pull(job, 1)) == [(1, 0)]
    [action] = answer(job, 1, b"mine")
    assert isinstance(action, Sum)
    [result] = job.summed(action.key, 0, b"mine")
    job.check()
    assert isinstance(result, Deliver)
    assert result.ranks == (1, 2)


def test_nobody_is_asked_when_only_a_newcomer_is_left() -> None:
    """The members of an earlier round are gone like its root, and the newcomer takes no part in it."""
    job = begun([0, 1], elastic=ELASTIC)
    waits(job, candidate(2))
    admit(job, 1, admission(2, 1, round=1))
    pull(job, 1)
    job.learn_losses(1, [loss(0)], 3.0)
    assert asked(job.leave(1, 4.0)) == []
    job.check()
