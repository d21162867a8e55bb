"""The ranks of an elastic job: those that rounds wait for, and those that are lost or have left."""

from collections.abc import Collection, Sequence

from psum.aggregator.core.roster import NEVER, Roster
from psum.aggregator.core.roster_part import RosterPart


class ElasticRoster(Roster):
    """See Roster. `members` and `known` are without the ranks that are lost or have left: nothing waits for those.

    The job begins with the ranks 0 to size - 1. Further ones are added by `expect`, when a process is admitted.

    Args:
        size: With how many ranks the job begins.
        least: The least number of ranks with which a round can be complete.

    Attributes:
        least: The same.
        unchanged: Whether no rank was ever lost, has left, or was admitted.
        lost: The ranks that are lost.
        left: The ranks that have left in good order.
    """

    __slots__ = ("_enrolled", "_parts", "least", "left", "lost", "unchanged")

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

    def add(self, ranks: Sequence[int]) -> None:
        """See Roster."""
        super().add(ranks)
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
        """Waits for a process of a rank that was admitted, and not for the one that was lost or has left before."""
        self._enrolled.add(rank)
        self.lost.discard(rank)
        self.left.discard(rank)
        self._member.pop(rank, None)
        self._ranks.pop(rank, None)
        self._settle()

    def _settle(self) -> None:
        self.gone = frozenset(self.lost | self.left)
        self.known = tuple(rank for rank in sorted(self._enrolled) if rank not in self.gone)
        self.members = tuple(member for member in sorted(self._ranks) if member not in self.gone)
        self.needed = len(self.members) if self.complete and not self.too_few else NEVER
        self.unchanged = self.unchanged and not self.gone and len(self.known) <= self.size
        for part in self._parts.values():
            part.settle()
