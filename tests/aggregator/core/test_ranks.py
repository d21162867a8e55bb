"""Each rank has one member that stands for it, and members are named by their ranks."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from psum.aggregator.core.membership import REPLACED_SECONDS
from psum.aggregator.core.registry import Registry
from psum.aggregator.core.roster import Roster
from psum.runtime import rank_names
from psum.wire.errors import DisagreementError, InvalidError, TakenError, WorkerLostError
from tests.aggregator.core.members import LIMITS, MEMBERS, faults, hello, refusal, started
from tests.aggregator.keys import FOUR, entry


@pytest.mark.parametrize(
    ("others", "ranks", "text"),
    [
        (
            MEMBERS,
            [2],
            "ranks 1-3 of job 'night' are taken by relay on h1 (peer:1), connected 2.0 s ago; refused h2 pid 7",
        ),
        (MEMBERS, [1, 2], "ranks 1-3 of job 'night' are taken by relay on h1 (peer:1)"),
        (
            ([0], [1], [2]),
            [1, 2, 3, 4],
            "ranks 1-2 of job 'night' are taken by h1 pid 7 (peer:1), connected 2.0 s ago, and by h2 pid 7 (peer:2)",
        ),
        (([1, 2, 3],), [0, 1], "ranks 1-3 of job 'night' are taken by relay on h1 (peer:1)"),
    ],
    ids=["a worker of a relay", "fewer ranks", "a relay for workers", "an overlap"],
)
def test_ranks_are_taken_once(others: Iterable[list[int]], ranks: list[int], text: str) -> None:
    """Another member that stands for some of them is refused, even if it is the same process. The error shows both."""
    job = started(*map(hello, others))
    refused = refusal(job, hello(ranks, incarnation=9))
    assert isinstance(refused, TakenError)
    assert text in str(refused)
    assert f"(peer:9) for {rank_names(ranks)}. Either" in str(refused)
    assert "PSUM_RELAY" in str(refused)
    assert refused.ranks == tuple(ranks)
    assert isinstance(refusal(job, hello(ranks, resuming=True)), TakenError)
    job.check()


def test_ranks_that_come_back_in_other_members_end_the_job() -> None:
    """A relay has vanished, and a process that started since comes for one of its ranks: that is another run."""
    job = started(*map(hello, MEMBERS))
    job.contribute(1, entry(), FOUR, 1.0)
    job.lost(1, 2.0)
    actions, refused = job.join(hello([2], incarnation=9, worker="h2 pid 8"), "peer:9", 2.0 + REPLACED_SECONDS)
    assert isinstance(refused, TakenError)
    [fault] = faults(actions)
    assert isinstance(fault, WorkerLostError)
    assert fault.ranks == (1, 2, 3)
    assert "ranks 1-3 of job 'night', relay on h1 (peer:1), vanished 3.0 s ago, and another process" in str(fault)
    still = job.join(hello([2], incarnation=9), "peer:9", 6.0)[1]
    assert "in which rank 2 was relay on h1 (peer:1), has failed and is still ending" in str(still)


@pytest.mark.parametrize(
    ("change", "both_sides"),
    [
        (
            {"num_workers": 6},
            r"PSUM_NUM_WORKERS\): rank 0 has 5, ranks 1-3 have 6. Rank 0 is h0 pid 7 \(peer:0\), ranks",
        ),
        ({"aggregators": ["b:1"]}, r"PSUM_AGGREGATORS\): rank 0 has \['a:1'\], ranks 1-3 have \['b:1'\]"),
    ],
)
def test_a_relay_that_disagrees_is_named_by_all_its_ranks(change: dict[str, Any], both_sides: str) -> None:
    """The error shows both sides."""
    job = started(hello([0]))
    actions, refused = job.join(hello([1, 2, 3], **change), "peer:1", 1.0)
    assert faults(actions) == [refused]
    assert isinstance(refused, DisagreementError)
    assert refused.ranks == (0, 1, 2, 3)
    with pytest.raises(DisagreementError, match=both_sides):
        raise refused


@pytest.mark.parametrize(
    ("rank", "ranks"),
    [(0, [1, 2]), (2, [1, 2]), (1, [1, 3, 2]), (1, [1, 1]), (3, [3, 4, 5]), (0, [0, 2**32 - 1])],
    ids=["another first rank", "not the first", "not in order", "twice", "too large", "far too large"],
)
def test_ranks_that_make_no_sense_are_refused(rank: int, ranks: list[int]) -> None:
    """The error shows what was sent and what is expected."""
    wrong = hello([rank])
    wrong.ranks.extend(ranks)
    job, actions, refused = Registry(LIMITS).join(wrong, "peer", 0.0)
    assert (job, actions, type(refused)) == (None, [], InvalidError)
    assert f"rank {rank} that stands for ranks {ranks} of 5 workers; expected each rank once" in str(refused)


def test_a_roster_knows_who_stands_for_whom() -> None:
    """Members are in rank order, whatever the order in which they join."""
    roster = Roster(5)
    roster.add((2, 4))
    assert (roster.members, roster.complete, roster.absent, roster.most_members) == ((2,), False, 3, 4)
    assert roster.not_joined() == [0, 1, 3]
    roster.add((0, 1, 3))
    assert (roster.members, roster.complete, roster.needed, roster.most_members) == ((0, 2), True, 2, 2)
    assert [roster.member(rank) for rank in range(6)] == [0, 0, 2, 0, 2, None]
    assert roster.ranks(2) == (2, 4)
    assert Roster(3, fleet=False).not_joined() == []


@pytest.mark.parametrize(
    ("ranks", "name"),
    [
        ([5], "rank 5"),
        ([4, 5], "ranks 4-5"),
        ([1, 4, 5, 6, 9], "ranks 1, 4-6, 9"),
        ([0, 2], "ranks 0, 2"),
        (range(5, 1000), "ranks 5-999"),
        ([*range(0, 24, 2), 23, 24, 27], "ranks 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22-24 and 1 more"),
        (range(1, 4096, 2), "ranks 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23 and 2036 more"),
    ],
)
def test_ranks_are_named_in_runs(ranks: Sequence[int], name: str) -> None:
    """A host's ranks mostly follow each other. Of many others, as a stranger may claim, some are named."""
    assert rank_names(ranks) == name
