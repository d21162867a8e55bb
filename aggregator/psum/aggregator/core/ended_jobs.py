"""Jobs that ended while some of their ranks had not yet come: what those ranks are told when they do."""

import dataclasses
from collections import OrderedDict
from typing import Final

from psum.aggregator.core.job import Job
from psum.v1 import aggregator_pb2 as pb

#: The most jobs that are remembered.
_MAX_JOBS: Final = 100


@dataclasses.dataclass(slots=True)
class _Ended:
    job: Job
    at: float
    """When it ended or failed."""


class EndedJobs:
    """The last ended job of each name, for as long as a late rank of it may come.

    A late rank is one whose process started before the job ended, and that had not joined it. A process that started
    later belongs to the next run of that name. So does a worker with another incarnation whose rank was in the job, or
    was told of its end: that program was started again. On an aggregator that was started again in the middle of the
    job, so does every worker that does not come back to it.

    Args:
        patience: Seconds for which a job is remembered that some rank never joined: as long as a late rank would
            otherwise wait for the others.
        worker_timeout: Seconds for which a failed job is remembered for processes that take over a rank of it.
    """

    def __init__(self, patience: float, worker_timeout: float) -> None:
        self._patience = patience
        self._worker_timeout = worker_timeout
        self._jobs: OrderedDict[str, _Ended] = OrderedDict()

    def __len__(self) -> int:
        return len(self._jobs)

    def remember(self, job: Job, now: float) -> None:
        """Remembers a job that has ended, if it failed or some rank never joined it."""
        self.forget(job.name)
        if job.failure is not None or not job.complete:
            self._jobs[job.name] = _Ended(job, now if job.failed_at is None else job.failed_at)
            if len(self._jobs) > _MAX_JOBS:
                self._jobs.popitem(last=False)

    def forget(self, name: str) -> None:
        """Forgets the job of this name, because its next run begins."""
        self._jobs.pop(name, None)

    def expire(self, now: float) -> None:
        """Forgets jobs that ended long ago."""
        for name, ended in list(self._jobs.items()):
            patience = self._worker_timeout if ended.job.complete else max(self._patience, self._worker_timeout)
            if now - ended.at > patience:
                del self._jobs[name]

    def of(self, hello: pb.Hello, now: float) -> Job | None:
        """The ended job that a worker comes too late for; None if the worker belongs to a new run."""
        ended = self._jobs.get(hello.job)
        if ended is None or now - hello.age_seconds > ended.at:
            return None
        members = ended.job.members
        if members.is_of_next_run(hello):
            # Another process had the rank, so this one belongs to the next run, even if it came before the end.
            return None
        # Workers without an incarnation cannot be told apart, so each rank of them is told only once.
        is_same = hello.incarnation != 0 and members.told.get(hello.rank) == hello.incarnation
        is_told = is_same or hello.rank not in members.told
        members.told.setdefault(hello.rank, hello.incarnation)
        if is_told and not members.holders(hello):
            return ended.job
        # It takes over a rank, and hears for a while that the job has failed.
        hears_of_failure = ended.job.failure is not None and now - ended.at <= self._worker_timeout
        return ended.job if hears_of_failure else None
