"""The ranks of an elastic job: those that rounds wait for, and those that are lost or have left.

Ranks are lost, leave and are admitted one by one, also those behind a relay. Rounds wait for members. A relay is gone
when all its ranks are. A process may be admitted elsewhere in the first rank of a relay, which goes on with its others.
So a relay has a number of its own, above all ranks.
"""

from collections.abc import Collection, Sequence
from typing import Final

from psum.aggregator.core.roster import NEVER, Roster
from psum.aggregator.core.roster_part import RosterPart

#: The first number of a relay. A job has fewer ranks.
FIRST_RELAY: Final = 1 << 20


class ElasticRoster(Roster):
    """See Roster. Nothing waits for the ranks that are lost or have left: they are not in `known`. `members` is without
    those whose ranks are all gone.

    The job begins with the ranks 0 to size - 1. Further ones are added by `expect`, when a process is admitted.

    Args:
        size: With how many ranks the job begins.
        least: The least number of ranks with which a round can be complete.

    Attributes:
        least: The same.
        unchanged: Whether no rank was ever lost, has left, or was admitted, and no member is a relay.
        lost: The ranks that are lost.
        left: The ranks that have left in good order.
    """

    __slots__ = ("_enrolled", "_former", "_parts", "_relays", "least", "left", "lost", "unchanged")

    def __init__(self, size: int, least: int) -> None:
        super().__init__(size)
        self.least = least
        self.unchanged = True
        self.lost: set[int] = set()
        self.left: set[int] = set()
        self._enrolled = set(range(size))
        """The ranks that are or were expected to contribute."""
        self._parts: dict[tuple[int, ...], RosterPart] = {}
        """The parts of the job that use keys of their own, by ranks."""
        self._relays: dict[int, tuple[int, int]] = {}
        """The place of each relay among the members: its first rank when it joined, and its number."""
        self._former: set[int] = set()
        """The relays in all of whose ranks other processes were admitted elsewhere."""

    @property
    def complete(self) -> bool:
        """Whether all ranks have joined, except those that are lost or have left."""
        return not self.absent

    @property
    def absent(self) -> int:
        """How many ranks have not joined, except those that are lost or have left."""
        return sum(1 for rank in self.known if rank not in self._member)

    @property
    def unknown(self) -> int:
        """See Roster. All ranks are known."""
        return 0

    @property
    def too_few(self) -> bool:
        """Whether fewer ranks are left than a round needs."""
        return len(self.known) < self.least

    @property
    def deserted(self) -> bool:
        """Whether a round would have enough ranks if some had not left in good order. Nobody replaces those."""
        return self.too_few and len(self.known) + len(self.left - self.lost) >= self.least

    def __contains__(self, rank: int) -> bool:
        """Whether a rank is or was expected to contribute."""
        return rank in self._enrolled

    def part(self, ranks: Sequence[int]) -> RosterPart:
        """The roster of some ranks."""
        which = tuple(ranks)
        if (part := self._parts.get(which)) is None:
            part = self._parts[which] = RosterPart(self, which)
        return part

    def keep_parts(self, used: Collection[Roster]) -> None:
        """Forgets the parts that no key uses any more."""
        self._parts = {ranks: part for ranks, part in self._parts.items() if part in used}

    def is_gone(self, rank: int) -> bool:
        """See Roster."""
        return rank in self.lost or rank in self.left

    def living(self, member: int) -> tuple[int, ...]:
        """The ranks that a member stands for and that are neither lost nor have left."""
        return tuple(rank for rank in self.ranks(member) if not self.is_gone(rank))

    def stands(self, member: int) -> bool:
        """Whether a member stands for any rank, also if it is gone."""
        return member in self._ranks

    @property
    def has_relays(self) -> bool:
        """Whether a relay has ever joined."""
        return bool(self._relays)

    def add(self, ranks: Sequence[int], member: int | None = None) -> None:
        """See Roster."""
        super().add(ranks, member)
        self._settle()

    def add_relay(self, ranks: Sequence[int]) -> int:
        """Adds a relay that has joined. Returns its number."""
        member = FIRST_RELAY + len(self._relays)
        self._relays[member] = ranks[0], member
        self.order = self._place
        self.add(ranks, member)
        return member

    def extend(self, member: int, rank: int) -> None:
        """Adds a rank to those that a relay stands for."""
        self._enrolled.add(rank)
        self._member[rank] = member
        self._ranks[member] = tuple(sorted({*self._ranks[member], rank}))
        self._settle()

    def lose(self, rank: int) -> None:
        """Notes that a rank is lost. It may never have joined, or be none that is known here."""
        self._enrolled.add(rank)
        self.lost.add(rank)
        self._settle()

    def leave(self, rank: int) -> None:
        """Notes that a rank has left in good order."""
        self.left.add(rank)
        self._settle()

    def take_back(self, rank: int) -> None:
        """Notes that a rank that has left is a member again."""
        self.left.discard(rank)
        self._settle()

    def expect(self, rank: int) -> None:
        """Waits for a process of a rank that was admitted, and not for the one that was lost or has left before.

        No member stands for the rank until that process joins.
        """
        self._enrolled.add(rank)
        self.lost.discard(rank)
        self.left.discard(rank)
        if (member := self._member.pop(rank, None)) is not None:
            others = tuple(other for other in self._ranks.pop(member) if other != rank)
            if others:
                self._ranks[member] = others
            elif member in self._relays:
                self._former.add(member)
        self._settle()

    def _place(self, member: int) -> tuple[int, int]:
        """By what members are sorted: workers and groups by their first ranks."""
        return self._relays.get(member) or (member, member)

    def _settle(self) -> None:
        out = self.lost | self.left
        relays = {relay for relay in self._relays if relay in self._ranks and out.issuperset(self._ranks[relay])}
        self.gone = frozenset({rank for rank in out if self._member.get(rank, rank) == rank} | relays | self._former)
        self.known = tuple(rank for rank in sorted(self._enrolled) if rank not in out)
        self.members = tuple(member for member in sorted(self._ranks, key=self.order) if member not in self.gone)
        self.needed = len(self.members) if self.complete and not self.too_few else NEVER
        self.unchanged = self.unchanged and not out and not self._relays and len(self.known) <= self.size
        for part in self._parts.values():
            part.settle()
