"""Which ranks of a relay's group have left while others stay, as the owners are told."""

from collections.abc import Callable, Iterable, Mapping

from psum.aggregator.core.key import Key
from psum.aggregator.core.roster import Roster
from psum.aggregator.core.round import Phase
from psum.aggregator.relay.core.forwarded import ForwardedKey
from psum.aggregator.relay.core.uplink import Uplink


class LeftRanks:
    """The ranks that have left, and that the owners have not been told of.

    Args:
        roster: The ranks of the group.
        keys: The declared keys by id; a view of the job's dictionary.
        uplink: What is sent to the owners.
        awaits_declaration: Whether members that use a key will declare it, so that the owners can be told of it.
    """

    def __init__(
        self,
        roster: Roster,
        keys: Mapping[int, Key],
        uplink: Uplink,
        awaits_declaration: Callable[[ForwardedKey], bool],
    ) -> None:
        self._roster = roster
        self._keys = keys
        self._uplink = uplink
        self._awaits_declaration = awaits_declaration
        self._untold: set[int] = set()

    def add(self, ranks: Iterable[int]) -> None:
        """Some ranks have left."""
        self._untold.update(ranks)

    def take_back(self, rank: int) -> None:
        """Another process was admitted in the place of a rank."""
        self._untold.discard(rank)

    def tell(self) -> bool:
        """Tells the owners, if no round needs a contribution of these ranks any more. Returns whether it did."""
        if not self._untold or self._are_needed({self._roster.member(rank) for rank in self._untold}):
            return False
        self._uplink.left(self._untold)
        self._untold = set()
        return True

    def _are_needed(self, members: set[int | None]) -> bool:
        for forwarded in self._uplink.keys.values():
            # An owner that was started again does not know yet that the group has the last sum.
            told = forwarded.declared or forwarded.failed or members.isdisjoint(forwarded.declared_by)
            if not told and self._awaits_declaration(forwarded):
                return True
        # A thread may be making the sum. Before it is forwarded, the owner must not miss these ranks.
        return any(
            shard.phase is not Phase.FORWARDING and not members.isdisjoint(shard.contributions)
            for key in self._keys.values()
            for shard in key.shards.values()
        )
