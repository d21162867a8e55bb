"""An elastic job on one aggregator: it goes on without workers that are lost. docs/elastic-design.md has the reasons.

It is a Job in which a rank that vanishes does not end the job. Its open rounds are summed from the contributions that
there are, and later rounds do not wait for it. A lost rank never contributes again. `learn` takes the losses that other
aggregators have decided, as workers tell.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from psum.aggregator.core import elastic_texts
from psum.aggregator.core.actions import Action, EndStreams, Release, Report, TellLosses, Warn
from psum.aggregator.core.elastic_membership import ElasticMembership
from psum.aggregator.core.elastic_rounds import ElasticRounds
from psum.aggregator.core.elastic_status import elastic_status
from psum.aggregator.core.error_texts import MAX_REASON
from psum.aggregator.core.job import Job
from psum.aggregator.core.job_rounds import JobRounds
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.losses import Loss, reported
from psum.aggregator.core.membership import Membership
from psum.aggregator.core.membership_log import EventKind, MembershipLog
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError, ProtocolError, WorkerLostError


class ElasticJob(Job):
    """The state of one elastic job.

    Args:
        hello: The first worker's hello, which is elastic.
        limits: The time-outs and the limit on shards.
        job: What Job takes besides.
    """

    membership_type: ClassVar[type[Membership]] = ElasticMembership
    rounds_type: ClassVar[type[JobRounds]] = ElasticRounds

    members: ElasticMembership
    rounds: ElasticRounds

    def __init__(self, hello: pb.Hello, limits: Limits, **job: Any) -> None:
        limits = dataclasses.replace(
            limits, worker_timeout=limits.elastic_timeout, closed_timeout=limits.elastic_closed_timeout
        )
        super().__init__(hello, limits, **job)
        self._round_timeout = limits.round_timeout
        self.log = MembershipLog()
        """How the members have changed, for operators."""

    @property
    def over(self) -> bool:
        """See Job. Lost workers do not come back."""
        if any(worker.connected for worker in self.workers.values()):
            return False
        staying = [worker for rank, worker in self.workers.items() if rank not in self.members.losses]
        return self.failure is not None or all(worker.left and worker.release_at is None for worker in staying)

    def losses(self, now: float) -> list[pb.Loss]:
        """See Job."""
        return self.members.losses.messages(now)

    def elastic_status(self, now: float) -> pb.ElasticStatus:
        """See Job."""
        return elastic_status(self.members.first.elastic, self.members.roster, self.log, now)

    def join(self, hello: pb.Hello, peer: str, now: float) -> tuple[list[Action], FaultError | None]:
        """See Job. Of a worker that is let in, the losses are learned before anything else that it says."""
        actions, refusal = super().join(hello, peer, now)
        if self.failure is None and refusal is None:
            actions = [*actions, *self._lose(reported(hello.losses, now), now), *self.rounds.settle(hello.rank)]
            if (loss := self.members.losses.of(hello.rank)) is not None:
                # It says that its own rank is lost.
                refusal = elastic_texts.excluded(self.name, loss, now)
                self.members.lose(hello.rank, now, closed=True)
        # Each worker of a job keeps its hello.
        del hello.losses[:]
        return actions, refusal

    def declare(self, rank: int, declared: pb.Key, now: float) -> list[Action]:
        """See Job. Processes that have joined with the first round are lost if a rank has a later one."""
        if self.failure is not None or rank in self.members.losses:
            return []
        if self._is_ahead(rank, declared) and (newcomers := self.members.newcomers(now)):
            # Their declarations must not be compared with this one.
            actions = self._lose(newcomers, now, begin_again=True)
            return actions if self.failure is not None else actions + super().declare(rank, declared, now)
        return super().declare(rank, declared, now)

    def leave(self, rank: int, now: float) -> list[Action]:
        """See Job. Later rounds do not wait for this rank."""
        if self.workers[rank].taking_leave or rank in self.members.losses:
            return []
        actions = super().leave(rank, now)
        if self.failure is not None:
            return actions
        self.workers[rank].needed_by.difference_update(self.members.roster.lost)
        self.members.roster.leave(rank)
        self.log.note(now, EventKind.LEFT, rank, 0, str(self.workers[rank]))
        return [*actions, *self.rounds.settle(rank), *self.rounds.fail_deserted()]

    def leave_early(self, rank: int, goodbye: pb.Goodbye, now: float) -> list[Action]:
        """See Job. A worker that ends for a reason of its own is lost at once; other reasons end the job."""
        fault = FaultError.from_message(goodbye.fault)
        own = isinstance(fault, WorkerLostError) and set(fault.ranks) == {rank}
        if not own or self.failure is not None or (goodbye.replaceable and not self.workers[rank].contributed):
            return super().leave_early(rank, goodbye, now)
        worker = self.workers[rank]
        if worker.taking_leave:
            return []
        worker.taking_leave = True
        text = elastic_texts.ended_early(worker, goodbye.fault, MAX_REASON)
        # Its stream gets no error, but the farewell that it waits for.
        return [*self._lose([Loss(rank, text, now, "ended early")], now, told=(rank,)), Release(rank)]

    def learn_losses(self, rank: int, losses: Sequence[pb.Loss], now: float) -> list[Action]:
        """Takes losses that a worker has heard of elsewhere.

        Raises:
            ProtocolError: A rank is none of this job.
        """
        if any(loss.rank >= self.num_workers for loss in losses):
            raise ProtocolError(f"rank {rank} of job {self.name!r} told of a loss of a rank that is not in the job")
        if self.failure is not None or rank in self.members.losses:
            return []
        return self._lose(reported(losses, now), now, knowing=rank)

    def tick(self, now: float) -> list[Action]:
        """See Job. Ranks that are out of touch for too long are lost."""
        if self.failure is not None:
            return []
        actions = self._lose(self.members.due(now), now)
        roster = self.members.roster
        while self.failure is None and roster.too_few and (overdue := self._open_shards.overdue(now)) is not None:
            key, shard = next(iter(self.open_shards.values()))
            assert key is overdue[0]
            failure = elastic_texts.too_few(self.name, key, shard, roster, self._round_timeout, now)
            actions += self.rounds.fail_key(key, failure)
        return actions if self.failure is not None else actions + super().tick(now)

    def _lose(
        self,
        losses: Iterable[Loss],
        now: float,
        *,
        knowing: int | None = None,
        told: Sequence[int] = (),
        begin_again: bool = False,
    ) -> list[Action]:
        """Loses ranks for good.

        Args:
            losses: The ranks, some of which may be lost already.
            now: The time.
            knowing: The rank that has told of them.
            told: Those of them whose processes need not be told.
            begin_again: Whether to forget all keys, because the lost ranks may have declared something wrong.
        """
        new = [loss for loss in losses if self.members.lose_rank(loss)]
        if not new:
            return []
        roster, connected = self.members.roster, self.members.connected()
        for loss in new:
            self.log.note(loss.at, EventKind.LOST, loss.rank, 0, loss.text)
            self.counters.losses[loss.reason] += 1
        others = tuple(rank for rank in connected if rank in roster.members)
        lost = [loss.rank for loss in new]
        actions: list[Action] = [
            Report(elastic_texts.excluded(self.name, loss, now), (loss.rank,))
            for loss in new
            if loss.rank in connected and loss.rank not in told
        ]
        messages = [loss.to_message(now) for loss in new]
        actions.append(TellLosses(messages, tuple(rank for rank in connected if rank != knowing and rank not in lost)))
        actions += [Warn(elastic_texts.lost(self.name, loss, roster), others) for loss in new]
        if not roster.known and not roster.left:
            return actions + self.fail(elastic_texts.all_lost(self.name, roster), now)
        if begin_again or (self.members.have_resumed(lost) and self.rounds.is_learning):
            self.rounds.begin_again()
            for worker in self.workers.values():
                worker.uncredited.clear()
                worker.credited.clear()
            self.members.resume()
            return [*actions, EndStreams(tuple(rank for rank in connected if rank not in lost))]
        return [*actions, *self.rounds.settle(lost[-1]), *self.rounds.fail_deserted()]

    def _is_ahead(self, rank: int, declared: pb.Key) -> bool:
        """Whether a rank declares a later round than the first, of a shard of which no round was completed here."""
        key = self.keys.get(declared.id)
        return self.workers[rank].hello.resuming and any(
            shard.round > 0 and (key is None or (known := key.shards.get(shard.index)) is None or known.inherited)
            for shard in declared.shards
        )
