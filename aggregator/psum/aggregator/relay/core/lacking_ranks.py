"""Which ranks of a relay's group rounds wait for, as the owners are told."""

from collections.abc import Mapping, Sequence
from typing import Final

from psum.aggregator.core.key import Key
from psum.aggregator.core.round import ShardRounds
from psum.aggregator.relay.core.uplink import Uplink

#: How long a round waits at the relay until its owner is told for which ranks.
LACKING_SECONDS: Final = 1.0

#: The most waiting rounds that the owners are told of, the oldest first.
_MAX_LACKING: Final = 64


class LackingRanks:
    """What the owners were told about waiting rounds.

    Args:
        open_shards: The shards whose round is incomplete, the oldest round first.
        uplink: What is sent to the owners.
    """

    def __init__(self, open_shards: Mapping[tuple[int, int], tuple[Key, ShardRounds[object]]], uplink: Uplink) -> None:
        self._open_shards = open_shards
        self._uplink = uplink
        self._told: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {}
        """The ranks that the owner was told of: the round and the ranks, by (key's id, shard)."""
        self._told_before = 0
        """How many streams to owners had been opened again by then."""

    def tell(self, now: float) -> bool:
        """Tells the owners for which ranks rounds wait. Returns whether there was anything new to tell."""
        new = self._new(now)
        if new:
            self._uplink.lacking(new)
        return bool(new)

    def _new(self, now: float) -> list[tuple[int, int, int, Sequence[int]]]:
        """The rounds that wait here, and for which ranks, as far as the owners have not been told."""
        if self._told_before != self._uplink.counters.reconnects:
            # The owner may have been started again, and know nothing of it.
            self._told_before = self._uplink.counters.reconnects
            self._told = {}
        told: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {}
        new: list[tuple[int, int, int, Sequence[int]]] = []
        for (key_id, index), (_, shard) in self._open_shards.items():
            if len(told) == _MAX_LACKING:
                break
            if shard.since is None or now - shard.since < LACKING_SECONDS:
                # The oldest come first.
                break
            if not shard.contributions:
                continue
            # For the owners, a process that has not been let in yet is none of the group.
            ranks = tuple(rank for rank in shard.waiting_for() if shard.roster.member(rank) is not None)
            state = shard.round, ranks
            told[key_id, index] = state
            # An owner that does not know the key yet forgets what it is told of it.
            forgets = not self._uplink.keys[key_id].declared
            if state[1] and (forgets or self._told.get((key_id, index)) != state):
                new.append((key_id, index, *state))
        self._told = told
        return new
