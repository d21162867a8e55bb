"""Which ranks of a relay's group are asked for the sums that owners want and the relay does not keep."""

from collections.abc import Mapping

from psum.aggregator.core.actions import Action, Ask
from psum.aggregator.core.key import Key
from psum.aggregator.core.worker import Worker
from psum.aggregator.relay.core.wanted_sums import WantedSums


class AskedRanks:
    """Asks members of the group that have the sums.

    Args:
        wanted: What owners want.
        keys: The keys of the group's job, by id.
        workers: The members of the group.
    """

    def __init__(self, wanted: WantedSums, keys: Mapping[int, Key], workers: Mapping[int, Worker]) -> None:
        self._wanted = wanted
        self._keys = keys
        self._workers = workers
        self._asked: dict[tuple[int, int], tuple[int, int]] = {}
        """The members that were asked, and for which round, by (key's id, shard)."""

    def ask(self) -> list[Action]:
        """Asks a member for each sum, unless one was asked that is still there."""
        actions: list[Action] = []
        for row in self._wanted:
            which = row.id, row.shard
            asked = self._asked.get(which)
            if asked is not None and asked[1] == row.round and self._can_answer(asked[0]):
                continue
            shard = self._keys[row.id].shards[row.shard]
            lacking = shard.ranks_lacking_result
            # All ranks that have begun the next round have the sum. Before that, the shard knows who does. The latest
            # may have left while others stay.
            there = [*reversed(shard.holders), *shard.contributions]
            holders = [member for member in there if member not in lacking and self._can_answer(member)]
            if shard.round == row.round + 1 and holders:
                self._asked[which] = holders[0], row.round
                actions.append(Ask(holders[0], ((*which, row.round),)))
        return actions

    def declared(self, key_id: int, member: int) -> None:
        """Notes that a member has declared a key. On its stream it was not asked for anything of that key yet."""
        self._asked = {which: each for which, each in self._asked.items() if (which[0], each[0]) != (key_id, member)}

    def answered(self, key_id: int, index: int) -> None:
        """Notes that a member has given a sum back."""
        self._asked.pop((key_id, index), None)

    def clear(self) -> None:
        """Forgets all: the keys are forgotten, or have failed."""
        self._asked.clear()

    def _can_answer(self, member: int) -> bool:
        """Whether a member is here. One that has said goodbye still gives back what is needed until it is released."""
        worker = self._workers.get(member)
        return worker is not None and worker.connected
