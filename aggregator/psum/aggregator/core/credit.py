"""Returns credit for contributions whose round waits, so that their workers can send other shards meanwhile.

A contribution in lent memory must be copied for that, which takes as long as adding it up. So its credit is returned
only if that may help: if all members that the round waits for wait for others themselves. They may wait for what this
worker cannot send without credit. A member that is merely late waits for nobody, and its contribution will come.
"""

from collections.abc import Callable, Iterator, Mapping, Set
from typing import Final

from psum.aggregator.core.actions import ReturnCredit
from psum.aggregator.core.held import Held
from psum.aggregator.core.round import ShardRounds
from psum.aggregator.core.worker import Worker

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

    def _rounds_due(self, worker: Worker, now: float, waiting: Set[int]) -> list[tuple[int, int, int]]:
        rank = worker.hello.rank
        due: list[tuple[int, int, int]] = []
        lent = []
        while worker.uncredited and now - worker.uncredited[0].since >= CREDIT_HOLD_SECONDS:
            held = worker.uncredited.popleft().waiting(rank)
            if not held.rows:
                continue
            if not held.in_message and any(
                self._stays_lent(shard, held, rank, now, waiting) for _, _, shard in held.rows
            ):
                lent.append(held)
                continue
            worker.credited.add(rank, held)
            due += [(key.id, index, round) for (key, index, _), round in zip(held.rows, held.rounds, strict=True)]
        worker.uncredited.extendleft(reversed(lent))
        return due

    def _stays_lent(self, shard: "ShardRounds[object]", held: Held, rank: int, now: float, waiting: Set[int]) -> bool:
        """Whether a contribution stays in memory that its worker lends. If it must not any more, it is copied."""
        if not self._lent(shard.contributions.get(rank, _NOTHING)):
            return False
        if now - held.since < LENT_HOLD_SECONDS and _waits_for_a_late_one(shard, waiting):
            return True
        shard.copy(rank)
        return False


def _waits(worker: Worker, now: float) -> bool:
    """Whether a contribution of a worker has waited for others for long. Forgets those that wait no more."""
    rank, uncredited = worker.hello.rank, worker.uncredited
    while uncredited and now - uncredited[0].since >= CREDIT_HOLD_SECONDS:
        if any(uncredited[0].each_waits(rank)):
            return True
        uncredited.popleft()
    return worker.credited.waits(rank)


def _waits_for_a_late_one(shard: "ShardRounds[object]", waiting: Set[int]) -> bool:
    """Whether a round waits for a member that has not joined, or waits for nobody itself."""
    return not shard.roster.complete or any(member not in waiting for member in shard.members_missing)
