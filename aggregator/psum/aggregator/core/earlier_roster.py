"""The ranks that a round waits for which comes before the admission of a newcomer."""

from collections.abc import Callable, Sequence, Set
from typing import Any

from psum.aggregator.core.elastic_roster import ElasticRoster
from psum.aggregator.core.roster import NEVER, Roster


class EarlierRoster(Roster):
    """The roster of an elastic job without a newcomer. It always says what that roster says at the moment.

    Args:
        job: The roster of the job.
        newcomer: The rank that was admitted from a later round on.
    """

    __slots__ = ("_job", "_newcomer")

    def __init__(self, job: ElasticRoster, newcomer: int) -> None:
        # Roster's attributes are properties here.
        self._job = job
        self._newcomer = newcomer

    @property
    def size(self) -> int:  # type: ignore[override]
        """See Roster."""
        return self._job.size

    @property
    def fleet(self) -> bool:  # type: ignore[override]
        """See Roster."""
        return self._job.fleet

    @property
    def known(self) -> Sequence[int]:  # type: ignore[override]
        """See Roster."""
        return tuple(rank for rank in self._job.known if rank != self._newcomer)

    @property
    def members(self) -> tuple[int, ...]:  # type: ignore[override]
        """See Roster."""
        # A relay may have let the newcomer in, and stand for others too.
        return tuple(member for member in self._job.members if self._job.living(member) != (self._newcomer,))

    @property
    def gone(self) -> Set[int]:  # type: ignore[override]
        """See Roster. The newcomer takes no part."""
        return self._job.gone | {self._newcomer} | (set(self._job.members) - set(self.members))

    @property
    def order(self) -> Callable[[int], Any] | None:  # type: ignore[override]
        """See Roster."""
        return self._job.order

    @property
    def absent(self) -> int:
        """See Roster."""
        return sum(1 for rank in self.known if self._job.member(rank) is None)

    @property
    def unknown(self) -> int:
        """See Roster."""
        return self._job.unknown

    @property
    def needed(self) -> int:  # type: ignore[override]
        """See Roster. The newcomer counts when it comes to the minimum: it is a member, only not of this round."""
        return NEVER if self.absent or self._job.too_few else len(self.members)

    def member(self, rank: int) -> int | None:
        """See Roster."""
        return self._job.member(rank)

    def is_gone(self, rank: int) -> bool:
        """See Roster. A broadcast from the newcomer's rank has lost its root."""
        return rank == self._newcomer or self._job.is_gone(rank)

    def ranks(self, member: int) -> tuple[int, ...]:
        """See Roster."""
        return self._job.ranks(member)
