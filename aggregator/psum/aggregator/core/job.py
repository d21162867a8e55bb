"""One training job on one aggregator: what its workers do, and what follows from it.

Its members are workers, and relays that stand for several ranks. A member is identified by its first rank (`rank`
below); roster.py says more.

Events in, actions out, without I/O. The shell calls `join`, `declare`, `contribute`, `abort`, `leave` and `lost` as
messages and disconnections arrive, `summed` when a sum is made, and `tick` several times a second; each returns the
actions that follow. A method that raises ProtocolError has changed nothing: the shell ends that worker's stream.

Membership decides who belongs to the job, JobRounds what contributions lead to, OpenShards how long rounds may wait,
and CreditReturns when credit is returned. A Job connects them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from psum.aggregator.core import membership_texts
from psum.aggregator.core.actions import Action, Release, Report, Sum, Warn
from psum.aggregator.core.budget import Budget
from psum.aggregator.core.counters import JobCounters
from psum.aggregator.core.credit import CreditReturns
from psum.aggregator.core.job_rounds import JobRounds
from psum.aggregator.core.key import Key
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.membership import Membership
from psum.aggregator.core.memory import JobMemory
from psum.aggregator.core.open_shards import OpenShards
from psum.aggregator.core.round import ShardRounds
from psum.aggregator.core.small_rounds import SmallRounds
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError, ProtocolError


class Job:
    """The state of one job.

    Args:
        hello: The first worker's hello, which all others must agree with.
        limits: The time-outs and the limit on shards.
        budget: The memory that the job shares with others.
        counters: Where its work is counted.
        before: The ended job of this name, if the worker comes too late for that job: all who had joined it have left.
        lent: Tells whether a payload lies in memory that its worker takes back with the credit.
    """

    forwards: ClassVar[bool] = False
    """Whether sums of contributions are passed to `forward` rather than to `summed`: this is a relay's group."""

    brief: ClassVar[bool] = False
    """Whether messages may have columns of two entries; see `to_columns`."""

    membership_type: ClassVar[type[Membership]] = Membership
    """What decides who belongs to the job."""

    rounds_type: ClassVar[type[JobRounds]] = JobRounds
    """What decides what contributions lead to."""

    def __init__(
        self,
        hello: pb.Hello,
        limits: Limits,
        *,
        budget: Budget | None = None,
        counters: JobCounters | None = None,
        before: "Job | None" = None,
        lent: Callable[[memoryview], bool] = lambda payload: False,
    ) -> None:
        self.name = hello.job
        self.counters = counters or JobCounters()
        self.members: Membership = self.membership_type(hello, limits, None if before is None else before.members)
        self.num_workers = self.members.roster.size
        """The number of ranks that take part: those of the fleet, or those of a relay's group."""
        self.workers = self.members.workers
        """The members that joined, by first rank; they stay here after they left."""
        self.failure: FaultError | None = None
        """Why the job failed; a failed job holds nothing."""
        self.failed_at: float | None = None
        self.abandoned = False
        """Whether all members of an elastic job have been away for so long that nothing is kept for them any more.

        Those that live come back as to an aggregator that was started again.
        """
        self.ended = False
        """Whether `end` was called."""
        self._memory = JobMemory(budget or Budget())
        self._open_shards = OpenShards(self.name, self.workers, limits)
        self.open_shards = self._open_shards.shards
        """Shards whose round has some contributions but not all, by (key's id, shard), the oldest round first."""
        self.credit = CreditReturns(self.workers, lent)
        self.rounds = self.rounds_type(self.members, self._open_shards, self._memory, self.counters, limits.max_shards)
        self._small = SmallRounds(self.rounds, self.members, self._open_shards, self._memory, self.counters)
        self.keys = self.rounds.keys
        """The declared keys by id."""
        # The methods themselves, not wrappers: a wrapper would add a call for each shard.
        self.contribute = self.rounds.contribute
        self.contribute_together = self._small.contribute
        self.summed_together = self._small.summed
        self.summed = self.rounds.summed
        self.restore = self.rounds.restore
        self.restored = self.rounds.restored
        self.abort = self.rounds.abort
        self.lacking = self.rounds.lacking

    def __repr__(self) -> str:
        return (
            f"<Job {self.name!r} members={self.members.roster.members} of {self.num_workers} ranks"
            f" open_shards={len(self.open_shards)}>"
        )

    @property
    def complete(self) -> bool:
        """Whether every rank has joined."""
        return self.members.complete

    @property
    def takes_together(self) -> bool:
        """Whether `contribute_together` may be used rather than `contribute`."""
        return not self.forwards and self.rounds.take_together

    @property
    def over(self) -> bool:
        """Whether nobody will use the job again: no worker is connected, and all have left or the job has failed."""
        if any(w.connected for w in self.workers.values()):
            return False
        return self.failure is not None or self.members.departures.over

    @property
    def held_bytes(self) -> int:
        """Bytes of contributions and results that the job refers to."""
        return self._memory.held_bytes

    def gives_way(self, hello: pb.Hello, peer: str, now: float) -> bool:
        """Whether a process begins the next run: all workers here had vanished when it was started.

        A worker that comes back belongs to no new run, even if its clock says otherwise.

        Args:
            hello: Its hello.
            peer: Its address.
            now: The time.
        """
        started, workers = now - hello.age_seconds, self.workers.values()
        vanished = bool(workers) and all(not each.connected and started > each.last_heard for each in workers)
        return vanished and not hello.resuming

    def join(self, hello: pb.Hello, peer: str, now: float) -> tuple[list[Action], FaultError | None]:
        """Handles a worker's hello.

        Returns:
            The actions that follow, and why the worker is refused (None: it has joined).
        """
        if self.failure is not None:
            if (refusal := self.members.next_run(hello, peer)) is not None:
                return [], refusal
            self.members.told[hello.rank] = hello.incarnation
            return [], self.failure
        if (refusal := self.members.disagreement(hello, peer)) is not None:
            self.members.told[hello.rank] = hello.incarnation
            # While ranks are missing, the worker may be one of them, and the job cannot go on without it. If the job is
            # complete, the worker is a stranger, which must not end it.
            return ([] if self.members.is_stranger(hello) else self.fail(refusal, now)), refusal
        was_complete = self.complete
        refusal, failure = self.members.join(hello, peer, now)
        if refusal is None and failure is None:
            self.members.learn_departures(hello, peer, now)
            # Each worker of a job keeps its hello, and each may list thousands.
            del hello.departures[:]
        if self.complete and not was_complete:
            self._memory.trim(key for key in self.keys.values() if key.failure is None)
        return [] if failure is None else self.fail(failure, now), refusal

    def declare(self, rank: int, declared: pb.Key, now: float) -> list[Action]:
        """Handles a worker's declaration of a key.

        Raises:
            ProtocolError: The declaration contradicts itself.
        """
        if self.failure is not None:
            return []
        outcome = self.rounds.declare(rank, declared, now)
        return self.fail(outcome, now) if isinstance(outcome, FaultError) else outcome

    def leave(self, rank: int, now: float) -> list[Action]:
        """Handles a worker's goodbye. Keys that still need its contribution fail; it is released later."""
        worker = self.workers[rank]
        if worker.taking_leave:
            return []
        worker.uncredited.clear()
        departures = self.members.departures
        sync = departures.begin(rank, now)
        return self.rounds.fail_deserted() + sync + departures.releases(now)

    def leave_partly(self, rank: int, ranks: Sequence[int]) -> list[Action]:
        """Handles the goodbye of some of a relay's ranks. Keys that still need the relay's contribution fail.

        Raises:
            ProtocolError: The member does not stand for these ranks.
        """
        self.members.leave_partly(rank, ranks)
        return self.rounds.fail_deserted()

    def leave_early(self, rank: int, goodbye: pb.Goodbye, now: float) -> list[Action]:
        """Handles the goodbye of a worker whose work is not done: it is released at once, and the job fails.

        If the worker has taken part in nothing at all, the job waits for another process in its place instead.
        """
        worker = self.workers[rank]
        if worker.taking_leave:
            return []
        worker.taking_leave = True
        others = tuple(other for other in self.members.connected() if other != rank)
        if self.failure is None and goodbye.replaceable and not worker.contributed:
            # Its place is kept from the end of its stream on.
            warning = membership_texts.replaceable(worker, goodbye.fault, self.members.kept_seconds(worker))
            return [Warn(warning, others), Release(rank)]
        worker.left, worker.release_at = True, None
        self.members.departures.left.update(worker.ranks)
        failure = membership_texts.ended_early(worker, goodbye.fault)
        return [*self.fail(failure, now, others), Release(rank)]

    def departures(self) -> list[pb.Departure]:
        """The members that have left, as each worker is told for its hello to the next aggregator process."""
        return self.members.left_members()

    def losses(self, now: float, member: int | None = None) -> list[pb.Loss]:
        """The ranks that are lost, as a member is told when it joins. Only in elastic jobs."""
        return []

    def elastic_status(self, now: float) -> pb.ElasticStatus | None:
        """The members for operators; None if the job is not elastic."""
        return None

    def learn_losses(self, rank: int, losses: Sequence[pb.Loss], now: float) -> list[Action]:
        """Takes losses that a worker of an elastic job has heard of elsewhere.

        Raises:
            ProtocolError: The job is not elastic.
        """
        raise ProtocolError(f"rank {rank} told of lost ranks, but job {self.name!r} is not elastic")

    def candidates(self) -> list[pb.Candidate]:
        """The processes that wait to join, as each worker is told. Only in elastic jobs."""
        return []

    def admission(self, rank: int) -> pb.Admission | None:
        """The admission of a rank's present process, as it is told of it. None if it was there from the beginning."""
        return None

    def other_admissions(self, rank: int) -> list[pb.Admission]:
        """What the process of a rank that was admitted is told of the other ranks: who was admitted, without rounds."""
        return []

    def admit(self, rank: int, admission: pb.Admission, now: float) -> list[Action]:
        """Takes from a member of an elastic job that the members have admitted a process.

        Raises:
            ProtocolError: The job is not elastic, or the admission makes no sense.
        """
        raise ProtocolError(f"rank {rank} admitted a process, but job {self.name!r} is not elastic")

    def wait_at(self, member: int, candidates: Sequence[pb.Candidate], now: float) -> list[Action]:
        """Takes from a relay of an elastic job which processes wait at it to join: all of them.

        Raises:
            ProtocolError: The job is not elastic, the member is no relay, or a candidate makes no sense.
        """
        raise ProtocolError(f"rank {member} told who waits to join, but job {self.name!r} is not elastic")

    def reaches(self, rank: int, now: float, *, all_of_them: bool) -> list[Action]:
        """Takes what a worker of an elastic job says of its reach: whether it has a stream to each aggregator.

        Raises:
            ProtocolError: The job is not elastic.
        """
        raise ProtocolError(f"rank {rank} told what it reaches, but job {self.name!r} is not elastic")

    def given_up(self, ranks: Sequence[int]) -> list[Action]:
        """Ranks that had left before this aggregator process was started do not come back to it. Keys that need them
        fail."""
        return self.rounds.fail_deserted()

    def synced(self, rank: int, number: int, now: float) -> list[Action]:
        """A worker has received all sums that the leaving rank may have; the number is that of the leaving rank."""
        self.members.departures.synced(rank, number)
        return self.members.departures.releases(now)

    def lost(self, rank: int, now: float, *, closed: bool = False) -> list[Action]:
        """A worker's stream has ended, with or without a goodbye; it was closed, or given up as silent."""
        self.members.lose(rank, now, closed=closed)
        return []

    def tick(self, now: float) -> list[Action]:
        """Returns credit that was held for long, fails what has waited too long, and warns of what waits."""
        if (failure := self.members.overdue(now)) is not None:
            return self.fail(failure, now)
        self._small.leave_messages(now)
        actions: list[Action] = [*self.credit.due(now), *self.members.departures.releases(now)]
        if ranks := self.members.give_up_departed(now):
            actions += self.given_up(ranks)
        while (overdue := self._open_shards.overdue(now)) is not None:
            actions += self.rounds.fail_key(*overdue)
        return actions + self._open_shards.warnings(now)

    def fail(self, failure: FaultError, now: float, ranks: tuple[int, ...] | None = None) -> list[Action]:
        """Ends the job for every rank, and releases everything that it holds.

        Args:
            failure: The reason.
            now: The time.
            ranks: The ranks to tell; None: all that are connected.
        """
        if self.failure is not None:
            return []
        self.failure, self.failed_at = failure, now
        self.rounds.fail(failure)
        self._small.clear()
        for worker in self.workers.values():
            worker.forget_credit()
        return [Report(failure, self.members.connected() if ranks is None else ranks)]

    def end(self) -> None:
        """Releases everything: all workers have left."""
        self.ended = True
        self.rounds.end()
        self._small.clear()

    def forward(self, made: Sequence[tuple[Sum, memoryview]]) -> list[Action]:
        """Takes sums of contributions, which go on to the owners of their shards. Only if the job `forwards`."""
        raise NotImplementedError

    def keep(self, action: Sum, memory: memoryview) -> None:
        """Notes where workers read a result that came from the shard's owner. Only if the job `forwards`."""
        raise NotImplementedError

    def waiting_shards(self) -> Iterator[tuple[int, Key, ShardRounds[object]]]:
        """The shards whose round waits, with their numbers; of those that wait for a rank, the oldest round first."""
        return ((index, key, shard) for (_, index), (key, shard) in self.open_shards.items())

    @property
    def rounds_waiting(self) -> int:
        """How many rounds wait."""
        return len(self.open_shards)

    def open_rounds(self) -> list[tuple[int, int, int]]:
        """The rounds to finish before this aggregator ends: (key's id, shard, round)."""
        return self.rounds.open_rounds()

    def drain(self) -> list[tuple[int, int, int]]:
        """Notes that this aggregator is about to end. Returns `open_rounds`."""
        return self.open_rounds()

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        self.rounds.check()
