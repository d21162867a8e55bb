"""The values of broadcasts that owners want in place of those of lost roots, and which ranks of the group are asked."""

from collections.abc import Mapping

from psum.aggregator.core.actions import Action, Ask
from psum.aggregator.core.key import Key
from psum.aggregator.relay.core.elastic_uplink import ElasticUplink
from psum.aggregator.relay.core.group_membership import GroupMembership


class WantedValues:
    """Asks members that wait for the result of such a broadcast, one after the other.

    Args:
        uplink: What owners want.
        members: The group.
        keys: The keys of the group's job, by id.
    """

    def __init__(self, uplink: ElasticUplink, members: GroupMembership, keys: Mapping[int, Key]) -> None:
        self._uplink = uplink
        self._members = members
        self._keys = keys
        self._asked: dict[tuple[int, int], tuple[int, int]] = {}
        """The members that were asked, and for which round, by (key's id, shard)."""

    def ask(self) -> list[Action]:
        """Asks the lowest member for each value, or the next one if that is gone by now."""
        wanted = self._uplink.wanted_values
        self._asked = {which: asked for which, asked in self._asked.items() if which in wanted}
        actions: list[Action] = []
        for (key_id, index), row in wanted.items():
            asked = self._asked.get((key_id, index))
            if asked is not None and asked[1] == row.round and self._can_answer(asked[0]):
                continue
            key = self._keys.get(key_id)
            if key is None or (shard := key.shards.get(index)) is None:
                # The key has failed, or the group has forgotten it and declares it again.
                continue
            if (member := next(filter(self._can_answer, sorted(shard.contributions)), None)) is not None:
                self._asked[key_id, index] = member, row.round
                actions.append(Ask(member, ((key_id, index, row.round),)))
        return actions

    def answered(self, key_id: int, index: int) -> None:
        """Notes that a member has given its value. An owner that was started again meanwhile asks once more."""
        self._asked.pop((key_id, index), None)

    def forget(self, member: int) -> None:
        """Forgets what a member was asked, because its stream has ended: it may not have received it."""
        self._asked = {which: asked for which, asked in self._asked.items() if asked[0] != member}

    def clear(self) -> None:
        """Forgets all: the keys are forgotten."""
        self._asked.clear()

    def _can_answer(self, member: int) -> bool:
        worker = self._members.workers[member]
        return worker.connected and not worker.left and member not in self._members.roster.gone
