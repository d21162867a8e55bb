"""Departures: which workers may leave a job, and when.

A worker that says goodbye is released when every other rank has received the sums of all rounds that it contributed to.
Until then this aggregator, or a new process of it, may need a sum that only this worker has.
"""

from collections.abc import Mapping
from typing import Final

from psum.aggregator.core.actions import Action, Release, Sync
from psum.aggregator.core.worker import Worker

#: How long a departing worker is kept for ranks that may lack a sum and do not answer.
RELEASE_SECONDS: Final = 3.0


class Departures:
    """The ranks of one job that leave.

    Args:
        num_workers: The number of ranks.
        workers: The job's workers by rank; a view of the membership's dictionary.
    """

    def __init__(self, num_workers: int, workers: Mapping[int, Worker]) -> None:
        self.left: set[int] = set()
        """The ranks that said goodbye."""
        self.held = False
        """Whether nobody is released before its time is up, even if no rank of the job needs it."""
        self._num_workers = num_workers
        self._workers = workers

    @property
    def over(self) -> bool:
        """Whether all workers that joined have left and been released.

        A worker that is not released comes back to repeat its goodbye. Then it can give back a sum for a rank that has
        not yet joined this process.
        """
        workers = self._workers.values()
        return bool(workers) and all(worker.left and worker.release_at is None for worker in workers)

    def begin(self, rank: int, now: float) -> list[Action]:
        """Handles a worker's goodbye: asks the ranks that may lack a sum of it whether they do."""
        worker = self._workers[rank]
        worker.left = worker.taking_leave = True
        self.left.add(rank)
        worker.needed_by = self._who_may_need(worker)
        worker.release_at = now + RELEASE_SECONDS
        # A worker that leaves has received everything that was sent to it.
        for other in self._workers.values():
            other.needed_by.discard(rank)
        return [Sync(rank, tuple(sorted(worker.needed_by)))] if worker.needed_by else []

    def synced(self, rank: int, leaving: int) -> None:
        """Notes that a rank lacks no sum that the leaving rank may have."""
        if (worker := self._workers.get(leaving)) is not None:
            worker.needed_by.discard(rank)

    def releases(self, now: float) -> list[Action]:
        """Releases the workers that no rank needs, and those that have waited long enough."""
        released: list[Action] = []
        for rank, worker in self._workers.items():
            if worker.release_at is not None and (
                now >= worker.release_at or not (worker.needed_by or self.held)
            ):
                worker.release_at = None
                released.append(Release(rank))
        return released

    def _who_may_need(self, worker: Worker) -> set[int]:
        """The ranks that may lack a sum that this worker has."""
        workers = self._workers
        if worker.hello.resuming:
            # It may have sums of an earlier process, to which not all ranks have come back yet.
            return {rank for rank in range(self._num_workers) if rank not in workers or not workers[rank].left}
        return {rank for rank, other in workers.items() if not other.left} if worker.contributed else set()
