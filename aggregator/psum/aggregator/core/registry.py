"""The jobs of one aggregator by name: when each begins and ends, and what late ranks of an ended job are told."""

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from psum.aggregator.core import elastic_texts
from psum.aggregator.core.actions import Action, Refuse
from psum.aggregator.core.budget import Budget
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.counters import AllCounters
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.ended_jobs import EndedJobs
from psum.aggregator.core.job import Job
from psum.aggregator.core.job_status import job_status
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.roster import ranks_of
from psum.aggregator.core.waiting_room import WaitingRoom
from psum.aggregator.core.worker import same_process
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb
from psum.wire import MAX_PARTITION_BYTES, PROTOCOL_VERSION, parse_destination
from psum.wire.errors import ExhaustedError, FaultError, InvalidError, TakenError, WorkerLostError

_log = logging.getLogger(__name__)

#: How many ended jobs are kept for the status.
_HISTORY: Final = 32

#: The most workers that a job may have.
_MAX_WORKERS: Final = 4096

#: The most aggregators that a relay forwards to. It has buffers for each.
_MAX_AGGREGATORS: Final = 4096

#: The longest name of a job or a worker, in characters.
_MAX_NAME: Final = 253

#: How many weights or ranks of a hello are repeated in an error.
_MAX_SHOWN: Final = 8


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
        if (refusal := self._invalid(hello)) is not None:
            return None, [], refusal
        if (refusal := self._outlived(hello, now)) is not None:
            return None, [], refusal
        started = now - hello.age_seconds
        actions: list[tuple[Job, Action]] = []
        if (job := self.jobs.get(hello.job)) is not None:
            self.settle(job, now)
            job = self.jobs.get(hello.job)
        # A worker that comes back belongs to no new run, even if its clock says otherwise.
        if job is not None and not hello.resuming and self._abandoned(job, started):
            failure = WorkerLostError(f"all workers of job {job.name!r} vanished, and it was started again")
            actions += [(job, action) for action in job.fail(failure, now)]
            self._end(job, now, abandoned=True)
            job = None
        if job is None:
            ended = self._ended_jobs.of(hello, now)
            if ended is not None and ended.failure is not None:
                return None, actions, ended.failure
            if ended is not None and (refusal := ended.members.disagreement(hello, peer)) is not None:
                # Refused only once: the worker may also be the first of a new run with other settings.
                self._ended_jobs.forget(hello.job)
                return None, actions, refusal
            if len(self.jobs) >= self._limits.max_jobs:
                refusal = ExhaustedError(
                    f"job {hello.job!r} was refused: {len(self.jobs)} jobs are in progress on this aggregator, as many"
                    " as it may have (max_jobs); use another, or wait for some to end"
                )
                return None, actions, refusal
            job = self.jobs[hello.job] = self._make(
                hello,
                self._limits,
                budget=self.budget,
                counters=self.counters.begin(hello.job),
                # A worker that comes back was in the job with all others, so it is not late.
                before=None if hello.resuming else ended,
                lent=self._lent,
            )
            self._ended_jobs.forget(hello.job)
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
        if (refusal := self._invalid(hello)) is not None:
            return [], refusal
        if hello.ranks:
            # A relay asks for the first process of its group.
            hello.incarnation = hello.incarnations[0] if hello.incarnations else 0
        if (job := self.jobs.get(hello.job)) is not None:
            self.settle(job, now)
            job = self.jobs.get(hello.job)
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

    def _found(self, name: str, now: float) -> Iterator[tuple[Job, Action]]:
        """Begins the job here of processes that wait to join it. Its members are elsewhere."""
        if len(self.jobs) >= self._limits.max_jobs:
            return
        candidates = self._waiting.take(name)
        hello, counters = candidates[0].hello, self.counters.begin(name)
        job = self._make(hello, self._limits, budget=self.budget, counters=counters, before=None, lent=self._lent)
        self.jobs[name] = job
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

    @staticmethod
    def _abandoned(job: Job, started: float) -> bool:
        """Whether a worker that started at this time begins a new run, because all workers of the job had vanished."""
        return bool(job.workers) and all(not w.connected and started > w.last_heard for w in job.workers.values())

    @staticmethod
    def _invalid(hello: pb.Hello) -> FaultError | None:
        """Why a hello makes no sense by itself; None if it does."""
        if len(hello.worker) > _MAX_NAME or not hello.worker.isprintable():
            return InvalidError(f"a worker was refused: a worker's name has at most {_MAX_NAME} printable characters")
        who = f"{hello.worker or 'an unnamed worker'} was refused"
        if hello.protocol_version != PROTOCOL_VERSION:
            return InvalidError(
                f"{who}: it speaks version {hello.protocol_version} of the protocol, this aggregator version"
                f" {PROTOCOL_VERSION}; install the same psum on both sides"
            )
        if not 0 < len(hello.job) <= _MAX_NAME or not hello.job.isprintable():
            return InvalidError(f"{who}: a job's name has 1 to {_MAX_NAME} printable characters")
        if (hello.joining or hello.generation or hello.admissions) and not hello.HasField("elastic"):
            return InvalidError(
                f"{who}: it asks to join a running job, or was admitted to one, which is not elastic (PSUM_ELASTIC)"
            )
        most = max(hello.num_workers, hello.elastic.max) if hello.HasField("elastic") else hello.num_workers
        if not 0 < hello.num_workers <= _MAX_WORKERS or hello.rank >= most:
            return InvalidError(
                f"{who}: rank {hello.rank} of {most} workers; a job has 1 to {_MAX_WORKERS} workers, ranks from 0"
            )
        ranks = ranks_of(hello)
        if ranks[0] != hello.rank or list(ranks) != sorted(set(ranks)) or ranks[-1] >= most:
            return InvalidError(
                f"{who}: rank {hello.rank} that stands for {_listed(ranks)} of {hello.num_workers} workers; expected"
                " each rank once, in ascending order, from its own rank"
            )
        if hello.group_size > hello.num_workers or (0 < hello.group_size < len(ranks) and not hello.elastic.max):
            return InvalidError(
                f"{who}: {_listed(ranks)} in a group of {hello.group_size} of {hello.num_workers} workers; a group has"
                " as many ranks as one of its members at least, and as many as the job at most"
            )
        if hello.group_size and (problem := unusable_addresses(hello)) is not None:
            return InvalidError(f"{who}: it asks for a relay to {problem}")
        if not 0 < hello.partition_bytes <= MAX_PARTITION_BYTES:
            return InvalidError(
                f"{who}: a partition of {hello.partition_bytes} bytes; expected 1 to {MAX_PARTITION_BYTES}"
            )
        if hello.weights and (len(hello.weights) != len(hello.aggregators) or 0 in hello.weights):
            return InvalidError(
                f"{who}: {len(hello.weights)} weights {list(hello.weights)[:_MAX_SHOWN]} for {len(hello.aggregators)}"
                " aggregators; expected none, or one for each, from 1"
            )
        if hello.HasField("elastic") and (problem := _wrong_elastic(hello)) is not None:
            return InvalidError(f"{who}: {problem}")
        for each in hello.departures:
            gone = list(each.ranks)
            if not gone or gone != sorted(set(gone)) or gone[-1] >= most:
                return InvalidError(
                    f"{who}: it says that a member for {_listed(gone)} of {hello.num_workers} workers has left;"
                    " expected each rank once, in ascending order"
                )
        if hello.planes and pb.PLANE_INLINE not in hello.planes:
            return InvalidError(f"{who}: it does not offer the inline plane, which every worker must offer")
        return None


def _make(hello: pb.Hello, limits: Limits, **others: Any) -> Job:
    return (ElasticJob if hello.HasField("elastic") else Job)(hello, limits, **others)


def unusable_addresses(hello: pb.Hello) -> str | None:
    """Why a relay cannot forward to the aggregators of a hello; None if it can. Only the relay connects to them."""
    if not 0 < len(hello.aggregators) <= _MAX_AGGREGATORS:
        return f"{len(hello.aggregators)} aggregators; expected 1 to {_MAX_AGGREGATORS}"
    try:
        for address in (*hello.aggregators, *(relay.address for relay in hello.next_relays)):
            parse_destination(address)
    except ValueError as error:
        return f"no address of an aggregator: {error}"
    return None


def _wrong_elastic(hello: pb.Hello) -> str | None:
    """Why an elastic job cannot be as a hello says; None if it can."""
    least, most = hello.elastic.min, hello.elastic.max
    if not 0 < least <= hello.num_workers <= most <= _MAX_WORKERS:
        return (
            f"an elastic job of {least} to {most} ranks that begins with {hello.num_workers}; expected at least 1,"
            f" at most {_MAX_WORKERS}, and its {hello.num_workers} workers between (PSUM_ELASTIC, PSUM_NUM_WORKERS)"
        )
    if not len(hello.ranks) == len(hello.incarnations) == len(hello.generations) or 0 in hello.incarnations:
        return (
            f"it stands for {len(hello.ranks)} ranks of an elastic job, with {len(hello.incarnations)} processes and"
            f" {len(hello.generations)} generations; expected a process and a generation for each rank"
        )
    if hello.joining and len(hello.ranks) > 1:
        return f"a relay for {len(hello.ranks)} ranks asks to join an elastic job; expected one rank at first"
    if any(each.rank >= most for each in hello.losses):
        return f"it says that a rank is lost which is none of {most}"
    if (hello.joining or hello.generation) and not (hello.incarnation or hello.ranks):
        return "a process that asks to join must have an incarnation"
    return None


def _listed(ranks: Sequence[int]) -> str:
    """Ranks as a hello lists them, the first of many."""
    more = f" and {len(ranks) - _MAX_SHOWN} more" if len(ranks) > _MAX_SHOWN else ""
    return f"ranks {list(ranks[:_MAX_SHOWN])}{more}"
