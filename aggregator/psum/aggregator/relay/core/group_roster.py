"""The ranks of a relay's group in an elastic job: for which of them its rounds wait, and which are gone."""

from collections.abc import Sequence

from psum.aggregator.core.elastic_roster import ElasticRoster


class GroupRoster(ElasticRoster):
    """See ElasticRoster. Which ranks the group has is known only when they join, or when others tell of those that are
    gone. Ranks of other groups are none of it. Its rounds need no least number of ranks: owners judge that.

    A group grows by newcomers. A relay that was started again waits for as many ranks as the group has begun with, and
    for the newcomers of which it hears.

    Args:
        size: How many ranks the group begins with.
    """

    __slots__ = ("_first", "_later")

    def __init__(self, size: int) -> None:
        super().__init__(size, 0)
        self.fleet = False
        self._enrolled = set()
        self._first: set[int] = set()
        """Ranks of which it is known that the group has begun with them."""
        self._later: set[int] = set()
        """Ranks whose first process in this group was a newcomer, as far as is known."""
        self._settle()

    def begun_with(self, rank: int) -> bool:
        """Whether the group has begun with a rank, which may be lost."""
        return rank in self._enrolled and rank not in self._later

    @property
    def absent(self) -> int:
        """How many ranks have not joined, except those that are lost or have left."""
        return super().absent + self.unknown

    @property
    def unknown(self) -> int:
        """How many ranks of the group are not known."""
        return max(0, self.size - len(self._enrolled - self._later))

    def add(self, ranks: Sequence[int], member: int | None = None) -> None:
        """See Roster. Ranks that were lost or had left before are members again."""
        self._enrolled.update(ranks)
        self.lost.difference_update(ranks)
        self.left.difference_update(ranks)
        super().add(ranks, member)

    def expect(self, rank: int) -> None:
        """See ElasticRoster."""
        self.note_newcomer(rank)
        super().expect(rank)

    def note_newcomer(self, rank: int) -> None:
        """Notes that a process of a rank is a newcomer. Another one of the rank may have been there from the start."""
        if rank not in self._enrolled and rank not in self._first:
            self._later.add(rank)

    def note_first(self, rank: int) -> None:
        """Notes that the group has begun with a rank."""
        self._first.add(rank)
        self._later.discard(rank)

    def lose(self, rank: int) -> None:
        """See ElasticRoster. A rank of another group changes nothing here."""
        if rank in self._enrolled:
            super().lose(rank)

    def lost_before(self, rank: int) -> None:
        """Notes that a rank of the group was lost before this process was started. It may be expected again by now."""
        if rank not in self._enrolled:
            self._enrolled.add(rank)
            super().lose(rank)

    def found(self) -> None:
        """Waits for no rank: a newcomer is the first one of the group."""
        self.size = 0
        self._settle()

    def give_up(self) -> None:
        """Waits no longer for ranks that are not known."""
        self.size -= self.unknown
        self._settle()
