"""An aggregator that was started again learns the rounds from its workers, and gives each the sums that it lacks."""

import pytest

from psum.aggregator.core.actions import Ask, Deliver, EndStreams, Report, Sum
from psum.aggregator.core.credit import CREDIT_HOLD_SECONDS
from psum.aggregator.core.job import Job
from psum.wire import ShardRound
from psum.wire.errors import DisagreementError, ProtocolError
from tests.aggregator.core.restarted import give_back, hello, push, returned
from tests.aggregator.keys import FOUR, declare

job = pytest.fixture(returned)


def test_the_round_goes_on_where_all_ranks_are(job: Job) -> None:
    """Workers that all wait for round 5 push it again, and it is summed."""
    for rank in range(3):
        assert declare(job, rank, 5) == []
    assert push(job, 2, 5) == []
    assert push(job, 0, 5) == []
    [action] = push(job, 1, 5)
    assert isinstance(action, Sum)


def test_a_rank_that_has_the_sum_gives_it_to_those_who_wait_for_it(job: Job) -> None:
    """Two ranks push round 5 again; the third has its sum already, and is asked for it."""
    for rank in range(2):
        assert declare(job, rank, 5) == []
        assert push(job, rank, 5) == []
    assert declare(job, 2, 6) == [Ask(2, ((7, 0, 5),))]
    assert job.held_bytes == 0
    [action] = give_back(job, 2, 5)
    assert isinstance(action, Deliver)
    assert (action.round, action.result, action.ranks) == (5, "sum", (0, 1))


def test_a_rank_that_comes_late_gets_the_sum_from_one_that_came_first(job: Job) -> None:
    """The holder declares first. A rank that lacks its sum pushes, and only then the holder is asked."""
    assert declare(job, 2, 6) == []
    assert declare(job, 0, 5) == []
    assert push(job, 0, 5) == [Ask(2, ((7, 0, 5),))]
    [action] = give_back(job, 2, 5)
    assert isinstance(action, Deliver)
    assert action.ranks == (0,)
    # A rank that comes even later is answered with it.
    assert declare(job, 1, 5) == []
    [action] = push(job, 1, 5)
    assert isinstance(action, Deliver)
    assert (action.result, action.ranks) == ("sum", (1,))


def test_a_holder_that_vanishes_before_it_answers_is_asked_again(job: Job) -> None:
    """When it is back and declares its round, it is asked once more."""
    declare(job, 2, 6)
    declare(job, 0, 5)
    push(job, 0, 5)
    job.lost(2, 2.0)
    assert job.join(hello(2), "peer", 3.0) == ([], None)
    assert declare(job, 2, 6) == [Ask(2, ((7, 0, 5),))]


def test_a_sum_that_nobody_has_any_more_is_made_again(job: Job) -> None:
    """A relay said that it has the sum, and was then killed before it gave the sum to its workers or back."""
    assert declare(job, 0, 5) == []
    assert push(job, 0, 5) == []
    assert declare(job, 2, 6) == [Ask(2, ((7, 0, 5),))]
    # This one sends when it comes back anyway.
    job.lost(2, 2.0)
    assert job.join(hello(2), "peer", 3.0) == ([], None)
    assert declare(job, 2, 5) == [EndStreams((0,))]
    assert job.held_bytes == 0
    assert declare(job, 1, 5) == []
    assert push(job, 2, 5) == []
    assert push(job, 1, 5) == []
    job.lost(0, 3.0)
    assert job.join(hello(0), "peer", 3.0) == ([], None)
    assert declare(job, 0, 5) == []
    [action] = push(job, 0, 5)
    assert isinstance(action, Sum)
    assert (action.round, action.restored) == (5, False)


def test_a_sum_that_one_rank_has_lost_comes_from_another(job: Job) -> None:
    """If other ranks have it, one of them is asked, and no round is made again."""
    assert declare(job, 0, 6) == []
    assert declare(job, 2, 6) == []
    assert declare(job, 1, 5) == []
    assert push(job, 1, 5) == [Ask(2, ((7, 0, 5),))]
    job.lost(2, 2.0)
    assert job.join(hello(2), "peer", 3.0) == ([], None)
    assert declare(job, 2, 5) == [Ask(0, ((7, 0, 5),))]
    assert push(job, 2, 5) == []
    [action] = give_back(job, 0, 5)
    assert isinstance(action, Deliver)
    assert action.ranks == (1, 2)


def test_the_next_round_may_begin_before_the_sum_is_back(job: Job) -> None:
    """Ranks that have the sum push round 6 while another still waits for that of round 5."""
    declare(job, 0, 6)
    declare(job, 1, 6)
    declare(job, 2, 5)
    push(job, 0, 6)
    [ask] = push(job, 2, 5)
    assert isinstance(ask, Ask)
    push(job, 1, 6)
    [action] = give_back(job, ask.rank, 5)
    assert isinstance(action, Deliver)
    assert action.ranks == (2,)
    [action] = push(job, 2, 6)
    assert isinstance(action, Sum)
    assert (action.round, action.restored) == (6, False)


def test_nobody_is_ahead_of_a_round_whose_last_sum_is_missed(job: Job) -> None:
    """A rank waits for the sum of round 4, so no other can have that of round 5: who says so is told, and the rank that
    waits hears of it instead of being forgotten."""
    declare(job, 0, 5)
    declare(job, 1, 4)
    push(job, 1, 4)
    [action] = declare(job, 2, 6)
    assert isinstance(action, Report)
    assert isinstance(action.fault, DisagreementError)
    assert action.ranks == (0, 1, 2)


def test_a_rank_that_begins_a_round_waits_for_the_last_sum_no_more(job: Job) -> None:
    """A rank that asks for the last sum, and then contributes to the next round, has contradicted itself: it is no
    waiter any more when that round is summed."""
    for rank in range(3):
        declare(job, rank, 5)
    push(job, 0, 4)
    for rank in range(3):
        actions = push(job, rank, 5)
    [action] = actions
    assert isinstance(action, Sum)
    job.summed(action.key, 0, "sum")
    job.check()


def test_a_sum_that_is_given_back_twice_or_unasked_changes_nothing(job: Job) -> None:
    """Only the first counts, and only if the sum is missing."""
    declare(job, 2, 6)
    declare(job, 0, 5)
    push(job, 0, 5)
    give_back(job, 2, 5)
    entry = ShardRound(id=7, round=5, length=4)
    assert job.restore(1, entry, FOUR) == []
    assert job.restore(1, ShardRound(id=7, round=4, length=4), FOUR) == []
    assert job.restore(1, ShardRound(id=99, round=5, length=4), FOUR) == []
    assert job.held_bytes == 4


def test_a_sum_that_nobody_waits_for_is_not_written(job: Job) -> None:
    """Where it would be written, the sum of the next round may be written meanwhile, or be read already."""
    for rank in range(3):
        declare(job, rank, 6)
    entry = ShardRound(id=7, round=5, length=4)
    assert job.restore(2, entry, FOUR) == []
    for rank in range(3):
        push(job, rank, 6)
    assert job.restore(2, entry, FOUR) == []


def test_a_sum_that_two_ranks_give_back_is_written_once(job: Job) -> None:
    """The second one could otherwise be written after the next round's sum, in its place."""
    declare(job, 2, 6)
    declare(job, 1, 6)
    declare(job, 0, 5)
    push(job, 0, 5)
    entry = ShardRound(id=7, round=5, length=4)
    [action] = job.restore(2, entry, FOUR)
    assert isinstance(action, Sum)
    assert job.restore(1, entry, FOUR) == []
    [delivery] = job.restored(action.key, 0, 5, "sum")
    assert isinstance(delivery, Deliver)
    assert delivery.ranks == (0,)


def test_a_sum_of_the_wrong_size_breaks_the_protocol(job: Job) -> None:
    """The sum must have the size of the shard."""
    declare(job, 2, 6)
    with pytest.raises(ProtocolError, match="gave back 3 bytes"):
        job.restore(2, ShardRound(id=7, round=5, length=3), memoryview(b"abc"))


@pytest.mark.parametrize("rounds", [(5, 7), (7, 5), (57, 0), (0, 57)])
def test_ranks_that_are_further_apart_than_a_round_cannot_go_on(job: Job, rounds: tuple[int, int]) -> None:
    """A worker that was started again in the middle of the job begins at round 0: all ranks are told."""
    assert declare(job, 0, rounds[0]) == []
    [action] = declare(job, 1, rounds[1])
    assert isinstance(action, Report)
    assert isinstance(action.fault, DisagreementError)
    assert action.ranks == (0, 1, 2)
    assert f"rank 1 is at round {rounds[1]} of key 'w'" in str(action.fault)


def test_credit_comes_back_for_contributions_that_were_sent_again(job: Job) -> None:
    """A duplicate and a wait for a lost sum count against their sender's credit, which is returned."""
    for rank in range(2):
        declare(job, rank, 0)
    push(job, 0, 0)
    job.tick(1.0 + 2 * CREDIT_HOLD_SECONDS)
    push(job, 0, 0)
    [action] = job.tick(1.0 + 4 * CREDIT_HOLD_SECONDS)
    assert getattr(action, "rounds", None) == ((7, 0, 0),)
    declare(job, 2, 1)
    push(job, 0, 0)
    [action] = job.tick(1.0 + 6 * CREDIT_HOLD_SECONDS)
    assert getattr(action, "rounds", None) == ((7, 0, 0),)


def test_what_a_rank_repeats_makes_no_work_for_others(job: Job) -> None:
    """A repeated push leads to one want, and a repeated goodbye to no more syncs."""
    declare(job, 2, 6)
    declare(job, 0, 5)
    assert push(job, 0, 5) == [Ask(2, ((7, 0, 5),))]
    assert push(job, 0, 5) == []
    assert push(job, 0, 5) == []
    # The holder comes back without having answered, and is asked again once.
    assert declare(job, 2, 6) == [Ask(2, ((7, 0, 5),))]
    give_back(job, 2, 5)
    job.leave(2, 2.0)
    assert job.leave(2, 2.0) == []


def test_a_rank_that_begins_a_round_without_the_sum_before_leaves_no_trace(job: Job) -> None:
    """Such a rank breaks the protocol and harms only itself: once the round is complete, the older sum is dropped."""
    declare(job, 2, 6)
    declare(job, 0, 5)
    push(job, 0, 5)
    push(job, 0, 6)
    push(job, 1, 6)
    [action] = job.contribute(2, ShardRound(id=7, round=6, length=4), FOUR, 1.0)
    assert isinstance(action, Sum)
    job.summed(action.key, action.shard, "sum")
    job.check()
