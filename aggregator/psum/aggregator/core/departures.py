"""Leaving in good order: who may go, and when.

A worker that says goodbye is released when every other rank has the sums of all that it has pushed: until then this
aggregator, or a new process of it, might need a sum that only this worker has.
"""

from collections.abc import Mapping
from typing import Final

from psum.aggregator.core.actions import Action, Release, Sync
from psum.aggregator.core.worker import Worker

#: How long a worker that says goodbye is kept for ranks that may lack a sum that it has, and do not answer.
RELEASE_SECONDS: Final = 3.0


class Departures:
    """The ranks of a job that leave.

    Args:
        num_workers: The number of ranks.
        workers: Those that joined, by rank: the job's own.
    """

    def __init__(self, num_workers: int, workers: Mapping[int, Worker]) -> None:
        self.left: set[int] = set()
        """The ranks that said goodbye."""
        self._num_workers = num_workers
        self._workers = workers

    @property
    def over(self) -> bool:
        """Whether all who joined have left, and been released.

        Whoever is not released yet is not gone: it comes back to say goodbye again, and to give back what another rank
        wants that has not even joined this process.
        """
        workers = self._workers.values()
        return bool(workers) and all(worker.left and worker.release_at is None for worker in workers)

    def begin(self, rank: int, now: float) -> list[Action]:
        """A worker says goodbye: asks those who may need it whether they do."""
        worker = self._workers[rank]
        worker.left = worker.taking_leave = True
        self.left.add(rank)
        worker.awaited = self._who_may_need(worker)
        worker.release_at = now + RELEASE_SECONDS
        # Whoever leaves has received all that it was sent.
        for other in self._workers.values():
            other.awaited.discard(rank)
        return [Sync(rank, tuple(sorted(worker.awaited)))] if worker.awaited else []

    def synced(self, rank: int, leaving: int) -> None:
        """A worker lacks no sum any more that the leaving one might have."""
        if (worker := self._workers.get(leaving)) is not None:
            worker.awaited.discard(rank)

    def releases(self, now: float) -> list[Action]:
        """Lets go of those whom nobody needs any more, or who have waited for long enough."""
        released: list[Action] = []
        for rank, worker in self._workers.items():
            if worker.release_at is not None and (not worker.awaited or now >= worker.release_at):
                worker.release_at = None
                released.append(Release(rank))
        return released

    def _who_may_need(self, worker: Worker) -> set[int]:
        """The ranks that may lack a sum that a worker has."""
        workers = self._workers
        if worker.hello.resuming:
            # It may have sums of a process before this one, to which not all ranks may have come back yet.
            return {rank for rank in range(self._num_workers) if rank not in workers or not workers[rank].left}
        return {rank for rank, other in workers.items() if not other.left} if worker.contributed else set()
