"""The shards whose current round is incomplete: when to warn of a round, and when it has waited too long."""

from collections import OrderedDict
from collections.abc import Mapping

from psum.aggregator.core import error_texts
from psum.aggregator.core.actions import Action, Warn
from psum.aggregator.core.key import Key
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.round import ShardRounds
from psum.aggregator.core.stall_warnings import StallWarnings
from psum.aggregator.core.worker import Worker
from psum.wire.errors import FaultError


class OpenShards:
    """The shards of one job whose current round is incomplete.

    Args:
        name: The job's name.
        workers: The job's members by first rank; a view of the membership's dictionary.
        limits: How long a round may wait.
    """

    def __init__(self, name: str, workers: Mapping[int, Worker], limits: Limits) -> None:
        self.shards: OrderedDict[tuple[int, int], tuple[Key, ShardRounds[object]]] = OrderedDict()
        """Shards whose round has some contributions but not all, by (key's id, shard), the oldest round first."""
        self._name = name
        self._workers = workers
        self._round_timeout = limits.round_timeout
        self._warnings = StallWarnings(limits.warn_after)

    def overdue(self, now: float) -> tuple[Key, FaultError] | None:
        """The key of the oldest round and its failure, if that round has waited longer than the round timeout."""
        if not self.shards:
            return None
        key, shard = next(iter(self.shards.values()))
        if shard.since is None or now - shard.since <= self._round_timeout:
            return None
        return key, error_texts.timed_out(self._name, key, shard, self._absent(shard, now), self._round_timeout, now)

    def warnings(self, now: float) -> list[Action]:
        """A warning of the oldest round, if one is due. The rounds behind it mostly wait for the same ranks."""
        if not self.shards:
            return []
        (_, index), (key, shard) = next(iter(self.shards.items()))
        if shard.since is None or not self._warnings.due((key.id, index, shard.round), now - shard.since):
            return []
        to_warn = shard.ranks_lacking_result or shard.contributions
        ranks = tuple(rank for rank, worker in self._workers.items() if worker.connected and rank in to_warn)
        absent = self._absent(shard, now)
        others = len(self.shards) - 1
        return [Warn(error_texts.waits(self._name, key, shard, absent, others, self._round_timeout, now), ranks)]

    def _absent(self, shard: ShardRounds[object], now: float) -> str:
        return error_texts.absent(shard, self._workers, self.shards, now)
