"""An elastic job on one aggregator: it goes on without workers that are lost. docs/elastic-design.md has the reasons.

It is a Job in which a rank that vanishes does not end the job. Its open rounds are summed from the contributions that
there are, and later rounds do not wait for it. A lost process never contributes again. `learn_losses` takes the losses
that other aggregators have decided, as workers tell. `wait` takes processes that ask to join, and `admit` what the
members have decided about them.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from psum.aggregator.core import elastic_texts
from psum.aggregator.core.actions import Action, Detach, EndStreams, Release, Report, TellLosses, Warn
from psum.aggregator.core.admissions import Admission, admission_of
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.elastic_membership import ElasticMembership
from psum.aggregator.core.elastic_rounds import ElasticRounds
from psum.aggregator.core.elastic_status import elastic_status
from psum.aggregator.core.error_texts import MAX_REASON
from psum.aggregator.core.job import Job
from psum.aggregator.core.job_rounds import JobRounds
from psum.aggregator.core.joins import Joins, refuse
from psum.aggregator.core.known_admissions import KnownAdmissions
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.losses import Loss, reported
from psum.aggregator.core.membership import Membership
from psum.aggregator.core.membership_log import EventKind, MembershipLog
from psum.aggregator.core.roster import ranks_of
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError, ProtocolError, WorkerLostError


class ElasticJob(Job):
    """The state of one elastic job.

    Args:
        hello: The first worker's hello, which is elastic.
        limits: The time-outs and the limit on shards.
        job: What Job takes besides.
    """

    brief: ClassVar[bool] = True
    membership_type: ClassVar[type[Membership]] = ElasticMembership
    rounds_type: ClassVar[type[JobRounds]] = ElasticRounds

    members: ElasticMembership
    rounds: ElasticRounds

    def __init__(self, hello: pb.Hello, limits: Limits, **job: Any) -> None:
        abandon_after = max(limits.worker_timeout, limits.elastic_timeout)
        limits = dataclasses.replace(
            limits,
            worker_timeout=limits.elastic_timeout,
            closed_timeout=limits.elastic_closed_timeout,
            relay_timeout=abandon_after,
        )
        super().__init__(hello, limits, **job)
        self._round_timeout = limits.round_timeout
        self._abandon_after = abandon_after
        self._most = hello.elastic.max
        self.log = MembershipLog()
        """What happened to members, for operators."""
        self._admissions = KnownAdmissions(self.members, self.rounds)
        self.joins = Joins(self.members, self._memory, limits, self.log)
        """The processes that wait to join."""

    @property
    def over(self) -> bool:
        """See Job. Lost workers do not come back."""
        if any(worker.connected for worker in self.workers.values()):
            return False
        if self.abandoned:
            return True
        staying = [worker for member, worker in self.workers.items() if not self.members.is_lost(member)]
        return self.failure is not None or all(worker.left and worker.release_at is None for worker in staying)

    def losses(self, now: float, member: int | None = None) -> list[pb.Loss]:
        """See Job. Without those after which another process was admitted: a newcomer would take that one for lost."""
        losses = [*self.members.present_losses(), *(() if member is None else self.members.outdated(member))]
        return [loss.to_message(now) for loss in losses]

    def elastic_status(self, now: float) -> pb.ElasticStatus:
        """See Job."""
        elastic, roster, candidates = self.members.first.elastic, self.members.roster, self.joins.listed()
        return elastic_status(elastic, roster, self.log, candidates, now)

    def candidates(self) -> list[pb.Candidate]:
        """See Job."""
        return [candidate.to_message() for candidate in self.joins.listed()]

    def admission(self, rank: int) -> pb.Admission | None:
        """See Job. A relay is told of it if it has only this rank."""
        return self._admissions.of_member(rank)

    def other_admissions(self, rank: int) -> list[pb.Admission]:
        """See Job. Until a newcomer has the state, it could not tell a restarted aggregator whom the others expect."""
        return self._admissions.of_others(rank)

    def join(self, hello: pb.Hello, peer: str, now: float) -> tuple[list[Action], FaultError | None]:
        """See Job. Of a worker that is let in, losses and admissions are learned before anything else that it says."""
        before = {rank: self.members.holder(rank) for rank in ranks_of(hello)}
        admissions = self._admissions.told_in(hello)
        actions = self._admit_itself(hello, peer, now)
        more, refusal = super().join(hello, peer, now)
        actions += more
        member = hello.rank
        if self.failure is None and refusal is None:
            if hello.ranks:
                actions += self._lose(self.members.replaced(now), now)
            # If nobody is left then, it says so of itself, and it is only refused: others may know of further ranks.
            actions += self._lose(reported(hello.losses, now), now, judge=False)
            for admission in admissions:
                is_new = self.members.generation(admission.rank) < admission.generation
                actions += self._admit(admission, member, now)
                if is_new:
                    self.members.await_back(admission.rank, now)
            actions += self.rounds.settle(member)
            if self.members.is_lost(member):
                # It says that its own rank is lost.
                refusal = self.members.excluded(member, now)
                self.members.lose(member, now, closed=True)
            else:
                worker = self.workers[member]
                for rank in self.members.roster.living(member):
                    if rank in self.members.admissions:
                        # It was let in, so all whom this member stands for have admitted it.
                        self.members.admissions[rank].said.add(member)
                    if before.get(rank) is not worker:
                        self.log.note(now, EventKind.JOINED, rank, self.members.generation(rank), str(worker))
            actions += self.joins.welcome(now)
        # Each worker of a job keeps its hello.
        del hello.losses[:]
        del hello.admissions[:]
        return actions, refusal

    def wait(self, candidate: Candidate, now: float) -> tuple[list[Action], FaultError | None]:
        """Lets a process wait that asks to join.

        Returns:
            The actions that follow, and why the process is refused (None: it waits).
        """
        if self.failure is not None:
            return [], self.failure
        # What members say about others is enough.
        del candidate.hello.losses[:]
        del candidate.hello.admissions[:]
        if (refusal := self.joins.refusal(candidate, self.keys.values())) is not None:
            return [], refusal
        actions = self._lose(self.members.replace(candidate.hello, candidate.peer, now), now)
        if self.failure is not None:
            return actions, self.failure
        return [*actions, *self.joins.add(candidate, now), *self.joins.welcome(now)], None

    def withdraw(self, candidate: Candidate, now: float) -> list[Action]:
        """Notes that the stream of a process has ended that waited."""
        return self.joins.withdraw(candidate, now)

    def wait_at(self, member: int, candidates: Sequence[pb.Candidate], now: float) -> list[Action]:
        """See Job. Each of them is a candidate as those that wait here."""
        is_relay = self.workers[member].is_relay
        if not is_relay or any(each.rank >= self._most or not each.incarnation for each in candidates):
            raise ProtocolError(
                f"{self.members.title(member)} tells that {len(candidates)} processes wait at it to join; expected a"
                f" relay, and a rank below {self._most} and the number of a process for each"
            )
        if self.failure is not None or self.members.is_lost(member):
            return []
        actions, new = self.joins.told_at(member, candidates, now)
        for candidate in new:
            more, refusal = self.wait(candidate, now)
            actions += more if refusal is None else [*more, refuse(candidate, refusal)]
        return actions

    def lost(self, rank: int, now: float, *, closed: bool = False) -> list[Action]:
        """See Job. Nobody can admit those who wait at a relay until it comes back."""
        return [*super().lost(rank, now, closed=closed), *self.joins.cut_off(rank, now)]

    def admit(self, rank: int, admission: pb.Admission, now: float) -> list[Action]:
        """See Job."""
        if self.failure is not None or self.members.is_lost(rank):
            return []
        return [*self._admit(admission_of(admission, self._most), rank, now), *self.joins.welcome(now)]

    def declare(self, rank: int, declared: pb.Key, now: float) -> list[Action]:
        """See Job. Processes that have joined with the first round are lost if a rank has a later one."""
        if self.failure is not None or self.members.is_lost(rank):
            return []
        if self.rounds.is_ahead(rank, declared) and (newcomers := self.members.newcomers(now)):
            # Their declarations must not be compared with this one.
            actions = self._lose(newcomers, now, begin_again=True)
            return actions if self.failure is not None else actions + super().declare(rank, declared, now)
        return super().declare(rank, declared, now)

    def leave(self, rank: int, now: float) -> list[Action]:
        """See Job. Later rounds do not wait for this rank."""
        if self.workers[rank].taking_leave or self.members.is_lost(rank):
            return []
        roster = self.members.roster
        leaving = roster.living(rank)
        self._note_left(rank, leaving, now)
        actions = super().leave(rank, now)
        if self.failure is not None:
            return actions
        self.workers[rank].needed_by.difference_update(roster.gone)
        return [*actions, *self._go_on_without(rank, leaving), *self.joins.welcome(now)]

    def leave_partly(self, rank: int, ranks: Sequence[int]) -> list[Action]:
        """See Job. Later rounds do not wait for these ranks. Those that are gone already need no goodbye.

        Nor do those in whose places others were admitted elsewhere: a relay that was started again repeats itself.
        """
        roster, admissions = self.members.roster, self.members.admissions
        theirs = [each for each in ranks if each not in admissions or roster.member(each) == rank]
        leaving = [each for each in theirs if not roster.is_gone(each)]
        if self.failure is not None or self.members.is_lost(rank):
            return []
        # One that this aggregator, started again, has not seen: the relay lists it no more.
        unseen = [each for each in leaving if each in roster and roster.member(each) is None]
        actions = super().leave_partly(rank, [each for each in leaving if each not in unseen])
        if self.failure is not None:
            return actions
        self.members.departures.left.update(unseen)
        self._note_left(rank, leaving, self.workers[rank].last_heard)
        return [*actions, *self._go_on_without(rank, leaving)]

    def leave_early(self, rank: int, goodbye: pb.Goodbye, now: float) -> list[Action]:
        """See Job. A worker that ends for a reason of its own is lost at once; other reasons end the job."""
        fault = FaultError.from_message(goodbye.fault)
        ranks = self.members.roster.living(rank)
        own = isinstance(fault, WorkerLostError) and self.members.speaks_for(rank, fault.ranks)
        if not own or self.failure is not None or (goodbye.replaceable and not self.workers[rank].contributed):
            return super().leave_early(rank, goodbye, now)
        worker = self.workers[rank]
        if worker.taking_leave:
            return []
        worker.taking_leave = True
        # A relay that ends may not have let in all its newcomers. Those wait at it, and come by another way.
        waiting = [each for each in ranks if each not in fault.ranks and self.members.is_undecided(each)]
        for each in waiting:
            self.members.expect_again(each, now)
        ranks = tuple(each for each in ranks if each not in waiting)
        text = elastic_texts.ended_early(worker, goodbye.fault, MAX_REASON)
        losses = [
            Loss(each, text, now, generation=self.members.generation(each), reason="ended early") for each in ranks
        ]
        # Its stream gets no error, but the farewell that it waits for.
        return [*self._lose(losses, now, told=(rank,)), Release(rank)]

    def learn_losses(self, rank: int, losses: Sequence[pb.Loss], now: float) -> list[Action]:
        """Takes losses that a worker has heard of elsewhere.

        Raises:
            ProtocolError: A rank is none of this job.
        """
        if any(loss.rank >= self._most for loss in losses):
            raise ProtocolError(f"{self.members.title(rank)} told of a loss of a rank that is not in the job")
        if self.failure is not None or self.members.is_lost(rank):
            return []
        return self._lose(reported(losses, now), now, knowing=rank)

    def reaches(self, rank: int, now: float, *, all_of_them: bool) -> list[Action]:
        """See Job."""
        self.members.reaches(rank, now, all_of_them=all_of_them)
        return []

    def tick(self, now: float) -> list[Action]:
        """See Job. Ranks that are out of touch for too long are lost. Nothing is decided while all are."""
        if self.failure is not None:
            return []
        if self.members.all_away_for(now) > self._abandon_after:
            self.abandoned = True
            return self.joins.refuse_all(elastic_texts.all_away(self.name, self._abandon_after))
        actions = [*self._lose(self.members.due(now), now), *self.joins.due(now)]
        roster = self.members.roster
        while self.failure is None and roster.too_few and (overdue := self._open_shards.overdue(now)) is not None:
            key, failure = overdue
            _, shard = next(iter(self.open_shards.values()))
            if not key.ranks:
                failure = elastic_texts.too_few(self.name, key, shard, roster, self._round_timeout, now)
            actions += self.rounds.fail_key(key, failure)
        return actions if self.failure is not None else actions + super().tick(now)

    def drain(self) -> list[tuple[int, int, int]]:
        """See Job. Nobody is lost by time any more: whoever loses its stream cannot open another one here."""
        self.members.draining = True
        return super().drain()

    def fail(self, failure: FaultError, now: float, ranks: tuple[int, ...] | None = None) -> list[Action]:
        """See Job. Those who wait to join are told too."""
        return [*super().fail(failure, now, ranks), *self.joins.refuse_all(failure)]

    def _admit_itself(self, hello: pb.Hello, peer: str, now: float) -> list[Action]:
        """Learns from a member that comes back that it, or a rank of it, was admitted, if nobody has said so here."""
        actions: list[Action] = []
        for admission in self._admissions.implied_by(hello):
            if self.failure is not None or self.members.disagreement(hello, peer) is not None:
                break
            actions += self._admit(admission, None if hello.ranks else admission.rank, now)
        return actions

    def _admit(self, admission: Admission, by: int | None, now: float) -> list[Action]:
        """Learns that members have admitted a process. If that is new, the process before it is lost at the latest now.

        Raises:
            ProtocolError: See KnownAdmissions.learn.
        """
        if not self._admissions.learn(admission, by):
            return []
        rank, generation = admission.rank, self.members.generation(admission.rank)
        # Without a process here there is none to lose. A newcomer that does not know of this admission would take the
        # loss for that of the present process.
        is_here = self.members.holder(rank) is not None and not self.members.roster.is_gone(rank)
        out = [elastic_texts.admitted_later(admission)] if is_here and generation >= 0 else []
        losses = [Loss(rank, text, now, generation=generation, reason="replaced") for text in out]
        return self._lose(losses, now, admission=admission)

    def _lose(
        self,
        losses: Iterable[Loss],
        now: float,
        *,
        knowing: int | None = None,
        told: Sequence[int] = (),
        begin_again: bool = False,
        admission: Admission | None = None,
        judge: bool = True,
    ) -> list[Action]:
        """Loses processes for good.

        Args:
            losses: The ranks, some of which may be lost already.
            now: The time.
            knowing: The member that has told of them.
            told: Those of the members that are lost with them that need not be told.
            begin_again: Whether to forget all keys, because the lost ranks may have declared something wrong.
            admission: A process that was admitted in the place of one that is lost by then, or has left.
            judge: Whether to end the job if no rank is left.
        """
        new = [loss for loss in losses if self.members.lose_rank(loss)]
        if not new and admission is None:
            return []
        roster, connected = self.members.roster, self.members.connected()
        begin_again |= self.members.have_resumed(loss.rank for loss in new) and self.rounds.is_learning
        others = tuple(rank for rank in connected if rank in roster.members)
        lost = self.members.members_of(loss.rank for loss in new)
        # A relay that goes on is told of the loss. One that has told of its last rank itself waits for its farewell.
        lost = [member for member in lost if self.members.is_lost(member)]
        deserted = [action for member in lost for action in self.joins.desert(member, now)]
        actions: list[Action] = [
            Release(member) if member == knowing else Report(self.members.excluded(member, now), (member,))
            for member in lost
            if member in connected and member not in told
        ]
        for loss in new:
            self.log.note(loss.at, EventKind.LOST, loss.rank, loss.generation, loss.text)
            self.counters.losses[loss.reason] += 1
            actions += self.joins.lost(loss, elastic_texts.excluded(self.name, loss, now))
        if new:
            messages = [loss.to_message(now) for loss in new]
            ranks = tuple(rank for rank in connected if rank != knowing and rank not in lost)
            actions.append(TellLosses(messages, ranks))
        actions += [warning for loss in new for warning in self._warn_of(loss, others)]
        actions += deserted
        if admission is not None:
            actions += self._begin_generation(admission, now)
        # The owners of a group know of further ranks.
        if (judge or self.forwards) and (ending := self._none_left(now)) is not None:
            return actions + ending
        if begin_again:
            return [*actions, *self._begin_again(), EndStreams(tuple(rank for rank in connected if rank not in lost))]
        # Without losses there is an admission.
        last = admission.rank if admission is not None else new[-1].rank
        return [*actions, *self.rounds.settle(last), *self.rounds.fail_deserted(), *self.joins.welcome(now)]

    def _warn_of(self, loss: Loss, others: tuple[int, ...]) -> list[Action]:
        """Warns the others of a loss."""
        return [Warn(elastic_texts.lost(self.name, loss, self.members.roster), others)]

    def _none_left(self, now: float) -> list[Action] | None:
        """Ends the job if no rank is left after a loss. None if some are."""
        roster = self.members.roster
        return None if roster.known or roster.left else self.fail(elastic_texts.all_lost(self.name, roster), now)

    def _begin_again(self) -> list[Action]:
        """Forgets all keys. The members declare them again on new streams."""
        self.rounds.begin_again()
        for worker in self.workers.values():
            worker.forget_credit()
        self.members.resume()
        return []

    def _begin_generation(self, admission: Admission, now: float) -> list[Action]:
        """Expects the process of an admission, and nothing more of the one before."""
        rank, before = admission.rank, self.members.holder(admission.rank)
        actions: list[Action] = []
        if before is not None and before.connected and self.members.roster.ranks(before.hello.rank) == (rank,):
            # Otherwise it is a relay, whose other ranks stay.
            if before.left and before.release_at is not None:
                actions.append(Release(before.hello.rank))
            actions.append(Detach(before.hello.rank))
        self.members.admit(admission, now)
        self.rounds.forget_ranked_keys()
        self._memory.grow(self.keys.values())
        self.rounds.begin_at(admission)
        return actions + self.joins.admitted(admission, now)

    def _go_on_without(self, member: int, leaving: Iterable[int]) -> list[Action]:
        """Ends the open rounds that wait for nobody when ranks of a member have left."""
        for rank in leaving:
            self.members.roster.leave(rank)
        return [*self.rounds.settle(member), *self.rounds.fail_deserted()]

    def _note_left(self, member: int, ranks: Sequence[int], now: float) -> None:
        for rank in ranks:
            self.log.note(now, EventKind.LEFT, rank, self.members.generation(rank), str(self.workers[member]))
