"""The syncs of owners that a relay passes on to its group."""

from collections.abc import Collection, Mapping
from typing import Final

from psum.aggregator.core.actions import Action, SendUplinks, Sync
from psum.aggregator.relay.core.uplink import Uplink
from psum.client.core.known_departures import further_up

#: The numbers of the syncs that a relay passes on begin here, above all ranks, which number the group's own.
FIRST_SYNC: Final = 1 << 32


class PassedSyncs:
    """Asks the members of a group to confirm what owners ask the relay to confirm.

    It is not enough that the relay has all sums. If the relay and the owner are killed together, and no rank of this
    group had received a sum, the ranks that have left would be needed to make it again.

    Args:
        uplink: The syncs of owners.
    """

    def __init__(self, uplink: Uplink) -> None:
        self._uplink = uplink
        self._passed: dict[int, tuple[tuple[int, int], set[int]]] = {}
        """By number: which sync of which owner it is, and the members that have not answered."""
        self._next = FIRST_SYNC

    def pass_on(self, members: Collection[int]) -> list[Action]:
        """Asks these members to confirm what they have not been asked."""
        known = {which for which, _ in self._passed.values()}
        actions: list[Action] = []
        for which, leaving in self._uplink.syncs.items():
            if which in known:
                continue
            number, self._next = self._next, self._next + 1
            self._passed[number] = which, set(members)
            actions.append(Sync(number, tuple(sorted(members)), tuple(further_up(leaving))))
        return actions + self.settle()

    def settle(self, member: int | None = None, number: int | None = None) -> list[Action]:
        """Notes that a member has answered a sync, or with its end all; confirms what all have answered."""
        asked: Mapping[tuple[int, int], object] = self._uplink.syncs
        done = []
        for each, (which, members) in self._passed.items():
            if member is not None and number in (None, each):
                members.discard(member)
            if not members or which not in asked:
                done.append(each)
        for each in done:
            self._uplink.confirm(*self._passed.pop(each)[0])
        return [SendUplinks()] if done else []

    def clear(self) -> None:
        """Forgets all: the job has failed."""
        self._passed.clear()
