"""Jobs that ended while some of their ranks may still be on their way: what those ranks are told when they come."""

import dataclasses
from collections import OrderedDict
from typing import Final

from psum.aggregator.core.job import Job
from psum.v1 import aggregator_pb2 as pb

#: How many jobs are remembered at most.
_MAX_JOBS: Final = 100


@dataclasses.dataclass(slots=True)
class _Past:
    job: Job
    at: float
    """When it ended or failed."""


class EndedJobs:
    """The last job of each name, as far as a rank of it may still come.

    A late rank is one whose process was started before the job ended, and that had not joined it. A process that was
    started later belongs to the next run of that name. So does a rank that was in the job, or was told of its end, and
    comes with another incarnation: its program has begun anew.

    Args:
        patience: Seconds for which a job is remembered that some rank has never joined: as long as a late rank would
            otherwise wait for the others.
        worker_timeout: Seconds for which a job that failed is remembered for processes that take a rank of it anew.
    """

    def __init__(self, patience: float, worker_timeout: float) -> None:
        self._patience = patience
        self._worker_timeout = worker_timeout
        self._jobs: OrderedDict[str, _Past] = OrderedDict()

    def __len__(self) -> int:
        return len(self._jobs)

    def remember(self, job: Job, now: float) -> None:
        """A job ended."""
        self.forget(job.name)
        if job.failure is not None or not job.complete:
            self._jobs[job.name] = _Past(job, now if job.failed_at is None else job.failed_at)
            if len(self._jobs) > _MAX_JOBS:
                self._jobs.popitem(last=False)

    def forget(self, name: str) -> None:
        """The next job of this name begins."""
        self._jobs.pop(name, None)

    def expire(self, now: float) -> None:
        """Forgets what ended long ago."""
        for name, past in list(self._jobs.items()):
            patience = self._worker_timeout if past.job.complete else max(self._patience, self._worker_timeout)
            if now - past.at > patience:
                del self._jobs[name]

    def of(self, hello: pb.Hello, now: float) -> Job | None:
        """The job that a worker is too late for, None where it begins a new run."""
        past = self._jobs.get(hello.job)
        if past is None or now - hello.age_seconds > past.at:
            return None
        worker = past.job.workers.get(hello.rank)
        if worker is not None and hello.incarnation and worker.hello.incarnation != hello.incarnation:
            # Another process had its rank in it: this one is of the next run, though it may have come before the end.
            return None
        # Whoever has no incarnation of its own may be another one each time: it is told once.
        told = hello.rank not in past.job.told or 0 != past.job.told[hello.rank] == hello.incarnation
        past.job.told.setdefault(hello.rank, hello.incarnation)
        if (hello.rank in past.job.workers or not told) and (
            past.job.failure is None or now - past.at > self._worker_timeout
        ):
            return None
        return past.job
