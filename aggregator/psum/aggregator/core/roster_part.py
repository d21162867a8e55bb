"""Some ranks of an elastic job: those that use a key which is not for all ranks."""

from collections.abc import Sequence

from psum.aggregator.core.roster import NEVER, Roster


class RosterPart(Roster):
    """See Roster. Rounds wait for these ranks, except those that are lost or have left. No least number is needed.

    Args:
        whole: The roster of the job, which calls `settle` whenever it changes.
        ranks: The ranks.
    """

    __slots__ = ("_part", "_whole")

    def __init__(self, whole: Roster, ranks: Sequence[int]) -> None:
        super().__init__(len(ranks), fleet=whole.fleet)
        self._whole = whole
        self._part = frozenset(ranks)
        self.settle()

    @property
    def absent(self) -> int:
        """How many of the ranks have not joined, except those that are lost or have left."""
        return len(self.not_joined())

    @property
    def unknown(self) -> int:
        """See Roster. Of a relay's group some may not be known, and use the key too."""
        return self._whole.unknown

    def member(self, rank: int) -> int | None:
        """See Roster."""
        return self._whole.member(rank)

    def ranks(self, member: int) -> tuple[int, ...]:
        """See Roster."""
        return self._whole.ranks(member)

    def is_gone(self, rank: int) -> bool:
        """See Roster."""
        return self._whole.is_gone(rank)

    def not_joined(self) -> list[int]:
        """See Roster."""
        return [rank for rank in self._whole.not_joined() if rank in self._part]

    def settle(self) -> None:
        """Takes over what has changed in the job."""
        whole, part = self._whole, self._part
        self.order = whole.order
        self.known = tuple(rank for rank in whole.known if rank in part)
        self.members = tuple(member for member in whole.members if part.intersection(whole.living(member)))
        # A relay may go on with ranks that are not of this part.
        self.gone = frozenset(
            member
            for member in (*whole.members, *whole.gone)
            if member not in self.members and part.intersection(whole.ranks(member))
        )
        self.needed = NEVER if self.not_joined() or whole.unknown else len(self.members)
