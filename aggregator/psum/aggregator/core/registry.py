"""The jobs of one aggregator by name: when each begins and ends, and what late ranks of an ended job are told."""

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from psum.aggregator.core import elastic_texts, membership_texts
from psum.aggregator.core.actions import Action, Refuse
from psum.aggregator.core.budget import Budget
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.counters import AllCounters
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.ended_jobs import EndedJobs
from psum.aggregator.core.hellos import invalid
from psum.aggregator.core.job import Job
from psum.aggregator.core.job_status import job_status
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.waiting_room import WaitingRoom
from psum.aggregator.core.worker import same_process
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ExhaustedError, FaultError, TakenError

_log = logging.getLogger(__name__)

#: How many ended jobs are kept for the status.
_HISTORY: Final = 32


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """An ended job, for the status."""

    job: Job
    at: float
    abandoned: bool = False
    """Whether it was only presumed to be over: all its workers had vanished when a process of a new run came."""


class Registry:
    """The jobs in progress.

    A job begins with the hello of its first worker and ends when all who joined it have left. A rank that comes later,
    although its process started before the end, is told why the job failed, or joins ranks that have left. A process
    that started after the end begins a new job of the same name.

    Args:
        limits: The limits of jobs.
        released: Called with each job that has ended, when nobody uses it any more.
        lent: Tells whether a payload lies in memory that its worker takes back with the credit; see Job.
        budget: The memory that these jobs share with others; None: they have their own.
        make: Makes a job, with Job's arguments. By default that is a Job, or an ElasticJob if the hello is elastic.
        found_after: Seconds after which a process that waits to join begins a job which has no member here. None: it
            waits for a member.
    """

    def __init__(
        self,
        limits: Limits,
        released: Callable[[Job], None] = lambda job: None,
        lent: Callable[[memoryview], bool] = lambda payload: False,
        *,
        budget: Budget | None = None,
        make: Callable[..., Job] | None = None,
        found_after: float | None = None,
    ) -> None:
        self._limits = limits
        self._released = released
        self._lent = lent
        self.budget = budget or Budget(limits.memory_budget)
        self._make = make or _make
        self.counters = AllCounters()
        self.jobs: dict[str, Job] = {}
        """Jobs in progress, and failed ones that some worker is still connected to."""
        self.ended: deque[Ended] = deque(maxlen=_HISTORY)
        """The jobs that ended last, the newest first."""
        self._unreleased: list[Job] = []
        """Jobs that have ended, and are released with the next `tick`."""
        self._ended_jobs = EndedJobs(limits.round_timeout, limits.worker_timeout)
        self._waiting = WaitingRoom(limits.round_timeout)
        self._found_after = found_after

    def join(
        self, hello: pb.Hello, peer: str, now: float
    ) -> tuple[Job | None, list[tuple[Job, Action]], FaultError | None]:
        """Handles a worker's hello.

        Returns:
            Its job, the actions that follow with the job of each, and why the worker is refused (None: it has joined).
        """
        if (refusal := invalid(hello) or self._outlived(hello, now)) is not None:
            return None, [], refusal
        actions: list[tuple[Job, Action]] = []
        job = self._in_progress(hello.job, now)
        if job is not None and job.gives_way(hello, peer, now):
            failure = membership_texts.all_vanished(list(job.workers.values()), hello, peer)
            actions += [(job, action) for action in job.fail(failure, now)]
            self._end(job, now, abandoned=True)
            job = None
        if job is None:
            begun = self._begin(hello, peer, now)
            if isinstance(begun, FaultError):
                return None, actions, begun
            job = begun
        more, refused = job.join(hello, peer, now)
        actions += [(job, action) for action in more]
        if refused is None:
            for candidate in self._waiting.take(job.name):
                actions += [(job, action) for action in self._wait_for(job, candidate, now)]
        return job, actions, refused

    def wait(self, candidate: Candidate, now: float) -> tuple[list[tuple[Job, Action]], FaultError | None]:
        """Handles the hello of a process that asks to join an elastic job.

        Returns:
            The actions that follow with the job of each, and why the process is refused (None: it waits until an action
            admits or refuses it, or `refusals` lists it).
        """
        hello = candidate.hello
        if (refusal := invalid(hello)) is not None:
            return [], refusal
        if hello.ranks:
            # A relay asks for the first process of its group.
            hello.incarnation = hello.incarnations[0] if hello.incarnations else 0
        job = self._in_progress(hello.job, now)
        if job is None:
            ended = self._ended_jobs.of(hello, now)
            if ended is not None and ended.failure is not None:
                return [], ended.failure
            return [], self._waiting.add(candidate)
        if not isinstance(job, ElasticJob):
            return [], job.members.disagreement(hello, candidate.peer) or elastic_texts.not_elastic(hello)
        actions, refusal = job.wait(candidate, now)
        return [(job, action) for action in actions], refusal

    def withdraw(self, candidate: Candidate, now: float) -> list[tuple[Job, Action]]:
        """Handles the end of a waiting process's stream."""
        self._waiting.remove(candidate)
        job = self.jobs.get(candidate.hello.job)
        if not isinstance(job, ElasticJob):
            return []
        return [(job, action) for action in job.withdraw(candidate, now)]

    def refusals(self, now: float) -> Iterator[Refuse]:
        """The processes that wait for a job which has no members here, and are refused by now. Call it with `tick`."""
        return self._waiting.refusals(now)

    def _wait_for(self, job: Job, candidate: Candidate, now: float) -> list[Action]:
        """Lets a process wait for a job that has begun meanwhile."""
        if not isinstance(job, ElasticJob):
            peer, hello = candidate.peer, candidate.hello
            return [Refuse(candidate, job.members.disagreement(hello, peer) or elastic_texts.not_elastic(hello))]
        actions, refusal = job.wait(candidate, now)
        return actions if refusal is None else [*actions, Refuse(candidate, refusal)]

    def settle(self, job: Job, now: float) -> None:
        """Ends a job if it is over. Call it after a worker left or was lost."""
        if job.over and self.jobs.get(job.name) is job:
            self._end(job, now, abandoned=job.abandoned)
            if not job.abandoned:
                self._ended_jobs.remember(job, now)

    def tick(self, now: float) -> Iterator[tuple[Job, Action]]:
        """Handles time-outs; yields the actions that follow with the job of each. Call it several times a second."""
        self.counters.expire(now)
        while self._unreleased:
            self._released(self._unreleased.pop())
        if self._found_after is not None:
            for name in self._waiting.waited(self._found_after, now):
                yield from self._found(name, now)
        for job in list(self.jobs.values()):
            for action in job.tick(now):
                yield job, action
            self.settle(job, now)
        self._ended_jobs.expire(now)

    @property
    def uncredited(self) -> bool:
        """Whether a job holds credit, so that `tick` should be called soon."""
        return any(job.credit.pending for job in self.jobs.values())

    def status(self, now: float, shown: Callable[[str], bool]) -> tuple[list[pb.JobStatus], list[pb.EndedJob]]:
        """The jobs in progress and the last ended ones, of those names for which `shown` returns True."""
        return (
            [job_status(job, now) for job in self.jobs.values() if shown(job.name)],
            [
                pb.EndedJob(
                    name=ended.job.name,
                    num_workers=ended.job.num_workers,
                    joined=sorted(rank for worker in ended.job.workers.values() for rank in worker.ranks),
                    ended_seconds=now - ended.at,
                    failure=str(ended.job.failure or ""),
                )
                for ended in self.ended
                if shown(ended.job.name)
            ],
        )

    def _in_progress(self, name: str, now: float) -> Job | None:
        """The job of this name, if it is not over."""
        if (job := self.jobs.get(name)) is not None:
            self.settle(job, now)
        return self.jobs.get(name)

    def _begin(self, hello: pb.Hello, peer: str, now: float) -> Job | FaultError:
        """Begins a job with its first worker. Returns why it does not, if the worker is late or there are too many."""
        ended = self._ended_jobs.of(hello, now)
        if ended is not None and ended.failure is not None:
            return ended.failure
        if ended is not None and (refusal := ended.members.disagreement(hello, peer)) is not None:
            # Refused only once: the worker may also be the first of a new run with other settings.
            self._ended_jobs.forget(hello.job)
            return refusal
        if len(self.jobs) >= self._limits.max_jobs:
            return ExhaustedError(
                f"job {hello.job!r} was refused: {len(self.jobs)} jobs are in progress on this aggregator, as many"
                " as it may have (PSUM_MAX_JOBS); use another, or wait for some to end"
            )
        # A worker that comes back was in the job with all others, so it is not late.
        job = self._add(hello, before=None if hello.resuming else ended)
        self._ended_jobs.forget(hello.job)
        return job

    def _add(self, hello: pb.Hello, *, before: Job | None) -> Job:
        """Makes a job, and adds it to those in progress.

        Args:
            hello: The hello of its first process.
            before: The ended job that this process came too late for; see Job.
        """
        counters = self.counters.begin(hello.job)
        job = self._make(hello, self._limits, budget=self.budget, counters=counters, before=before, lent=self._lent)
        self.jobs[hello.job] = job
        return job

    def _found(self, name: str, now: float) -> Iterator[tuple[Job, Action]]:
        """Begins the job here of processes that wait to join it. Its members are elsewhere."""
        if len(self.jobs) >= self._limits.max_jobs:
            return
        candidates = self._waiting.take(name)
        job = self._add(candidates[0].hello, before=None)
        for candidate in candidates:
            for action in self._wait_for(job, candidate, now):
                yield job, action

    def _end(self, job: Job, now: float, *, abandoned: bool = False) -> None:
        del self.jobs[job.name]
        if isinstance(job, ElasticJob):
            for candidate in (each for each in job.joins.candidates if each.via is None):
                if self._found_after is None:
                    self._waiting.refuse(candidate, elastic_texts.ended(job.name, candidate))
                else:
                    # All that were here are lost. The job goes on elsewhere.
                    self._waiting.add(candidate, deserted=True)
        job.end()
        if abandoned:
            # What follows from its end is carried out first: a relay tells the owners.
            self._unreleased.append(job)
        else:
            self._released(job)
        self.counters.end(job.name, now)
        self.ended.appendleft(Ended(job, now, abandoned))
        # The failure itself was logged when it happened.
        absent = job.members.roster.absent
        never = f"; {absent} of its {job.num_workers} ranks never joined" if absent else ""
        what = "its group here ended" if job.forwards else "ended"
        _log.info("job %s: %s%s", job.name, what, " after its failure" if job.failure else never)

    def _outlived(self, hello: pb.Hello, now: float) -> FaultError | None:
        """Why a worker cannot come back: its job has ended in the meantime. None if it can."""
        if not hello.resuming:
            return None
        # A worker of a job that was only presumed to be over joins the job that replaced it.
        for job in (ended.job for ended in self.ended if ended.job.name == hello.job and not ended.abandoned):
            for worker in job.members.holders(hello):
                if not same_process(worker.hello, hello):
                    continue
                if isinstance(job, ElasticJob) and (loss := job.members.loss(hello.rank)) is not None:
                    return elastic_texts.excluded(job.name, loss, now)
                return job.failure or TakenError(
                    f"job {job.name!r} has ended, and {rank_names(worker.ranks)}, {worker}, had left it",
                    ranks=worker.ranks,
                )
        return None


def _make(hello: pb.Hello, limits: Limits, **others: Any) -> Job:
    return (ElasticJob if hello.HasField("elastic") else Job)(hello, limits, **others)
