"""Returns credit for contributions whose round waits, so that their workers can send other shards meanwhile.

A contribution in lent memory must be copied for that, which takes as long as adding it up. So its credit is returned
only if that may help: if all members that the round waits for wait for others themselves. They may wait for what this
worker cannot send without credit. A member that is merely late waits for nobody, and its contribution will come.
"""

from collections.abc import Callable, Iterator, Mapping, Set
from typing import Final

from psum.aggregator.core.actions import ReturnCredit
from psum.aggregator.core.key import Key
from psum.aggregator.core.round import Phase, ShardRounds
from psum.aggregator.core.worker import Worker
from psum.wire import LARGE_PAYLOAD_BYTES

#: How long a contribution may count against its worker's credit while its round waits for others. Without a limit, two
#: workers that push different keys first would wait for each other until the round timeout.
CREDIT_HOLD_SECONDS: Final = 0.01

#: How long a contribution in lent memory may, while its round waits for a member that is merely late. That member may
#: wait for a round that it cannot be seen to wait for here.
LENT_HOLD_SECONDS: Final = 0.5

_NOTHING: Final = memoryview(b"")


class CreditReturns:
    """The credit that the workers of one job wait for. `Worker.uncredited` holds what counts against it.

    `Worker.credited` holds the other contributions that wait.

    Args:
        workers: The job's workers by rank; a view of the membership's dictionary.
        lent: Tells whether a payload lies in memory that its worker takes back with the credit.
    """

    def __init__(self, workers: Mapping[int, Worker], lent: Callable[[memoryview], bool]) -> None:
        self._workers = workers
        self._lent = lent

    @property
    def pending(self) -> bool:
        """Whether a contribution counts against some worker's credit, so that `due` should be asked soon."""
        return any(w.uncredited for w in self._workers.values())

    def due(self, now: float) -> Iterator[ReturnCredit]:
        """The credit to return now, one action for each worker. Copies the payloads whose memory is lent."""
        # Before credit is returned: two workers may wait for each other.
        waiting = {rank for rank, worker in self._workers.items() if _waits(worker, now)}
        for rank, worker in self._workers.items():
            if rank in waiting and (rounds := tuple(self._rounds_due(worker, now, waiting))):
                yield ReturnCredit(rank, rounds)

    def _rounds_due(self, worker: Worker, now: float, waiting: Set[int]) -> Iterator[tuple[int, int, int]]:
        rank = worker.hello.rank
        held = []
        while worker.uncredited and now - worker.uncredited[0][0] >= CREDIT_HOLD_SECONDS:
            entry = since, key, index, round = worker.uncredited.popleft()
            if (shard := _waiting_shard(rank, key, index, round)) is None:
                continue
            payload = shard.contributions.get(rank, _NOTHING)
            if self._lent(payload):
                if now - since < LENT_HOLD_SECONDS and _waits_for_a_late_one(shard, waiting):
                    held.append(entry)
                    continue
                shard.copy(rank)
            elif 0 < len(payload) < LARGE_PAYLOAD_BYTES:
                # It may be a view that keeps a whole message alive, which no budget counts.
                shard.copy(rank)
            # The latest last.
            worker.credited.pop((key.id, index), None)
            worker.credited[key.id, index] = key, round
            yield key.id, index, round
        worker.uncredited.extendleft(reversed(held))


def _waits(worker: Worker, now: float) -> bool:
    """Whether a contribution of a worker has waited for others for long. Forgets those that wait no more."""
    rank, uncredited, credited = worker.hello.rank, worker.uncredited, worker.credited
    while uncredited and now - uncredited[0][0] >= CREDIT_HOLD_SECONDS:
        _, key, index, round = uncredited[0]
        if _waiting_shard(rank, key, index, round) is not None:
            return True
        uncredited.popleft()
    while credited:
        (key_id, index), (key, round) = next(iter(credited.items()))
        if _waiting_shard(rank, key, index, round) is not None:
            return True
        del credited[key_id, index]
    return False


def _waiting_shard(rank: int, key: Key, index: int, round: int) -> "ShardRounds[object] | None":
    """The shard of a contribution whose round waits for others, None if it does not wait."""
    shard = key.shards.get(index)
    if shard is None or shard.phase is not Phase.GATHERING:
        return None
    if shard.round == round or (shard.round == round + 1 and rank in shard.ranks_lacking_result):
        return shard
    return None


def _waits_for_a_late_one(shard: "ShardRounds[object]", waiting: Set[int]) -> bool:
    """Whether a round waits for a member that has not joined, or waits for nobody itself."""
    return not shard.roster.complete or any(member not in waiting for member in shard.members_missing)
