"""Returns credit for contributions whose round waits, so that their workers can send other shards meanwhile."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from psum.aggregator.core.actions import ReturnCredit
from psum.aggregator.core.round import Phase
from psum.aggregator.core.worker import Worker

#: How long a contribution may count against its worker's credit while its round waits for others. Without a limit, two
#: workers that push different keys first would wait for each other until the round timeout.
CREDIT_HOLD_SECONDS: Final = 0.01

_NOTHING: Final = memoryview(b"")


class CreditReturns:
    """The credit that the workers of one job wait for. `Worker.uncredited` holds what counts against it.

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
        for rank, worker in self._workers.items():
            if rounds := tuple(self._rounds_due(worker, now)):
                yield ReturnCredit(rank, rounds)

    def _rounds_due(self, worker: Worker, now: float) -> Iterator[tuple[int, int, int]]:
        rank = worker.hello.rank
        while worker.uncredited and now - worker.uncredited[0][0] >= CREDIT_HOLD_SECONDS:
            _, key, index, round = worker.uncredited.popleft()
            shard = key.shards.get(index)
            if shard is None or shard.phase is not Phase.GATHERING:
                continue
            if shard.round == round or (shard.round == round + 1 and rank in shard.ranks_lacking_result):
                if self._lent(shard.contributions.get(rank, _NOTHING)):
                    shard.copy(rank)
                yield key.id, index, round
