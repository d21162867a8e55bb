"""The rounds of a shard follow their table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psum.aggregator.core.roster import Roster
from psum.aggregator.core.round import RULES, Phase, ShardRounds, Timing, Verdict

ONE = memoryview(b"1")


def joined(num_workers: int) -> Roster:
    """A job that all its workers have joined."""
    roster = Roster(num_workers)
    for rank in range(num_workers):
        roster.add((rank,))
    return roster


def gathered(num_workers: int, ranks: list[int], round: int = 0) -> ShardRounds[str]:
    shard: ShardRounds[str] = ShardRounds(joined(num_workers), round)
    for rank in ranks:
        shard.contribute(rank, round, ONE, 0, 1.0)
    return shard


def test_the_last_missing_rank_completes_the_round() -> None:
    """When no contribution is missing, the sum is due; then the next round begins with its result."""
    shard: ShardRounds[str] = ShardRounds(joined(3))
    assert shard.contribute(2, 0, memoryview(b"c"), -5, 1.0) is Verdict.TAKE
    assert shard.contribute(0, 0, memoryview(b"a"), -9, 2.0) is Verdict.TAKE
    assert list(shard.waiting_for()) == [1]
    assert shard.since == 1.0
    assert shard.contribute(1, 0, memoryview(b"b"), -7, 3.0) is Verdict.COMPLETE
    assert [bytes(c) for c in shard.in_rank_order()] == [b"a", b"b", b"c"]
    assert shard.priority == -5
    shard.complete("abc")
    assert (shard.round, shard.phase, shard.last_result) == (1, Phase.GATHERING, "abc")
    assert shard.since is None
    assert list(shard.waiting_for()) == [0, 1, 2]


def test_a_contribution_sent_twice_counts_once() -> None:
    """A duplicate is ignored, even if its content differs."""
    shard = gathered(2, [0])
    assert shard.contribute(0, 0, memoryview(b"x"), 9, 2.0) is Verdict.IGNORE
    assert shard.contributions[0] == ONE
    assert shard.contribute(1, 0, ONE, 0, 2.0) is Verdict.COMPLETE
    assert shard.contribute(1, 0, memoryview(b"x"), 0, 2.0) is Verdict.IGNORE
    assert shard.in_rank_order() == (ONE, ONE)


def test_a_rank_that_lost_its_result_gets_it_again() -> None:
    """A contribution to the round before is answered with its result, until its rank has begun the next."""
    shard = gathered(2, [0, 1])
    shard.complete("sum")
    assert shard.contribute(0, 0, ONE, 0, 2.0) is Verdict.REPLAY
    assert shard.contribute(0, 1, ONE, 0, 2.0) is Verdict.TAKE
    assert shard.contribute(0, 0, ONE, 0, 2.0) is Verdict.IGNORE
    assert shard.last_result == "sum"


def test_a_result_is_let_go_when_every_rank_has_begun_the_next_round() -> None:
    """A rank that begins round r+1 has the sum of round r."""
    shard = gathered(2, [0, 1])
    shard.complete("sum")
    shard.contribute(0, 1, ONE, 0, 2.0)
    assert shard.last_result == "sum"
    assert shard.contribute(1, 1, ONE, 0, 2.0) is Verdict.COMPLETE
    assert shard.last_result is None


@pytest.mark.parametrize("round", [0, 1, 4, 5])
def test_rounds_that_cannot_be_meant_are_refused(round: int) -> None:
    """Contributions to rounds that are not open yet, or long over, are the sender's mistake and never count."""
    shard = gathered(2, [0, 1], 2)
    shard.complete("sum")
    assert shard.contribute(0, round, ONE, 0, 2.0) is Verdict.REFUSE
    assert list(shard.waiting_for()) == [0, 1]


def test_a_result_that_is_not_here_is_waited_for() -> None:
    """Without a result of its own, a shard remembers who lacks that of the round before, until it is given back."""
    shard: ShardRounds[str] = ShardRounds(joined(2), first_round=5)
    assert shard.contribute(0, 4, ONE, 0, 2.0) is Verdict.WAIT
    assert shard.since == 2.0
    assert shard.restore("sum") == (0,)
    assert shard.since is None
    assert shard.contribute(1, 4, ONE, 0, 3.0) is Verdict.REPLAY


def test_a_sum_that_was_not_due_is_a_mistake_of_ours() -> None:
    """Completing a round that still gathers raises."""
    with pytest.raises(RuntimeError, match="has not gathered"):
        gathered(2, [0]).complete("sum")


def test_the_table_has_a_rule_for_everything_that_can_be() -> None:
    """All combinations have a rule, except those in SUMMING without a contribution."""
    assert set(RULES) == {
        (phase, timing, contributed)
        for phase in Phase
        for timing in Timing
        for contributed in (False, True)
        if contributed or phase is Phase.GATHERING
    }


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 1), st.booleans()), max_size=60))
def test_any_history_keeps_each_round_whole(num_workers: int, history: list[tuple[int, int, bool]]) -> None:
    """In any order of contributions, a completed round has exactly one of each rank, made for that round."""
    shard: ShardRounds[int] = ShardRounds(joined(num_workers))
    for rank, offset, finish in history:
        rank %= num_workers
        round = shard.round + offset
        if round < 0:
            continue
        before = shard.round
        verdict = shard.contribute(rank, round, memoryview(bytes([rank, round % 256])), 0, 0.0)
        assert (verdict in (Verdict.TAKE, Verdict.COMPLETE)) <= (offset == 0)
        if verdict is Verdict.REPLAY:
            assert shard.last_result == round
        assert verdict is not Verdict.WAIT or shard.inherited
        assert [bytes(c) for c in shard.in_rank_order()] == [
            bytes([r, before % 256]) for r in sorted(shard.contributions)
        ]
        if shard.phase is Phase.SUMMING and finish:
            shard.complete(shard.round)
            assert shard.round == before + 1


def test_what_relays_told_of_a_round_does_not_count_for_the_round_before() -> None:
    """The only holder of a sum has lost it: the round is gathered again, and other ranks may be missing now."""
    roster = Roster(3)
    roster.add((0, 1))
    roster.add((2,))
    shard: ShardRounds[str] = ShardRounds(roster, 5)
    shard.contribute(2, 5, ONE, 0, 1.0)
    shard.adopt(0, 2.0)
    shard.lacks(0, {1})
    assert list(shard.waiting_for()) == [1, 2]
    assert shard.loses(0) == {2}
    assert list(shard.waiting_for()) == [0, 1, 2]
