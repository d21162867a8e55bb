"""The rounds of one shard: who has contributed, when to sum, and what to keep. This file has the whole decision.

A shard has one current round. It gathers the contributions of all ranks and is summed. Its result becomes the last
result, and the next round gathers. A contribution belongs to

    EARLY      a round after the current one
    CURRENT    the current round
    LAST       the round before, whose result is kept
    STALE      any earlier round

and RULES says what happens to it. A rank begins round r+1 only after it has received the sum of round r. So once all
ranks have contributed to the current round, nobody needs the last result, and it is released before the new sum is
made. A result is never written to after it was made: a slow reader sees the round that it asked for, or none.

Here, `rank` stands for a member: a worker, or a relay that contributes for several ranks; see roster.py.

An aggregator that was started again knows no rounds. It learns the current round from what the ranks declare. If a rank
lacks the sum of the round before, the aggregator gets it from a rank that has it; until then the first rank is a
waiter.
"""

import enum
from collections.abc import Iterable, Iterator, Set
from typing import Final, Generic, TypeVar

from psum.aggregator.core.roster import Roster

Result = TypeVar("Result")


class Phase(enum.Enum):
    """The phase of the current round."""

    # Hashing by identity: Enum's own hash takes as long as the rest of a contribution.
    __hash__ = object.__hash__

    GATHERING = "waits for contributions"
    SUMMING = "has all contributions, waits for its sum"
    FORWARDING = "has its sum in a relay's group, waits for the result of all groups"


class Timing(enum.Enum):
    """How a contribution's round relates to the current one."""

    # Hashing by identity: Enum's own hash takes as long as the rest of a contribution.
    __hash__ = object.__hash__

    EARLY = "a later round"
    CURRENT = "the current round"
    LAST = "the round before"
    STALE = "an older round"


class Verdict(enum.Enum):
    """What happens to a contribution."""

    TAKE = "it counts"
    COMPLETE = "it counts, and was the last one missing"
    IGNORE = "a duplicate of one that counted"
    REPLAY = "a duplicate whose sender lacks the result: send the result again"
    WAIT = "a duplicate whose sender lacks the result, which an earlier aggregator process made: ask a rank for it"
    REFUSE = "the sender breaks the protocol"


#: What happens to a contribution, by phase, timing, and whether its rank has already contributed to the current round.
#: TAKE becomes COMPLETE if it was the last one missing, and REPLAY becomes WAIT if the result is not here.
RULES: Final[dict[tuple[Phase, Timing, bool], Verdict]] = {
    (Phase.GATHERING, Timing.EARLY, False): Verdict.REFUSE,
    (Phase.GATHERING, Timing.EARLY, True): Verdict.REFUSE,
    (Phase.GATHERING, Timing.CURRENT, False): Verdict.TAKE,
    (Phase.GATHERING, Timing.CURRENT, True): Verdict.IGNORE,
    (Phase.GATHERING, Timing.LAST, False): Verdict.REPLAY,
    # The rank has begun the current round, so it has the result. This is a late copy.
    (Phase.GATHERING, Timing.LAST, True): Verdict.IGNORE,
    (Phase.GATHERING, Timing.STALE, False): Verdict.REFUSE,
    (Phase.GATHERING, Timing.STALE, True): Verdict.REFUSE,
    (Phase.SUMMING, Timing.EARLY, True): Verdict.REFUSE,
    (Phase.SUMMING, Timing.CURRENT, True): Verdict.IGNORE,
    (Phase.SUMMING, Timing.LAST, True): Verdict.IGNORE,
    (Phase.SUMMING, Timing.STALE, True): Verdict.REFUSE,
    (Phase.FORWARDING, Timing.EARLY, True): Verdict.REFUSE,
    (Phase.FORWARDING, Timing.CURRENT, True): Verdict.IGNORE,
    (Phase.FORWARDING, Timing.LAST, True): Verdict.IGNORE,
    (Phase.FORWARDING, Timing.STALE, True): Verdict.REFUSE,
}


# Cached at module level: these lookups are on the hot path.
_TAKE: Final = Verdict.TAKE
_CURRENT: Final = Timing.CURRENT
_GATHERING: Final = Phase.GATHERING
_SUMMING: Final = Phase.SUMMING

_NOTHING: Final = memoryview(b"")


class ShardRounds(Generic[Result]):
    """The rounds of one shard.

    Invariant: in GATHERING at least one rank is missing. In SUMMING and FORWARDING none is, and no result is kept.
    Ranks lack the last result only while it is not here.

    Args:
        roster: The ranks of the job.
        first_round: The first round to gather.
        root: The rank without whose contribution no round is complete; None if there is none such.
    """

    __slots__ = (
        "contributions",
        "counts",
        "holders",
        "inherited",
        "lacking",
        "last_result",
        "phase",
        "priority",
        "ranks_lacking_result",
        "root",
        "roster",
        "round",
        "since",
    )

    def __init__(self, roster: Roster, first_round: int = 0, *, root: int | None = None) -> None:
        self.round = first_round
        """The current round."""
        self.phase = Phase.GATHERING
        self.roster = roster
        """The ranks of the job."""
        self.root = root
        """The root of a broadcast. Without its value there is no result, also if it is lost. None for a sum."""
        self.contributions: dict[int, memoryview] = {}
        """The contributions to the current round by member; b'' from a member that only receives.

        Missing members have no entry: a job of thousands of workers may declare many thousands of shards.
        """
        self.counts: dict[int, int] | None = None
        """Of how many ranks the contributions of relays to the current round are, by member. Only in elastic jobs."""
        self.lacking: dict[int, Set[int]] | None = None
        """What relays have told about the current round: which of its ranks each waits for. It may be out of date for a
        relay that has contributed since."""
        self.priority: int | None = None
        """The highest priority of the contributions; None without any."""
        self.since: float | None = None
        """When the current round began to wait: at its first contribution, or when a rank first lacked the last result;
        None before that."""
        self.last_result: Result | None = None
        """The result of the round before; None if nobody needs it any more, or it is not here."""
        self.inherited = True
        """Whether this process has completed no round yet. Then the ranks know better which round is current."""
        self.holders: tuple[int, ...] = ()
        """The members that said that they have the last result, the latest at the end, while it is not here."""
        self.ranks_lacking_result: set[int] = set()
        """Ranks that lack the last result while it is not here."""

    @property
    def holder(self) -> int | None:
        """The member to ask for the last result while it is not here, None if none is known to have it."""
        return self.holders[-1] if self.holders else None

    @property
    def missing(self) -> int:
        """How many ranks have not contributed to the current round."""
        return sum(1 for _ in self.waiting_for()) + self.roster.unknown

    @property
    def members_missing(self) -> Iterator[int]:
        """The members that have joined the job and not contributed to the current round."""
        return (member for member in self.roster.members if member not in self.contributions)

    def __repr__(self) -> str:
        missing = ",".join(map(str, self.waiting_for()))
        return f"<ShardRounds round={self.round} {self.phase.name} missing=[{missing}]>"

    def contribute(self, rank: int, round: int, payload: memoryview, priority: int, now: float) -> Verdict:
        """Handles a rank's contribution to a round. On COMPLETE the caller sums, then calls `complete`."""
        contributions = self.contributions
        timing = _CURRENT if round == self.round else self._timing(round)
        verdict = RULES[self.phase, timing, rank in contributions]
        if verdict is not _TAKE:
            if verdict is Verdict.REPLAY and self.last_result is None:
                self.ranks_lacking_result.add(rank)
                if self.since is None:
                    self.since = now
                return Verdict.WAIT
            return verdict
        contributions[rank] = payload
        if self.ranks_lacking_result:
            # The rank has begun this round, so it has the last result, even if it asked for it before.
            self.ranks_lacking_result.discard(rank)
        if self.priority is None or priority > self.priority:
            self.priority = priority
        if self.since is None:
            self.since = now
        roster = self.roster
        if len(contributions) < roster.needed or ((roster.gone or self.root is not None) and not self._gathered):
            return verdict
        self.phase = Phase.SUMMING
        self.last_result = None
        return Verdict.COMPLETE

    def conclude(self) -> bool:
        """Ends the gathering of a round that waits for nobody, after members are gone. Returns whether it did.

        The caller then sums, and calls `complete`.
        """
        if self.phase is not Phase.GATHERING or not self.contributions or not self._gathered:
            return False
        self.phase = Phase.SUMMING
        self.last_result = None
        return True

    def complete(self, result: Result) -> None:
        """Makes the sum of the current round the last result, and begins the next round."""
        if self.phase is Phase.GATHERING:
            raise RuntimeError(f"a sum came for {self!r}, which has not gathered all contributions")
        self.contributions = {}
        self.priority = self.since = None
        self.last_result = result
        self.round += 1
        self.phase = Phase.GATHERING
        self.inherited = False
        self.holders = ()
        self.lacking = self.counts = None
        if self.ranks_lacking_result:
            # Correct workers do not begin a round while they lack the sum of the one before.
            self.ranks_lacking_result.clear()

    def forward(self, partial: memoryview | None) -> None:
        """Replaces the contributions by their sum, which a relay forwards. None: it forwards nothing but a pull."""
        if self.phase is not Phase.SUMMING:
            raise RuntimeError(f"a sum came for {self!r}, which has not gathered all contributions")
        self.contributions = dict.fromkeys(self.contributions, _NOTHING)
        if partial is not None:
            self.contributions[min(self.contributions)] = partial
        self.phase = Phase.FORWARDING

    def let_go(self) -> None:
        """Releases all memory: nobody will use the shard again."""
        self.contributions = {}
        self.last_result = None

    def copy(self, rank: int) -> None:
        """Replaces a rank's contribution by a copy, so that the memory it lies in can be released."""
        self.contributions[rank] = memoryview(bytes(self.contributions[rank]))

    def adopt(self, holder: int, now: float) -> None:
        """Begins the next round because a rank has the sum of the current one. Ranks that contributed wait for it."""
        self.ranks_lacking_result = set(self.contributions)
        self.contributions = {}
        self.lacking = self.counts = None
        self.priority = None
        self.since = now if self.ranks_lacking_result else None
        self.round += 1
        self.holders = (holder,)

    def holds(self, member: int) -> None:
        """Notes that a member has the last result, which is not here."""
        self.holders = (*(other for other in self.holders if other != member), member)

    def loses(self, member: int) -> set[int] | None:
        """Notes that a member has not the last result any more.

        A relay that receives a result and ends before it has passed it on has not: its next process begins with what
        the group's workers have.

        Returns:
            If no member has it, the last round is the current one again: the members that wait for the result, which
            must contribute again. None otherwise.
        """
        self.holders = tuple(other for other in self.holders if other != member)
        if self.holders or self.contributions or self.last_result is not None:
            return None
        waiting, self.ranks_lacking_result = self.ranks_lacking_result, set()
        self.round -= 1
        self.since = None
        # What relays have told is of the later round.
        self.lacking = None
        return waiting

    def restore(self, result: Result) -> tuple[int, ...]:
        """Takes the last result from a rank that gave it back. Returns the ranks that wait for it."""
        ranks = tuple(sorted(self.ranks_lacking_result))
        self.ranks_lacking_result.clear()
        self.last_result = result
        self.holders = ()
        if not self.contributions:
            self.since = None
        return ranks

    def lacks(self, member: int, ranks: Set[int]) -> None:
        """Notes which of its ranks a relay waits for in the current round. Empty: it does not say."""
        self.lacking = {**(self.lacking or {}), member: ranks}

    def waiting_for(self) -> Iterator[int]:
        """The known ranks that have not contributed to the current round, in ascending order.

        If a relay has not contributed, these are the ranks that it waits for, or all its ranks if it has not said.
        """
        lacking = self.lacking or {}
        for rank in self.roster.known:
            member = self.roster.member(rank)
            if member in self.contributions:
                continue
            if member is None or rank in (lacking.get(member) or (rank,)):
                yield rank

    def in_rank_order(self) -> tuple[memoryview, ...]:
        """The contributions to the current round, in rank order: by the first rank of each member."""
        return tuple(map(self.contributions.__getitem__, sorted(self.contributions, key=self.roster.order)))

    def to_sum(self) -> tuple[memoryview, ...]:
        """What the result of the current round is made of: all contributions, or of a broadcast the root's.

        Of a broadcast whose root is in another relay's group, that is nothing.
        """
        return self.in_rank_order() if self.root is None else (self.value,)

    @property
    def value(self) -> memoryview:
        """The value of a broadcast: what the member of its root has contributed, or another one in its place. Empty if
        there is none."""
        root = self.root
        if root is None:
            return _NOTHING
        return self.contributions.get(root) or self.contributions.get(self.sender) or _NOTHING

    @property
    def sender(self) -> int:
        """The member that has contributed a broadcast's value; -1 if none has, or another rank has given its own."""
        root = self.root
        member = None if root is None else self.roster.member(root)
        if member is not None:
            return member if self.contributions.get(member) else -1
        # The relay of a root that is lost may send its value again, after this aggregator was started again.
        return next((each for each, value in self.contributions.items() if value and each != root), -1)

    @property
    def _gathered(self) -> bool:
        """Whether all members have contributed that the round waits for; others may have contributed too.

        A relay's group needs no value: if its root is lost or elsewhere, the owner of the shard sees to it.
        """
        return self.awaits_nobody and (self.root is None or not self.roster.fleet or bool(self.value))

    @property
    def awaits_nobody(self) -> bool:
        """Whether no member's contribution is missing. A broadcast may still lack the value of a root that is gone."""
        return len(self.contributions) >= self.roster.needed and not any(True for _ in self.members_missing)

    def _timing(self, round: int) -> Timing:
        """The timing of a round other than the current one."""
        if round > self.round:
            return Timing.EARLY
        return Timing.LAST if round == self.round - 1 else Timing.STALE


def take_each(
    rank: int,
    now: float,
    contributions: Iterable[tuple[ShardRounds[Result] | None, int, int, memoryview]],
) -> list[bool | None]:
    """Handles a rank's contributions as `contribute` does as long as they are ordinary ones, which is most of them.

    Ordinary is a rank's first contribution to the current round, if no rank lacks a result and no member is gone.

    Args:
        rank: The rank.
        now: The time.
        contributions: For each the shard, the round, the priority and the payload. The first one that is not ordinary
            is the last one that is consumed, and changes nothing. One without a shard is not ordinary.

    Returns:
        What the ordinary ones led to. None: the round waits for others. Otherwise it was the last one missing, so the
        caller sums, and calls `complete`; True: the result of the round before was kept until now.
    """
    taken: list[bool | None] = []
    for shard, round, priority, payload in contributions:
        if shard is None or round != shard.round or shard.phase is not _GATHERING or shard.ranks_lacking_result:
            break
        present, roster = shard.contributions, shard.roster
        if rank in present or roster.gone:
            break
        present[rank] = payload
        if shard.priority is None or priority > shard.priority:
            shard.priority = priority
        if shard.since is None:
            shard.since = now
        if len(present) < roster.needed:
            taken.append(None)
            continue
        taken.append(shard.last_result is not None)
        shard.phase = _SUMMING
        shard.last_result = None
    return taken
