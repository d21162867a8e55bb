"""The jobs of one aggregator by name: when one begins and ends, and what late ranks of one that ended are told."""

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterator

from psum.aggregator.core.actions import Action
from psum.aggregator.core.budget import Budget
from psum.aggregator.core.counters import AllCounters
from psum.aggregator.core.ended_jobs import EndedJobs
from psum.aggregator.core.failures import disagreement
from psum.aggregator.core.job import Job
from psum.aggregator.core.job_status import job_status
from psum.aggregator.settings import Settings
from psum.v1 import aggregator_pb2 as pb
from psum.wire import MAX_PARTITION_BYTES, PROTOCOL_VERSION
from psum.wire.errors import ExhaustedError, FaultError, InvalidError, TakenError, WorkerLostError

_log = logging.getLogger(__name__)

#: How many jobs that ended are kept for the status.
_HISTORY: int = 32

_MAX_WORKERS: int = 4096

#: The longest name by which a worker may call itself.
_MAX_NAME: int = 253


#: How many of the numbers in a hello are shown.
_MAX_SHOWN: int = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """A job that ended, for the status."""

    job: Job
    at: float
    abandoned: bool = False
    """Whether it was taken for over, since all its workers were away and another process came."""


class Registry:
    """The jobs in progress.

    A job begins with the hello of its first worker and ends when all who joined it have left. A rank that comes later,
    though its process was started before, is told why the job failed, or finds itself among ranks that have left. A new
    run of the same name begins afresh.

    Args:
        settings: The aggregator's.
        released: Called with each job that has ended, when nobody uses it any more.
    """

    def __init__(self, settings: Settings, released: Callable[[Job], None] = lambda job: None) -> None:
        self._settings = settings
        self._released = released
        self.budget = Budget(settings.memory_budget)
        self.tallies = AllCounters()
        self.jobs: dict[str, Job] = {}
        """Jobs in progress, and failed ones that somebody is still connected to."""
        self.ended: deque[Ended] = deque(maxlen=_HISTORY)
        """Those that ended last, the newest first."""
        self._past = EndedJobs(settings.round_timeout, settings.worker_timeout)

    def join(
        self, hello: pb.Hello, peer: str, now: float
    ) -> tuple[Job | None, list[tuple[Job, Action]], FaultError | None]:
        """A worker introduces itself.

        Returns:
            Its job, what to do for which job, and why the worker is refused (None: it has joined).
        """
        if (refusal := self._invalid(hello)) is not None:
            return None, [], refusal
        if (refusal := self._outlived(hello)) is not None:
            return None, [], refusal
        started = now - hello.age_seconds
        actions: list[tuple[Job, Action]] = []
        if (job := self.jobs.get(hello.job)) is not None:
            self.settle(job, now)
            job = self.jobs.get(hello.job)
        # A worker that comes back is of no new run, whatever its clock says.
        if job is not None and not hello.resuming and self._abandoned(job, started):
            failure = WorkerLostError(f"all workers of job {job.name!r} vanished, and it was started again")
            actions += [(job, action) for action in job.fail(failure, now)]
            self._end(job, now, abandoned=True)
            job = None
        if job is None:
            past = self._past.of(hello, now)
            if past is not None and past.failure is not None:
                return None, actions, past.failure
            if past is not None and (refusal := disagreement(past, hello, peer)) is not None:
                # Told once: it may also be the first of a next run with other settings.
                self._past.forget(hello.job)
                return None, actions, refusal
            if len(self.jobs) >= self._settings.max_jobs:
                refusal = ExhaustedError(
                    f"job {hello.job!r} was refused: {len(self.jobs)} jobs are in progress on this aggregator, as many"
                    " as it may have (max_jobs); use another, or wait for some to end"
                )
                return None, actions, refusal
            job = self.jobs[hello.job] = Job(
                hello,
                max_shards=self._settings.max_shards,
                worker_timeout=self._settings.worker_timeout,
                closed_timeout=self._settings.closed_timeout,
                round_timeout=self._settings.round_timeout,
                warn_after=self._settings.warn_after,
                budget=self.budget,
                tally=self.tallies.begin(hello.job),
                # Whoever comes back has been in it with all others: it knows more of it than is remembered here.
                before=None if hello.resuming else past,
            )
            self._past.forget(hello.job)
        more, refused = job.join(hello, peer, now)
        return job, actions + [(job, action) for action in more], refused

    def settle(self, job: Job, now: float) -> None:
        """To be called after a worker left or was lost: ends the job where it is over."""
        if job.over and self.jobs.get(job.name) is job:
            self._end(job, now)
            self._past.remember(job, now)

    def tick(self, now: float) -> Iterator[tuple[Job, Action]]:
        """Time passes."""
        self.tallies.expire(now)
        for job in list(self.jobs.values()):
            for action in job.tick(now):
                yield job, action
            self.settle(job, now)
        self._past.expire(now)

    @property
    def uncredited(self) -> bool:
        """Whether `tick` should come soon."""
        return any(job.uncredited for job in self.jobs.values())

    def status(self, now: float, shown: Callable[[str], bool]) -> tuple[list[pb.JobStatus], list[pb.EndedJob]]:
        """The jobs in progress and those that ended, of the names that are to be shown."""
        return (
            [job_status(job, now) for job in self.jobs.values() if shown(job.name)],
            [
                pb.EndedJob(
                    name=ended.job.name,
                    num_workers=ended.job.num_workers,
                    joined=sorted(ended.job.workers),
                    ended_seconds=now - ended.at,
                    failure=str(ended.job.failure or ""),
                )
                for ended in self.ended
                if shown(ended.job.name)
            ],
        )

    def _end(self, job: Job, now: float, *, abandoned: bool = False) -> None:
        del self.jobs[job.name]
        job.end()
        self._released(job)
        self.tallies.end(job.name, now)
        self.ended.appendleft(Ended(job, now, abandoned))
        # Why it failed was logged when it did.
        absent = job.num_workers - len(job.workers)
        never = f"; {absent} of its {job.num_workers} ranks never joined" if absent else ""
        _log.info("job %s: ended%s", job.name, " after its failure" if job.failure else never)

    def _outlived(self, hello: pb.Hello) -> FaultError | None:
        """Why a worker cannot come back, where its job has ended meanwhile."""
        if not hello.resuming:
            return None
        # Whoever comes back to a job that was only taken for over goes on in the one that took its place.
        for job in (ended.job for ended in self.ended if ended.job.name == hello.job and not ended.abandoned):
            worker = job.workers.get(hello.rank)
            if worker is not None and worker.hello.incarnation == hello.incarnation:
                return job.failure or TakenError(
                    f"job {job.name!r} has ended, and rank {hello.rank}, {worker}, had left it", ranks=[hello.rank]
                )
        return None

    @staticmethod
    def _abandoned(job: Job, started: float) -> bool:
        """Whether a worker that was started at this time cannot belong to this job, since it had ended by then."""
        return bool(job.workers) and all(not w.connected and started > w.last_heard for w in job.workers.values())

    @staticmethod
    def _invalid(hello: pb.Hello) -> FaultError | None:
        if len(hello.worker) > _MAX_NAME or not hello.worker.isprintable():
            return InvalidError(
                f"a worker was refused: what it calls itself has up to {_MAX_NAME} printable characters"
            )
        who = f"{hello.worker or 'an unnamed worker'} was refused"
        if hello.protocol_version != PROTOCOL_VERSION:
            return InvalidError(
                f"{who}: it speaks version {hello.protocol_version} of the protocol, this aggregator version"
                f" {PROTOCOL_VERSION}; install the same psum on both sides"
            )
        if not 0 < len(hello.job) <= 253 or not hello.job.isprintable():
            return InvalidError(f"{who}: a job's name has 1 to 253 printable characters")
        if not 0 < hello.num_workers <= _MAX_WORKERS or hello.rank >= hello.num_workers:
            return InvalidError(
                f"{who}: rank {hello.rank} of {hello.num_workers} workers; a job has 1 to {_MAX_WORKERS} workers,"
                " ranks from 0"
            )
        if not 0 < hello.partition_bytes <= MAX_PARTITION_BYTES:
            return InvalidError(
                f"{who}: a partition of {hello.partition_bytes} bytes; expected 1 to {MAX_PARTITION_BYTES}"
            )
        if hello.weights and (len(hello.weights) != len(hello.aggregators) or 0 in hello.weights):
            return InvalidError(
                f"{who}: {len(hello.weights)} weights {list(hello.weights)[:_MAX_SHOWN]} for {len(hello.aggregators)}"
                " aggregators; expected none, or one for each, from 1"
            )
        if hello.planes and pb.PLANE_INLINE not in hello.planes:
            return InvalidError(f"{who}: it does not offer the inline plane, the only one that this aggregator has")
        return None
