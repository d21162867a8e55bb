"""The rounds of one shard: who has contributed, when to sum, what to keep. Everything that decides it is in this file.

A shard has one current round. It gathers the contributions of all ranks, is summed, and its result becomes the last
result while the next round gathers. A contribution belongs to

    EARLY      a round after the current one
    CURRENT    the current round
    LAST       the round before, whose result is kept
    STALE      any round before that

and RULES says what becomes of it. A rank can only begin round r+1 when it has the sum of round r; so once all have
contributed to the current round, the last result is needed no more, and is let go before the new sum is made. A result
is never written to after it was made: a slow reader sees the round that it asked for, or none.

An aggregator that was started again knows nothing. It learns the current round from what the ranks declare; the sum of
the round before, should a rank lack it, it has from a rank that has it. Until then that rank is a waiter.
"""

import enum
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

Result = TypeVar("Result")


class Phase(enum.Enum):
    """Where the current round stands."""

    # Members are one object each. The hash that an Enum has of itself is as slow as the rest of a contribution.
    __hash__ = object.__hash__

    GATHERING = "waits for contributions"
    SUMMING = "has all contributions, waits for its sum"


class Timing(enum.Enum):
    """How a contribution's round relates to the current one."""

    # Members are one object each. The hash that an Enum has of itself is as slow as the rest of a contribution.
    __hash__ = object.__hash__

    EARLY = "a later round"
    CURRENT = "the current round"
    LAST = "the round before"
    STALE = "an older round"


class Verdict(enum.Enum):
    """What becomes of a contribution."""

    TAKE = "it counts"
    COMPLETE = "it counts, and was the last one missing"
    IGNORE = "a duplicate of one that counted"
    REPLAY = "a duplicate whose sender lacks the result: send it again"
    WAIT = "the same, but the result was lost with another aggregator process: ask a rank that has it"
    REFUSE = "the sender breaks the protocol"


#: What becomes of a contribution by phase, timing, and whether its rank has contributed to the current round already.
#: TAKE turns into COMPLETE where it was the last one missing, REPLAY into WAIT where the result is not here.
RULES: Final[dict[tuple[Phase, Timing, bool], Verdict]] = {
    (Phase.GATHERING, Timing.EARLY, False): Verdict.REFUSE,
    (Phase.GATHERING, Timing.EARLY, True): Verdict.REFUSE,
    (Phase.GATHERING, Timing.CURRENT, False): Verdict.TAKE,
    (Phase.GATHERING, Timing.CURRENT, True): Verdict.IGNORE,
    (Phase.GATHERING, Timing.LAST, False): Verdict.REPLAY,
    # It has begun the current round, so it has the result: this is a copy that was under way for long.
    (Phase.GATHERING, Timing.LAST, True): Verdict.IGNORE,
    (Phase.GATHERING, Timing.STALE, False): Verdict.REFUSE,
    (Phase.GATHERING, Timing.STALE, True): Verdict.REFUSE,
    (Phase.SUMMING, Timing.EARLY, True): Verdict.REFUSE,
    (Phase.SUMMING, Timing.CURRENT, True): Verdict.IGNORE,
    (Phase.SUMMING, Timing.LAST, True): Verdict.IGNORE,
    (Phase.SUMMING, Timing.STALE, True): Verdict.REFUSE,
}


# Found faster than as attributes of their classes, which are asked for with each contribution.
_TAKE: Final = Verdict.TAKE
_CURRENT: Final = Timing.CURRENT


class ShardRounds(Generic[Result]):
    """The rounds of one shard.

    Invariant: in GATHERING at least one rank is missing; in SUMMING none is, and no result is kept. There are waiters
    only while the last result is not here.

    Args:
        num_workers: The number of ranks.
        first_round: The round that is gathered first.
    """

    __slots__ = (
        "contributions",
        "holder",
        "inherited",
        "last_result",
        "num_workers",
        "phase",
        "priority",
        "round",
        "since",
        "waiters",
    )

    def __init__(self, num_workers: int, first_round: int = 0) -> None:
        self.round = first_round
        """The current round."""
        self.phase = Phase.GATHERING
        self.num_workers = num_workers
        """The number of ranks."""
        self.contributions: dict[int, memoryview] = {}
        """What ranks contributed to the current round; b'' from a rank that only receives. No place for those that have
        not: a job of thousands of workers may declare many thousands of shards."""
        self.priority: int | None = None
        """The most urgent of the contributions' priorities, None while there are none."""
        self.since: float | None = None
        """When the first contribution or waiter of the current round came, None while there are none."""
        self.last_result: Result | None = None
        """The result of the round before, None where it is needed no more, or not here."""
        self.inherited = True
        """Whether no round was completed here: then the ranks know better which round is the current one."""
        self.holder: int | None = None
        """A rank that has the last result, where that is not here."""
        self.waiters: set[int] = set()
        """Ranks that lack the last result while it is not here."""

    @property
    def missing(self) -> int:
        """How many ranks have not contributed to the current round."""
        return self.num_workers - len(self.contributions)

    def __repr__(self) -> str:
        missing = ",".join(map(str, self.waiting_for()))
        return f"<ShardRounds round={self.round} {self.phase.name} missing=[{missing}]>"

    def contribute(self, rank: int, round: int, payload: memoryview, priority: int, now: float) -> Verdict:
        """A rank's contribution to a round; on COMPLETE the caller sums and then calls `complete`."""
        contributions = self.contributions
        timing = _CURRENT if round == self.round else self._timing(round)
        verdict = RULES[self.phase, timing, rank in contributions]
        if verdict is not _TAKE:
            if verdict is Verdict.REPLAY and self.last_result is None:
                self.waiters.add(rank)
                if self.since is None:
                    self.since = now
                return Verdict.WAIT
            return verdict
        contributions[rank] = payload
        if self.waiters:
            # It has begun this round, so it has the last result, even if it said otherwise before.
            self.waiters.discard(rank)
        if self.priority is None or priority > self.priority:
            self.priority = priority
        if self.since is None:
            self.since = now
        if len(contributions) < self.num_workers:
            return verdict
        self.phase = Phase.SUMMING
        self.last_result = None
        return Verdict.COMPLETE

    def complete(self, result: Result) -> None:
        """The sum of the current round is there: it becomes the last result, and the next round begins."""
        if self.phase is not Phase.SUMMING:
            raise RuntimeError(f"a sum for {self!r}, which has not gathered all contributions")
        self.contributions = {}
        self.priority = self.since = None
        self.last_result = result
        self.round += 1
        self.phase = Phase.GATHERING
        self.inherited = False
        self.holder = None
        if self.waiters:
            # Honest ranks do not begin a round while they lack the sum of the one before.
            self.waiters.clear()

    def copy(self, rank: int) -> None:
        """Replaces a rank's contribution by a copy: its memory is much more than itself, or not to be relied on."""
        self.contributions[rank] = memoryview(bytes(self.contributions[rank]))

    def adopt(self, holder: int, now: float) -> None:
        """A rank has the sum of the current round: the next one begins, and whoever contributed waits for that sum."""
        self.waiters = set(self.contributions)
        self.contributions = {}
        self.priority = None
        self.since = now if self.waiters else None
        self.round += 1
        self.holder = holder

    def restore(self, result: Result) -> tuple[int, ...]:
        """The last result was given back by a rank that has it; returns the ranks that wait for it."""
        waiters = tuple(sorted(self.waiters))
        self.waiters.clear()
        self.last_result = result
        self.holder = None
        if not self.contributions:
            self.since = None
        return waiters

    def waiting_for(self) -> Iterator[int]:
        """The ranks that have not contributed to the current round."""
        return (rank for rank in range(self.num_workers) if rank not in self.contributions)

    def in_rank_order(self) -> tuple[memoryview, ...]:
        """The contributions to the current round, whatever the order in which they came."""
        return tuple(map(self.contributions.__getitem__, sorted(self.contributions)))

    def _timing(self, round: int) -> Timing:
        """That of any round but the current one."""
        if round > self.round:
            return Timing.EARLY
        return Timing.LAST if round == self.round - 1 else Timing.STALE
