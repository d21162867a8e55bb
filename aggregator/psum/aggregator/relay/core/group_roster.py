"""The ranks of a relay's group in an elastic job: for which of them its rounds wait, and which are gone."""

from collections.abc import Sequence

from psum.aggregator.core.elastic_roster import ElasticRoster


class GroupRoster(ElasticRoster):
    """See ElasticRoster. Which ranks the group has is known only when they join, or when others tell of those that are
    gone. Ranks of other groups are none of it. Its rounds need no least number of ranks: owners judge that.

    Args:
        size: How many ranks the group begins with.
    """

    __slots__ = ()

    def __init__(self, size: int) -> None:
        super().__init__(size, 0)
        self.fleet = False
        self._enrolled = set()
        self._settle()

    @property
    def absent(self) -> int:
        """How many ranks have not joined, except those that are lost or have left."""
        return super().absent + self.unknown

    @property
    def unknown(self) -> int:
        """How many ranks of the group are not known."""
        return max(0, self.size - len(self._enrolled))

    def add(self, ranks: Sequence[int], member: int | None = None) -> None:
        """See Roster. Ranks that were lost or had left before are members again."""
        self._enrolled.update(ranks)
        self.lost.difference_update(ranks)
        self.left.difference_update(ranks)
        super().add(ranks, member)

    def extend(self, member: int, rank: int) -> None:
        """See ElasticRoster."""
        self._enrolled.add(rank)
        super().extend(member, rank)

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
        self.size = min(self.size, len(self._enrolled))
        self._settle()
