"""Departures: which workers may leave a job, and when.

A worker that says goodbye is released when every other rank has received the sums of all rounds that it contributed to.
Until then this aggregator, or a new process of it, may need a sum that only this worker has. The others also know then
that it leaves: a new process of this aggregator must not wait for it.
"""

from collections.abc import Mapping
from typing import Final

from psum.aggregator.core.actions import Action, Release, Sync
from psum.aggregator.core.roster import Roster
from psum.aggregator.core.worker import Worker

#: How long a departing worker is kept for ranks that may lack a sum and do not answer.
RELEASE_SECONDS: Final = 3.0

#: Stands for members that have not joined and whose ranks are not known, among those that may need a sum.
_UNKNOWN: Final = -1


class Departures:
    """The ranks of one job that leave.

    Args:
        roster: The ranks of the job.
        workers: The job's members by first rank; a view of the membership's dictionary.
    """

    def __init__(self, roster: Roster, workers: Mapping[int, Worker]) -> None:
        self.left: set[int] = set()
        """The ranks that have left."""
        self.held = False
        """Whether nobody is released before its time is up, even if no rank of the job needs it."""
        self._roster = roster
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
        """Handles a member's goodbye: tells those who stay, and asks them whether they lack a sum of it."""
        worker = self._workers[rank]
        worker.left = worker.taking_leave = True
        self.left.update(worker.ranks)
        worker.needed_by = self._who_may_need(worker)
        worker.release_at = now + RELEASE_SECONDS
        # A worker that leaves has received everything that was sent to it.
        for other in self._workers.values():
            other.needed_by.difference_update((rank, *worker.ranks))
        asked = tuple(sorted(worker.needed_by - {_UNKNOWN}))
        return [Sync(rank, asked, worker.departures())] if asked else []

    def synced(self, rank: int, leaving: int) -> None:
        """Notes that a rank lacks no sum that the leaving rank may have."""
        if (worker := self._workers.get(leaving)) is not None:
            worker.needed_by.discard(rank)

    def releases(self, now: float) -> list[Action]:
        """Releases the workers that no rank needs, and those that have waited long enough."""
        released: list[Action] = []
        for rank, worker in self._workers.items():
            if worker.release_at is not None and (now >= worker.release_at or not (worker.needed_by or self.held)):
                worker.release_at = None
                released.append(Release(rank))
        return released

    def _who_may_need(self, worker: Worker) -> set[int]:
        """The members that may lack a sum that this one has, or do not know yet that it leaves."""
        staying = {member for member, other in self._workers.items() if not other.left}
        if worker.hello.resuming:
            # It may have sums of an earlier process, to which not all ranks have come back yet.
            return staying | {*self._roster.not_joined(), *([_UNKNOWN] if self._roster.unknown else ())}
        return staying
