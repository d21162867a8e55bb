"""How rounds go on in an aggregator process that was started again: what members declare, and sums that they give back.

It knows nothing at first. A member's declaration of a key says at which round of each shard it is. A member that has
the sum of the round before is asked for it if others lack that sum.
"""

from collections.abc import Mapping

from psum.aggregator.core import error_texts
from psum.aggregator.core.actions import Action, Ask, EndStreams, Sum
from psum.aggregator.core.key import Key
from psum.aggregator.core.membership import Membership
from psum.aggregator.core.memory import JobMemory
from psum.aggregator.core.open_shards import OpenShards
from psum.aggregator.core.round import Phase, ShardRounds
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import FaultError, ProtocolError


class Recovery:
    """Takes the rounds that members are at, and the sums of rounds that an earlier process has completed.

    Args:
        keys: The job's keys by id.
        members: The job's workers.
        open_shards: The shards whose round is incomplete.
        memory: The bytes that the keys hold.

    Attributes:
        restoring: The shards, by key's id and index, whose last sum was given back and is being written to where
            workers read it.
    """

    def __init__(
        self, keys: Mapping[int, Key], members: Membership, open_shards: OpenShards, memory: JobMemory
    ) -> None:
        self.restoring: set[tuple[int, int]] = set()
        self._keys = keys
        self._roster = members.roster
        self._name = members.first.job
        self._open_shards = open_shards.shards
        self._memory = memory

    @staticmethod
    def inherits(key: Key, declared: pb.Key) -> bool:
        """Whether a member has the sum of a round that this process has not completed."""
        return any(shard.round > 0 and key.shards[shard.index].inherited for shard in declared.shards)

    def out_of_step(self, key: Key, declared: pb.Key, rank: int) -> FaultError | None:
        """Why a member cannot be at the rounds that it declares; None if it can."""
        for shard in declared.shards:
            if not _in_step(key.shards[shard.index], shard.round):
                return error_texts.out_of_step(self._name, key, shard, self._roster.ranks(rank))
        return None

    def resume(self, key: Key, declared: pb.Key, rank: int, now: float) -> list[Action]:
        """Takes the rounds that a member is at."""
        wanted: dict[int, list[tuple[int, int, int]]] = {}
        waiting: set[int] = set()
        for declared_shard in declared.shards:
            index, shard = declared_shard.index, key.shards[declared_shard.index]
            lost = declared_shard.round < shard.round and rank in shard.holders
            if lost:
                waiting |= self._lose(key, index, rank)
            asks = self._reconcile(key, declared_shard, rank, now)
            holder = shard.holder if lost else rank
            if holder is not None and (asks or (lost and shard.ranks_lacking_result)):
                wanted.setdefault(holder, []).append((key.id, index, shard.round - 1))
        actions: list[Action] = [Ask(holder, tuple(rounds)) for holder, rounds in wanted.items()]
        # This rank's contribution comes on its new stream anyway.
        if waiting := waiting - {rank}:
            actions.append(EndStreams(tuple(sorted(waiting))))
        return actions

    def restore(self, rank: int, entry: ShardRound, payload: memoryview) -> list[Action]:
        """Takes the sum of a round from a worker; an earlier aggregator process made that sum.

        Raises:
            ProtocolError: It does not have the shard's size.
        """
        key = self._keys.get(entry.id)
        shard = key.shards.get(entry.shard) if key is not None else None
        if key is None or shard is None or shard.last_result is not None or entry.round != shard.round - 1:
            # The key has failed, or another rank has given the sum back already.
            return []
        if len(payload) != key.sizes[entry.shard]:
            raise ProtocolError(
                f"{rank_names(self._roster.ranks(rank))} gave back {len(payload)} bytes as the sum of key {key.title}"
                f" shard {entry.shard}; expected {key.sizes[entry.shard]}"
            )
        if not shard.ranks_lacking_result or (key.id, entry.shard) in self.restoring:
            # Nobody needs it here; an owner of a relay's shards may. It must not be written to where workers read the
            # sum of the next round, which may be made before.
            return []
        self.restoring.add((key.id, entry.shard))
        return [Sum(key, entry.shard, entry.round, entry.priority, (payload,), restored=True)]

    def restored(self, key: Key, index: int, round: int, result: object) -> tuple[int, ...]:
        """Takes a sum that was given back and lies where workers read it. Returns the members that wait for it."""
        self.restoring.discard((key.id, index))
        shard = key.shards.get(index)
        if shard is None or shard.last_result is not None or shard.round != round + 1:
            return ()
        if shard.phase is not Phase.GATHERING:
            # All ranks have begun the next round, so they have this sum.
            return ()
        self._memory.held_bytes += key.sizes[index]
        ranks = shard.restore(result)
        if shard.since is None:
            self._open_shards.pop((key.id, index), None)
        return ranks

    def _reconcile(self, key: Key, declared: pb.Shard, rank: int, now: float) -> bool:
        """Compares the round that a rank is at with the shard's. Returns whether to ask the rank for its last sum."""
        shard = key.shards[declared.index]
        if declared.round > shard.round:
            self._memory.held_bytes -= sum(map(len, shard.contributions.values()))
            self._open_shards.pop((key.id, declared.index), None)
            shard.adopt(rank, now)
            if shard.ranks_lacking_result:
                self._open_shards[key.id, declared.index] = (key, shard)
        if declared.round != shard.round or shard.round == 0 or shard.last_result is not None:
            return False
        if shard.phase is Phase.GATHERING and shard.inherited:
            shard.holds(rank)
        return bool(shard.ranks_lacking_result)

    def _lose(self, key: Key, index: int, rank: int) -> set[int]:
        """Notes that a rank has no longer the sum of the round before. See ShardRounds.loses.

        Returns:
            The ranks that must contribute to that round again.
        """
        waiting = key.shards[index].loses(rank)
        if waiting is None:
            return set()
        self._open_shards.pop((key.id, index), None)
        return waiting


def _in_step(shard: ShardRounds[object], round: int) -> bool:
    """Whether a rank can be at this round of a shard.

    A rank is at the current round, or at the one before, whose result it then lacks. If this aggregator process has
    completed no round of the shard, it can also be at the next one.
    """
    # While a rank waits for the sum of the round before, no rank can have the sum of this one.
    ahead = shard.inherited and shard.phase is Phase.GATHERING and not shard.ranks_lacking_result
    return shard.round - 1 <= round <= shard.round + (1 if ahead else 0)
