"""The ranks of a relay's group in an elastic job: for which of them its rounds wait, and which are gone."""

from collections.abc import Callable, Sequence

from psum.aggregator.core.elastic_roster import ElasticRoster


class GroupRoster(ElasticRoster):
    """See ElasticRoster. Which ranks the group has is known only when they join, or when others tell of those that are
    gone. Ranks of other groups are none of it. Its rounds need no least number of ranks: owners judge that.

    Args:
        size: How many ranks the group begins with.
        is_newcomer: Whether the present process of a rank was admitted to the running job, so that the group did not
            begin with it.
    """

    __slots__ = ("_first", "_is_newcomer")

    def __init__(self, size: int, is_newcomer: Callable[[int], bool]) -> None:
        super().__init__(size, 0)
        self.fleet = False
        self._enrolled = set()
        self._first: set[int] = set()
        """The ranks that the group has begun with, as far as they are known."""
        self._is_newcomer = is_newcomer
        self._settle()

    @property
    def absent(self) -> int:
        """How many ranks have not joined, except those that are lost or have left."""
        return super().absent + self.unknown

    @property
    def unknown(self) -> int:
        """How many of the ranks that the group has begun with are not known."""
        return max(0, self.size - len(self._first))

    def add(self, ranks: Sequence[int], member: int | None = None) -> None:
        """See Roster. Ranks that were lost or had left before are members again."""
        self._enrolled.update(ranks)
        self._first.update(rank for rank in ranks if not self._is_newcomer(rank))
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

    def begun_with(self, rank: int) -> bool:
        """Whether the group has begun with a rank. Its process then, and later ones, may be lost."""
        return rank in self._first

    def lost_before(self, rank: int) -> None:
        """Notes that the group has begun with a rank, of which a process was lost before this relay was started.

        It may be expected again by now.
        """
        self._first.add(rank)
        if rank not in self._enrolled:
            self._enrolled.add(rank)
            super().lose(rank)
        self._settle()

    def left_before(self, rank: int) -> None:
        """Notes that the group has begun with a rank whose process has left, and whose next one was admitted."""
        self._first.add(rank)
        self._settle()

    def found(self) -> None:
        """Waits for no rank: a newcomer is the first one of the group."""
        self.size = 0
        self._settle()

    def give_up(self) -> None:
        """Waits no longer for ranks that are not known."""
        self.size = min(self.size, len(self._first))
        self._settle()
