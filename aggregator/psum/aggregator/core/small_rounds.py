"""The contributions of one message, taken together, where nothing unusual happens to them.

With small shards, most of an aggregator's time is the interpreter's work for each contribution. A training mostly sends
the next contribution to each of its sums. Those take a short way here. Everything else takes the way of JobRounds, as
does a contribution that becomes unusual by what came before it in its message. The outcome is the same.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from psum.aggregator.core.actions import Action, SumTogether
from psum.aggregator.core.counters import JobCounters
from psum.aggregator.core.job_rounds import JobRounds
from psum.aggregator.core.membership import Membership
from psum.aggregator.core.memory import JobMemory
from psum.aggregator.core.open_shards import OpenShards
from psum.wire import BATCH_BYTES, LARGE_PAYLOAD_BYTES, ShardRound

#: The most shards and bytes that are summed together: they travel in one message.
MOST_SHARDS: Final = 1024
MOST_BYTES: Final = BATCH_BYTES


class SmallRounds:
    """Takes the contributions of one message together. It has no state of its own.

    Args:
        rounds: The job's keys.
        members: The job's workers.
        open_shards: The shards whose round is incomplete.
        memory: The bytes that the keys reserve and hold.
        counters: Where contributions are counted.
    """

    def __init__(
        self,
        rounds: JobRounds,
        members: Membership,
        open_shards: OpenShards,
        memory: JobMemory,
        counters: JobCounters,
    ) -> None:
        self._rounds = rounds
        self._workers = members.workers
        self._left = members.departures.left
        self._open_shards = open_shards.shards
        self._memory = memory
        self._counters = counters.sum

    def contribute(
        self,
        rank: int,
        rows: Sequence[ShardRound],
        payloads: Sequence[memoryview],
        now: float,
        message_bytes: int,
        actions: list[Action],
    ) -> None:
        """Does what JobRounds.contribute does for each contribution of a message.

        Args:
            rank: The worker.
            rows: The shards and their rounds.
            payloads: Their values.
            now: The time.
            message_bytes: How many bytes a view of a payload keeps alive.
            actions: Receives the actions that follow, also if an error is raised: what came before it counts.

        Raises:
            ProtocolError: As JobRounds.contribute.
        """
        rounds, keys, open_shards = self._rounds, self._rounds.keys, self._open_shards
        worker, memory = self._workers[rank], self._memory
        uncredited, timings, left = worker.uncredited, rounds.timings.rounds, self._left
        together: SumTogether | None = None
        room = taken_bytes = taken = 0
        waited: list[float] = []
        try:
            for row, payload in zip(rows, payloads, strict=True):
                key_id, index, round, priority, _, _, _, timed, _ = row
                key = keys.get(key_id)
                shard = None if key is None else key.shards.get(index)
                size = len(payload)
                if (
                    key is None
                    or shard is None
                    or size != key.sizes[index]
                    or size >= LARGE_PAYLOAD_BYTES
                    or not key.plain
                    or timed
                    or timings
                    or left
                ):
                    actions += rounds.contribute(rank, row, payload, now, message_bytes)
                    continue
                kept = size if shard.last_result is not None else 0
                complete = shard.take(rank, round, payload, priority, now)
                if complete is None:
                    actions += rounds.contribute(rank, row, payload, now, message_bytes)
                    continue
                taken += 1
                taken_bytes += size
                if not complete:
                    memory.held_bytes += size
                    open_shards[key_id, index] = (key, shard)
                    if 2 * size < message_bytes:
                        # While the round waits, the view would keep the whole message alive, which no budget counts.
                        shard.copy(rank)
                    uncredited.append((now, key, index, round))
                    continue
                memory.held_bytes += size - kept
                open_shards.pop((key_id, index), None)
                waited.append(shard.since or now)
                room -= size
                if (
                    together is None
                    or room < 0
                    or together.roster is not shard.roster
                    or len(together.shards) == MOST_SHARDS
                ):
                    together = SumTogether(shard.roster, [])
                    actions.append(together)
                    room = MOST_BYTES - size
                together.shards.append((key, index, shard))
        finally:
            if taken:
                worker.contributed = True
                self._counters.contributions += taken
                self._counters.received_bytes += taken_bytes
                self._counters.waiting.observe_since(waited, now)

    def summed(self, action: SumTogether, results: Iterable[object], now: float) -> None:
        """Takes the sums that a SumTogether asked for. The caller delivers them.

        Args:
            action: Only shards of keys that have not failed.
            results: The sum of each shard.
            now: The time, by the clock of `contribute`.
        """
        others = len(action.roster.members) - 1
        self._rounds.completed += len(action.shards)
        self._counters.duration.observe_since([shard.since or now for _, _, shard in action.shards], now)
        released = 0
        for (key, index, shard), result in zip(action.shards, results, strict=True):
            released += key.sizes[index]
            shard.complete(result)
        self._memory.held_bytes -= released * others
