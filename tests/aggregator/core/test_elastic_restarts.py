"""An aggregator of an elastic job that was started again learns losses, rounds and counts from those who come back."""

import pytest

from psum.aggregator.core.actions import Ask, Deliver, EndStreams, Sum
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import ExcludedError
from tests.aggregator.core.elastic import add_up, faults, hello, loss, push, silence, started, sums, tick, told
from tests.aggregator.keys import declare


def test_a_restarted_aggregator_learns_losses_from_a_hello() -> None:
    """The rounds go on where the ranks are, without the lost one."""
    job = started([0], resuming=True)
    actions, refusal = job.join(hello(2, resuming=True, losses=[loss(1)]), "peer", 0.0)
    assert refusal is None
    assert told(actions) == [([1], (0, 2))]
    declare(job, 0, 5)
    declare(job, 2, 5)
    push(job, 0, 5)
    [action] = push(job, 2, 5)
    assert add_up(job, action).contributors == 2


def test_a_rank_that_does_not_come_back_to_a_restarted_aggregator_is_lost() -> None:
    """Nobody had noticed its loss before the restart."""
    job = started(range(2), resuming=True)
    declare(job, 0, 5)
    declare(job, 1, 5)
    push(job, 0, 5)
    push(job, 1, 5)
    assert tick(job, 4.9) == []
    actions = tick(job, 5.1)
    assert told(actions) == [([2], (0, 1))]
    [action] = sums(actions)
    assert add_up(job, action).contributors == 2


def test_a_sum_is_given_back_with_its_count() -> None:
    """A rank that lacks the last result gets it with the count that the process before had made it with."""
    job = started(range(2), resuming=True)
    job.learn_losses(0, [loss(2)], 1.0)
    declare(job, 0, 6)
    declare(job, 1, 5)
    assert push(job, 1, 5) == [Ask(0, ((7, 0, 5),))]
    [action] = job.restore(0, ShardRound(id=7, round=5, length=4, contributors=2), memoryview(b"abcd"))
    assert isinstance(action, Sum)
    assert action.contributors == 2
    [result] = job.restored(action.key, 0, 5, b"abcd")
    job.check()
    assert isinstance(result, Deliver)
    assert (result.round, result.contributors, result.ranks) == (5, 2, (1,))


def test_a_result_that_only_a_lost_rank_had_is_made_again() -> None:
    """Everybody declares again, and the round is summed from those who are left."""
    job = started(resuming=True)
    declare(job, 0, 6)
    push(job, 0, 6)
    declare(job, 1, 5)
    declare(job, 2, 5)
    assert push(job, 1, 5) == [Ask(0, ((7, 0, 5),))]
    actions = silence(job, 0)
    assert actions[-1] == EndStreams((1, 2))
    assert job.held_bytes == 0
    for rank in (1, 2):
        assert job.join(hello(rank, resuming=True, losses=[loss(0)]), "peer", 20.0) == ([], None)
        declare(job, rank, 5)
    push(job, 1, 5)
    [action] = push(job, 2, 5)
    result = add_up(job, action)
    assert (result.round, result.result, result.contributors) == (5, bytes([6] * 4), 2)


@pytest.mark.parametrize(("old", "pushes"), [(2, True), (2, False), (0, True), (0, False)])
def test_a_stopped_process_that_is_the_first_to_come_back_spoils_nothing(old: int, pushes: bool) -> None:
    """It declares an old round to a process that does not know of its loss. The others begin at their own round."""
    job = started([1], resuming=True)
    declare(job, 1, old)
    if pushes:
        push(job, 1, old)
    actions, refusal = job.join(hello(0, resuming=True, losses=[loss(1)]), "peer", 1.0)
    assert refusal is None
    assert isinstance(faults(actions)[0], ExcludedError)
    job.join(hello(2, resuming=True, losses=[loss(1)]), "peer", 1.0)
    assert declare(job, 0, 8) == []
    assert declare(job, 2, 8) == []
    push(job, 0, 8)
    [action] = push(job, 2, 8)
    result = add_up(job, action)
    assert (result.result, result.contributors) == (bytes([5] * 4), 2)


def test_what_is_under_way_for_forgotten_keys_is_ignored() -> None:
    """A stream that is about to end may still bring contributions, and a sum may be in the making."""
    job = started(resuming=True)
    for rank in range(3):
        declare(job, rank, 5)
    push(job, 0, 5)
    push(job, 1, 5)
    [action] = push(job, 2, 5)
    assert isinstance(action, Sum)
    actions = job.learn_losses(0, [loss(1)], 2.0)
    assert actions[-1] == EndStreams((0, 2))
    assert job.summed(action.key, 0, b"abcd") == []
    assert push(job, 0, 6) == []


def test_a_new_process_that_is_the_first_at_a_restarted_aggregator_is_no_member() -> None:
    """The process that had its rank before has ended unnoticed. The rank is lost as soon as another one says how far
    the job is."""
    job = started([1], incarnation=9)
    declare(job, 1)
    for rank in (0, 2):
        assert job.join(hello(rank, resuming=True), "peer", 1.0) == ([], None)
    actions = declare(job, 0, 8)
    assert [type(fault) for fault in faults(actions)] == [ExcludedError]
    assert told(actions) == [([1], (0, 2))]
    assert job.failure is None
    for rank in (0, 2):
        assert declare(job, rank, 8) == []
        push(job, rank, 8)
    assert job.rounds.keys[7].shards[0].round == 8


def test_members_that_have_left_are_not_waited_for() -> None:
    """Workers that come back tell of a departure. Rounds count those who are left."""
    job = started([0], resuming=True)
    gone = [pb.Departure(ranks=[2], incarnation=102)]
    job.join(hello(1, resuming=True, departures=gone), "peer", 0.0)
    declare(job, 0, 5)
    declare(job, 1, 5)
    push(job, 0, 5)
    [action] = push(job, 1, 5)
    assert add_up(job, action).contributors == 2
