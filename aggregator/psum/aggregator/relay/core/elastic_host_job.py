"""The job of a relay's group in an elastic job: the group goes on without ranks that are lost.

It is a HostJob and an ElasticJob. What the group loses, the owners are told, before anything that the group contributes
without the lost ranks. What the owners tell, the workers are told, before results without the lost ranks. The owners
judge whether enough ranks are left.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from psum.aggregator.core.actions import (
    Action,
    Admit,
    ConnectUplinks,
    PartUplinks,
    Refuse,
    ReopenUplinks,
    SendUplinks,
    TellLosses,
    Warn,
)
from psum.aggregator.core.admissions import Admission
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.job_rounds import JobRounds
from psum.aggregator.core.key import Key
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.losses import Loss, reported
from psum.aggregator.core.membership import Membership
from psum.aggregator.core.membership_log import EventKind
from psum.aggregator.core.worker import Worker
from psum.aggregator.relay.core import group_texts, introduction
from psum.aggregator.relay.core.elastic_uplink import ElasticUplink
from psum.aggregator.relay.core.events import Admitted, CandidatesTold, Decided, Event, LossesTold, UplinkReopened
from psum.aggregator.relay.core.forwarded import ForwardedKey
from psum.aggregator.relay.core.founder import Founder
from psum.aggregator.relay.core.group_introduction import GroupIntroduction
from psum.aggregator.relay.core.group_joins import GroupJoins
from psum.aggregator.relay.core.group_membership import GroupMembership
from psum.aggregator.relay.core.group_rounds import GroupRounds
from psum.aggregator.relay.core.host_job import HostJob
from psum.aggregator.relay.core.passed_admissions import PassedAdmissions
from psum.aggregator.relay.core.uplink import Uplink
from psum.aggregator.relay.core.wanted_values import WantedValues
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import ExcludedError, FaultError, WorkerLostError


class ElasticHostJob(HostJob, ElasticJob):
    """The state of one relay's group in an elastic job.

    Args:
        hello: The first worker's hello, which is elastic.
        limits: The time-outs and the limit on shards.
        job: What HostJob takes besides.
    """

    membership_type: ClassVar[type[Membership]] = GroupMembership
    rounds_type: ClassVar[type[JobRounds]] = GroupRounds
    uplink_type: ClassVar[type[Uplink]] = ElasticUplink

    members: GroupMembership
    rounds: GroupRounds
    uplink: ElasticUplink

    def __init__(self, hello: pb.Hello, limits: Limits, *, clock: Callable[[], float], **job: Any) -> None:
        self._is_over = False
        """Whether all ranks of the group are gone, and the owners are told so."""
        self._founder: Founder | None = None
        """The process with which the relay asks to join the owners' job, if its group has no member."""
        self._must_reopen = False
        """Whether the owners know the relay as one that stands for such a process alone."""
        self._is_learning = False
        """Whether a worker's hello is being read, so that not all is known yet that it says of the group."""
        super().__init__(hello, limits, clock=clock, **job)
        # While its streams to the owners are open, the owners must hear who is lost. Otherwise the group's job fails.
        self._abandon_after = math.inf
        self._values = WantedValues(self.uplink, self.members, self.keys)
        self._introduction = GroupIntroduction(
            self._identity, self.members, self.uplink, to_relay=self._to_relay, clock=self._clock
        )
        uplinks = len(self.uplink.addresses)
        self.joins: GroupJoins = GroupJoins(self.members, self._memory, limits, self.log, uplinks)
        """The processes that wait here to join."""
        self._passed_admissions = PassedAdmissions(self.members, self.joins, self.uplink)

    # Losses.

    def losses(self, now: float, member: int | None = None) -> list[pb.Loss]:
        """See Job. Those of the group are marked, for the next process of this relay."""
        return self._marked(super().losses(now, member))

    def join(self, hello: pb.Hello, peer: str, now: float) -> tuple[list[Action], FaultError | None]:
        """See Job. A group does not wait for ranks that were lost before this process was started."""
        before = [loss for loss in hello.losses if loss.in_group]
        if self._founder is not None:
            # Members have come back: it waits for them, as any other candidate.
            self._founder, self._must_reopen = None, True
        self._is_learning = True
        try:
            late = self._lose(self._too_late(hello, now), now)
            actions, refusal = super().join(hello, peer, now)
        finally:
            self._is_learning = False
        actions = [*late, *actions]
        # The end of its stream before may not have been noticed.
        self._values.forget(hello.rank)
        if refusal is None and self.failure is None and before:
            for loss in before:
                self.members.roster.lost_before(loss.rank)
            self._mark_told(actions)
            if self._to_relay:
                # Also those in whose places others were admitted elsewhere.
                self.uplink.losses.note(before, now)
            actions += self.rounds.settle(hello.rank)
        return [*actions, *self._proceed(), *self._tell_joins(now)], refusal

    def _too_late(self, hello: pb.Hello, now: float) -> list[Loss]:
        """The losses of processes that come back after the owners have been told of a group without them.

        Rounds may have been forwarded without them by now.
        """
        told = self._connecting and self._founder is None and not self._must_reopen
        if not hello.resuming or not told or self.failure is not None:
            return []
        generations = introduction.processes(hello)
        return [
            Loss(rank, group_texts.TOO_LATE, now, generation=generation, reason="not back")
            for rank, (_, generation) in generations
            if rank not in self.members.roster and self.members.loss(rank) is None
        ]

    def lost(self, rank: int, now: float, *, closed: bool = False) -> list[Action]:
        """See Job."""
        self._values.forget(rank)
        return super().lost(rank, now, closed=closed)

    def leave(self, rank: int, now: float) -> list[Action]:
        """See Job."""
        actions = super().leave(rank, now)
        return [*actions, *self._proceed(), *self._tell_joins(now)]

    def tick(self, now: float) -> list[Action]:
        """See Job. A relay that was started again does not wait for ever for ranks that it does not know."""
        self._look_at_owners(now)
        actions = super().tick(now)
        if self.failure is None and (unknown := self.members.give_up_unknown(now)):
            text = group_texts.given_up(self.name, unknown, self.members.worker_timeout)
            actions += [Warn(text, ()), *self._proceed(), *self._tell_joins(now)]
            for rank in self.members.roster.known[:1]:
                actions += self.rounds.settle(rank)
        return actions + self._values.ask()

    def heard(self, now: float) -> list[Action]:
        """See HostJob."""
        self._look_at_owners(now)
        return [*super().heard(now), *self._values.ask(), *self._let_founder_in(now)]

    def _look_at_owners(self, now: float) -> None:
        reaches_all = self.uplink.reaches_all if self.uplink.was_let_in else None
        self.members.reaches_all_owners(now, all_of_them=reaches_all)

    def unreachable(self, failure: FaultError, now: float) -> list[Action]:
        """See HostJob. An owner goes on without any rank of the group."""
        if self._is_over:
            return []
        if self._founder is not None:
            candidate = self._founder.candidate
            self._founder = None
            lost = WorkerLostError(str(failure), ranks=[candidate.hello.rank])
            return [Refuse(candidate, failure), *super().withdraw(candidate, now), *self._part(lost)]
        if isinstance(failure, ExcludedError):
            return self._exclude_all(failure, now)
        return super().unreachable(failure, now)

    # Joins.

    def candidates(self) -> list[pb.Candidate]:
        """See Job."""
        return self.joins.common()

    def wait(self, candidate: Candidate, now: float) -> tuple[list[Action], FaultError | None]:
        """See ElasticJob. The owners are told."""
        actions, refusal = super().wait(candidate, now)
        if refusal is None and not self.workers and self._founder is None and candidate.via is None:
            actions += self._found(candidate)
        return [*actions, *self._proceed(), *self._tell_joins(now)], refusal

    def withdraw(self, candidate: Candidate, now: float) -> list[Action]:
        """See ElasticJob."""
        actions = super().withdraw(candidate, now)
        if self._founder is not None and candidate is self._founder.candidate:
            self._founder = None
            actions += self._part(WorkerLostError(group_texts.GONE_BEFORE, ranks=[candidate.hello.rank]))
        return [*actions, *self._tell_joins(now)]

    def admit(self, rank: int, admission: pb.Admission, now: float) -> list[Action]:
        """See Job. The owners are told when the whole group has said so."""
        return [*super().admit(rank, admission, now), *self._tell_joins(now)]

    def _found(self, candidate: Candidate) -> list[Action]:
        """Asks to join the owners' job with a process alone: the group has no member."""
        self._founder = Founder(candidate)
        self._connecting = True
        self.uplink.title = introduction.title(self._identity, [self._founder.worker])
        return [ConnectUplinks()]

    def _let_founder_in(self, now: float) -> list[Action]:
        """Makes the founder a member, when all owners have let the relay in."""
        founder = self._founder
        if founder is None or not self.uplink.was_let_in:
            return []
        self._founder = None
        candidate, admission = founder.candidate, founder.admission
        self.members.found(admission)
        self.joins.candidates.remove(candidate)
        worker = self.members.welcome(candidate.hello, candidate.peer, now)
        self.log.note(now, EventKind.JOINED, admission.rank, admission.generation, str(worker))
        self._passed_admissions.note(admission)
        return [Admit(candidate), *self._tell_joins(now)]

    def _part(self, failure: FaultError) -> list[Action]:
        """Parts from the owners, which go on without the group."""
        self._is_over = True
        return [PartUplinks(pb.Goodbye(fault=failure.to_message()))]

    def _begin_generation(self, admission: Admission, now: float) -> list[Action]:
        """See ElasticJob. The group waits for the process only if it waits here, or waited at this relay before."""
        rank = admission.rank
        candidate = self.joins.candidates.of(rank)
        here = candidate is not None and candidate.hello.incarnation == admission.incarnation
        if here or admission.in_group:
            self.uplink.notes.stay(rank)
            self._left.take_back(rank)
            actions = super()._begin_generation(admission, now)
        else:
            self.members.admit_elsewhere(admission)
            self.rounds.forget_ranked_keys()
            actions = self.joins.admitted(admission, now)
        self.uplink.forget([key_id for key_id in self.uplink.keys if key_id not in self.keys])
        return actions

    def _decided(self, uplink: int, decision: pb.Decision, now: float) -> list[Action]:
        """Takes an owner's decision. A process that is one of the group by it, and is not here any more, is lost."""
        rank, incarnation = decision.rank, decision.incarnation
        candidate = self.joins.candidates.of(rank)
        is_here = candidate is not None and candidate.hello.incarnation == incarnation
        if is_here or decision.HasField("fault") or self.members.incarnation(rank) == incarnation:
            return self.joins.decide(uplink, decision, now)
        generation = decision.admission.generation
        return self._lose([Loss(rank, group_texts.GONE_BEFORE, now, generation=generation, reason="not come")], now)

    def _tell_joins(self, now: float) -> list[Action]:
        """Tells the owners who waits here, and whom the whole group has admitted."""
        if self._is_learning or self.failure is not None or self.ended or self._is_over:
            return []
        told = self.uplink.tell_candidates(self.joins.waiting(now))
        return [SendUplinks()] if self._passed_admissions.tell() or told else []

    # Values of broadcasts.

    def give_back(self, rank: int, entry: ShardRound, payload: memoryview) -> list[Action]:
        """See HostJob. For the current round it is a value in place of that of the root."""
        key = self.keys.get(entry.id)
        shard = None if key is None else key.shards.get(entry.shard)
        if key is not None and shard is not None and key.broadcast and entry.round == shard.round:
            self._values.answered(key.id, entry.shard)
            self.uplink.give_value(key.id, entry.shard, entry.round, payload)
            return [SendUplinks()]
        return super().give_back(rank, entry, payload)

    # The owners.

    def hello(self, uplink: int, resuming: bool) -> pb.Hello:
        """See HostJob. With the process of each rank that is left, and all that this relay knows of the others.

        Raises:
            WorkerLostError: There was only a process that has asked to join, and it has ended.
        """
        if self._founder is not None:
            return self._introduction.of_founder(self._founder.candidate.hello, self._founder.worker, uplink)
        # What this owner has decided about those who are not in the hello, it decides anew.
        self.joins.reopened(uplink)
        if not self.workers:
            raise WorkerLostError(group_texts.GONE_BEFORE)
        known = self._passed_admissions.known()
        return self._introduction.of_group(uplink, known, resuming=resuming)

    @property
    def over(self) -> bool:
        """See Job. A process that waits to join begins the group anew."""
        return super().over and self._founder is None

    @property
    def may_connect(self) -> bool:
        """See HostJob. Only the owners can let in those who wait here to join."""
        roster, candidates = self.members.roster, self.joins.candidates
        return not roster.unknown and all(candidates.of(rank) is not None for rank in roster.not_joined())

    @property
    def leaving(self) -> bool:
        """See HostJob. Ranks that are lost do not come back."""
        workers = self.workers.items()
        return self.complete and all(self._is_gone(*each) for each in workers) and any(each.left for _, each in workers)

    def _takes_in(self, hello: pb.Hello, peer: str) -> bool:
        """See HostJob. An elastic job goes on without ranks that took part, and the process may join it."""
        return self.members.disagreement(hello, peer) is None

    def _is_gone(self, member: int, worker: Worker) -> bool:
        return worker.left or member in self.members.roster.gone

    def _contributors(self, key: Key, index: int) -> int:
        return self.rounds.ranks_in(key, index)

    def _answered(self, key: Key, index: int, contributors: int) -> None:
        self.rounds.answered(key, index, contributors)

    def _told(self, event: Event, now: float) -> list[Action]:
        match event:
            case LossesTold(losses):
                return self._lose(reported(losses, now), now)
            case CandidatesTold(uplink, candidates):
                return self.joins.report(uplink, candidates)
            case Decided(uplink, decision):
                return [*self._decided(uplink, decision, now), *self._tell_joins(now)]
            case Admitted(admission):
                if self._founder is not None:
                    self._founder.welcomed(admission)
                return []
            case UplinkReopened(uplink):
                return self.joins.report(uplink, ())
            case _:
                return super()._told(event, now)

    def _faulted(self, fault: FaultError, now: float) -> list[Action]:
        if isinstance(fault, ExcludedError) and fault.key is None:
            return self._exclude_all(fault, now)
        return super()._faulted(fault, now)

    def _declaring(self, key: Key) -> set[int]:
        declaring = super()._declaring(key)
        if not key.ranks:
            return declaring
        roster = self.members.roster
        return {member for member in declaring if not set(key.ranks).isdisjoint(roster.ranks(member))}

    def _awaits_declaration(self, forwarded: ForwardedKey) -> bool:
        """See HostJob. A newcomer declares a key only when it uses the key for the first time."""
        missing, admissions = self._declaring(forwarded.key) - forwarded.declared_by, self.members.admissions
        return not missing or any(not admissions.keys() >= {*self.members.roster.living(member)} for member in missing)

    def _lose(self, losses: Iterable[Loss], now: float, **how: Any) -> list[Action]:
        """See ElasticJob. The owners are told before anything else that the group sends."""
        losses = list(losses)
        before = set(self.members.roster.lost)
        actions = super()._lose(losses, now, **how)
        if self.failure is not None:
            return actions
        told = [loss.to_message(now) for loss in self.members.present_losses()]
        # The ranks of this group are of the next relay's group too.
        self.uplink.losses.note(self._marked(told) if self._to_relay else told, now)
        gone = self.members.roster.lost - before
        self._mark_told(actions)
        for member in set(self.members.members_of(gone)) & self.members.roster.gone:
            for forwarded in self.uplink.keys.values():
                forwarded.declared_by.discard(member)
            actions += self._syncs.settle(member)
        for key in [key for key in self.keys.values() if key.ranks and key.failure is None and not key.roster.known]:
            self.uplink.desert(key.id)
            actions += self.rounds.fail_key(key, group_texts.deserted_key(self.name, key))
        if self._is_over:
            return actions
        actions += [SendUplinks(), *self._proceed(), *self._asked.ask(), *self._values.ask(), *self._tell_left()]
        return actions + self._tell_joins(now)

    def _marked(self, losses: Sequence[pb.Loss]) -> list[pb.Loss]:
        """Marks the losses of this group among some."""
        for loss in losses:
            loss.in_group = self.members.roster.begun_with(loss.rank)
        return list(losses)

    def _mark_told(self, actions: Iterable[Action]) -> None:
        """Marks the losses of this group that workers are about to be told."""
        for action in actions:
            if isinstance(action, TellLosses):
                self._marked(action.losses)

    def _warn_of(self, loss: Loss, others: tuple[int, ...]) -> list[Action]:
        if loss.rank not in self.members.roster:
            return []
        return [Warn(group_texts.lost(self.name, loss, self.members.roster), ())]

    def _none_left(self, now: float) -> list[Action] | None:
        """Parts from the owners if no member is left in the group, the last one because it is lost.

        Those that wait here to join, also if they were admitted, begin the group anew.
        """
        roster = self.members.roster
        if roster.unknown or any(roster.member(rank) is not None for rank in roster.known):
            return None
        if self._is_over or not self._connecting or self._leaving_told:
            return []
        # Owners know only those that the relay has let in. Others may have been admitted elsewhere in their places.
        lost = [rank for rank in roster.lost if roster.member(rank) is not None and self.members.loss(rank) is not None]
        return self._part(group_texts.all_lost(self.name, lost, self.uplink.title)) if lost else []

    def _exclude_all(self, fault: FaultError, now: float) -> list[Action]:
        """Excludes all ranks of the group: an owner goes on without them."""
        text = str(fault)
        return self._lose(
            [Loss(rank, text, now, generation=self.members.generation(rank)) for rank in self.members.roster.known], now
        )

    def _begin_again(self) -> list[Action]:
        """See ElasticJob. The owners are told of the keys again."""
        actions = super()._begin_again()
        self._asked.clear()
        self._values.clear()
        self.uplink.forget_keys()
        if not self._connecting:
            return actions
        return [*actions, *self._reopen()]

    def _reopen(self) -> list[Action]:
        """Has the streams to the owners opened anew."""
        self.uplink.await_all()
        return [ReopenUplinks()]

    def _proceed(self) -> list[Action]:
        """Joins the owners' job, and tells them of keys, as soon as nothing is waited for that the group lacks."""
        if self._is_learning or not self.may_connect or not self.members.roster.known:
            return []
        if self.failure is not None or self.ended:
            return []
        ready = self._declare_ready(self.uplink.keys.values())
        if not self._must_reopen:
            return [*self._connect(), *ready]
        self._must_reopen = False
        return [*self._reopen(), *ready]
