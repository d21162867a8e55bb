"""The ranks of one job: how many it has, which have joined, and which member stands for each.

A **member** is a peer of the aggregator that contributes to rounds. A worker is the member of its own rank. A relay is
a member that stands for several ranks: it contributes their sum. A member is identified by its first rank; relays of
elastic jobs have numbers of their own, see elastic_roster.py. The text for people names ranks.
"""

import sys
from collections.abc import Callable, Sequence, Set
from typing import Any, Final

from psum.v1 import aggregator_pb2 as pb

#: More contributions than a round can have.
NEVER: Final = sys.maxsize


def ranks_of(hello: pb.Hello) -> tuple[int, ...]:
    """The ranks that a member stands for, in ascending order."""
    return tuple(hello.ranks) or (hello.rank,)


class Roster:
    """The ranks of one job and its members.

    The job of a fleet has the ranks 0 to size - 1. The job of a relay's group has as many ranks as the group; which
    ones they are is known only when they join.

    Args:
        size: How many ranks the job has.
        fleet: Whether it is the job of a fleet.

    Attributes:
        size: How many ranks the job has.
        members: The members that have joined, by first rank, in ascending order.
        needed: How many contributions make a round complete. No round can have as many until all ranks have joined.
        known: The ranks that are known, in ascending order.
        fleet: Whether it is the job of a fleet.
        gone: The members that rounds wait for no more, though they may have contributed. Only in elastic jobs.
        order: By what members are sorted, for `sorted`; None: by their numbers.
    """

    __slots__ = ("_member", "_ranks", "fleet", "gone", "known", "members", "needed", "order", "size")

    def __init__(self, size: int, *, fleet: bool = True) -> None:
        self.size = size
        self.members: tuple[int, ...] = ()
        self.needed = NEVER
        self.known: Sequence[int] = range(size) if fleet else ()
        self.fleet = fleet
        self.gone: Set[int] = frozenset()
        self.order: Callable[[int], Any] | None = None
        self._member: dict[int, int] = {}
        """The member that stands for each rank that has joined."""
        self._ranks: dict[int, tuple[int, ...]] = {}
        """The ranks that each member stands for."""

    @property
    def complete(self) -> bool:
        """Whether all ranks have joined."""
        return self.needed < NEVER

    @property
    def absent(self) -> int:
        """How many ranks have not joined."""
        return self.size - len(self._member)

    @property
    def unknown(self) -> int:
        """How many of them are not known."""
        return self.size - len(self.known)

    @property
    def most_members(self) -> int:
        """How many members the job can have at most; if it is complete, how many it has."""
        return len(self.members) + self.absent

    def add(self, ranks: Sequence[int], member: int | None = None) -> None:
        """Adds a member that has joined, by the ranks that it stands for. No other member stands for any of them.

        Args:
            ranks: The ranks, in ascending order.
            member: The member's number; None: its first rank.
        """
        member = ranks[0] if member is None else member
        self._member.update(dict.fromkeys(ranks, member))
        self._ranks[member] = tuple(ranks)
        self.members = tuple(sorted(self._ranks))
        if not self.fleet:
            self.known = tuple(sorted(self._member))
        if not self.absent:
            self.needed = len(self.members)

    def member(self, rank: int) -> int | None:
        """The member that stands for a rank; None if the rank has not joined."""
        return self._member.get(rank)

    def ranks(self, member: int) -> tuple[int, ...]:
        """The ranks that a member stands for, in ascending order."""
        return self._ranks.get(member, (member,))

    def living(self, member: int) -> tuple[int, ...]:
        """The ranks that a member stands for and that take part in rounds. In other than elastic jobs, that is all."""
        return self.ranks(member)

    def is_gone(self, rank: int) -> bool:
        """Whether a rank takes part in no round any more, although its member may. Only in elastic jobs."""
        return False

    def not_joined(self) -> list[int]:
        """The known ranks that have not joined, in ascending order."""
        return [rank for rank in self.known if rank not in self._member]
