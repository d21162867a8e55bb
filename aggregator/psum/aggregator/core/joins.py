"""Joining an elastic job: which processes wait, which of them is refused, and when an admitted one becomes a member."""

from collections.abc import Iterable

from psum.aggregator.core import elastic_texts
from psum.aggregator.core.actions import Action, Admit, Decide, Refuse, TellCandidates, Warn
from psum.aggregator.core.admissions import Admission
from psum.aggregator.core.candidates import Candidate, Candidates, relayed
from psum.aggregator.core.elastic_membership import ElasticMembership
from psum.aggregator.core.key import Key
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.losses import Loss
from psum.aggregator.core.membership_log import EventKind, MembershipLog
from psum.aggregator.core.memory import JobMemory
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError


class Joins:
    """The processes that wait to join one elastic job.

    A candidate waits until the members admit it, and after that until all of them have said so. Only then has every
    member the results of all rounds before, so that nobody ever asks the newcomer for one of them. A candidate may wait
    at a relay, which is told what becomes of it. The relay lets it in when all aggregators have decided so.

    Args:
        members: The job's members.
        memory: The job's memory.
        limits: How long a candidate may wait.
        log: Where events are noted.
    """

    def __init__(self, members: ElasticMembership, memory: JobMemory, limits: Limits, log: MembershipLog) -> None:
        self.candidates = Candidates()
        self._closed: dict[int, tuple[int, float]] = {}
        """The last candidate of each rank whose stream has ended before it was admitted: its incarnation, and when."""
        self._members = members
        self._memory = memory
        self._timeout = limits.round_timeout
        self._warn_after = limits.warn_after
        self._log = log
        self._name = members.first.job

    def listed(self) -> list[Candidate]:
        """The candidates that the members may admit: all that are not admitted yet."""
        return [candidate for candidate in self.candidates if self._admission(candidate) is None]

    def tell(self) -> list[Action]:
        """Tells the members who waits."""
        messages = [candidate.to_message() for candidate in self.listed()]
        ranks = tuple(member for member in self._members.connected() if not self._members.is_lost(member))
        return [TellCandidates(messages, ranks)] if ranks else []

    def refusal(self, candidate: Candidate, keys: Iterable[Key]) -> FaultError | None:
        """Why a process cannot wait; None if it can."""
        hello, peer, members = candidate.hello, candidate.peer, self._members
        if (refusal := members.disagreement(hello, peer)) is not None:
            return refusal
        admission = members.admissions.get(hello.rank)
        lost = {members.incarnation(hello.rank), 0 if admission is None else admission.incarnation}
        if members.loss(hello.rank) is not None and hello.incarnation in lost:
            return elastic_texts.already_lost(self._name, hello, peer)
        waiting = self.candidates.of(hello.rank)
        if waiting is not None and waiting.hello.incarnation != hello.incarnation:
            return elastic_texts.taken_candidate(self._name, waiting, hello, peer)
        # Behind a relay it needs no memory here.
        if candidate.via is None and (lack := self._memory.lack_for_another(keys)) > 0:
            return elastic_texts.no_room(self._name, hello, peer, lack, self._memory.budget)
        return None

    def add(self, candidate: Candidate, now: float) -> list[Action]:
        """Lets a process wait."""
        hello = candidate.hello
        self._closed.pop(hello.rank, None)
        actions: list[Action] = []
        if (replaced := self.candidates.add(candidate)) is not None:
            actions.append(refuse(replaced, elastic_texts.replaced_candidate(self._name, hello, candidate.peer)))
        if self._admission(candidate) is not None:
            self._members.await_newcomer(hello.rank, now, here=True)
            return actions
        self._log.note(now, EventKind.WAITS, hello.rank, self._next_generation(hello.rank), str(candidate))
        return actions + self.tell()

    def at(self, member: int) -> list[Candidate]:
        """Those that wait at a relay."""
        return [candidate for candidate in self.candidates if candidate.via == member]

    def told_at(self, member: int, told: Iterable[pb.Candidate], now: float) -> tuple[list[Action], list[Candidate]]:
        """Takes which processes wait at a relay: all of them. Those that do not wait there any more are withdrawn.

        Returns:
            The actions that follow, and those that are new. They do not wait here yet.
        """
        relay = self._members.workers[member]
        waiting = {(each.hello.rank, each.hello.incarnation): each for each in self.at(member)}
        said = {(each.rank, each.incarnation): each for each in told}
        actions: list[Action] = []
        for process in waiting.keys() - said.keys():
            actions += self.withdraw(waiting[process], now)
        new = sorted(said.keys() - waiting.keys())
        return actions, [relayed(said[process], relay.hello, relay.peer, member, now) for process in new]

    def cut_off(self, member: int, now: float) -> list[Action]:
        """Withdraws those that wait at a relay whose stream has ended."""
        actions: list[Action] = []
        for candidate in self.at(member):
            actions += self.withdraw(candidate, now, cut_off=True)
        return actions

    def withdraw(
        self, candidate: Candidate, now: float, *, cut_off: bool = False, deserted: bool = False
    ) -> list[Action]:
        """Notes that a candidate waits here no more.

        Args:
            candidate: The candidate.
            now: The time.
            cut_off: Whether the stream of the relay has ended at which it waits, and the relay may come back.
            deserted: Whether that relay stands for nobody any more. If the candidate lives, it comes by another way.
        """
        if not self.candidates.remove(candidate):
            return []
        rank = candidate.hello.rank
        self._log.note(now, EventKind.WITHDRAWN, rank, self._next_generation(rank), str(candidate))
        relayed = candidate.via is not None and not deserted
        if self._admission(candidate) is not None:
            self._members.await_newcomer(rank, now, here=False, relayed=relayed, cut_off=cut_off)
            return []
        if not relayed:
            # The members may have agreed already to admit it.
            self._closed[rank] = candidate.hello.incarnation, now
        return self.tell()

    def desert(self, relay: int, now: float) -> list[Action]:
        """Notes that all ranks of a relay are gone. Those that wait at it may come by another way."""
        return [action for each in self.at(relay) for action in self.withdraw(each, now, deserted=True)]

    def admitted(self, admission: Admission, now: float) -> list[Action]:
        """Notes that the members have admitted a process, which may wait here or not."""
        candidate = self.candidates.of(admission.rank)
        self._log.note(
            now,
            EventKind.ADMITTED,
            admission.rank,
            admission.generation,
            "a process" if candidate is None else str(candidate),
        )
        incarnation, closed_at = self._closed.pop(admission.rank, (None, now))
        if incarnation == admission.incarnation:
            self._members.await_newcomer(admission.rank, closed_at, here=False)
        if candidate is None:
            return []
        if self._admission(candidate) is not None:
            self._members.await_newcomer(admission.rank, now, here=True)
        # Otherwise another process of its rank was admitted, and it goes on waiting.
        return self.tell()

    def lost(self, loss: Loss, fault: FaultError) -> list[Action]:
        """Refuses the process of a loss if it waits for its welcome."""
        candidate = self.candidates.of(loss.rank)
        if candidate is None or (admission := self._admission(candidate)) is None:
            return []
        if admission.generation > loss.generation:
            return []
        self.candidates.remove(candidate)
        return [refuse(candidate, fault)]

    def welcome(self, now: float) -> list[Action]:
        """Makes those members whose admission all members have said."""
        actions: list[Action] = []
        for candidate in list(self.candidates):
            admission, rank = self._admission(candidate), candidate.hello.rank
            if admission is None:
                continue
            # A process that has joined already did not receive its welcome.
            joined = self._members.roster.member(rank) is not None
            if not joined and not self._all_have_said(admission):
                continue
            self.candidates.remove(candidate)
            if candidate.via is not None:
                if self._members.let_in(candidate.via, rank):
                    self._log.note(now, EventKind.JOINED, rank, admission.generation, str(candidate))
                actions.append(_decide(candidate, candidate.via, admission=admission.to_message()))
                continue
            worker = self._members.welcome(candidate.hello, candidate.peer, now)
            self._log.note(now, EventKind.JOINED, rank, admission.generation, str(worker))
            actions.append(Admit(candidate))
        return actions

    def due(self, now: float) -> list[Action]:
        """Warns of candidates that wait for their admission for long, and refuses those that have waited too long."""
        actions: list[Action] = []
        for candidate in self.listed():
            waited = now - candidate.since
            if waited > self._timeout:
                actions.append(refuse(candidate, self._in_vain(candidate)))
                actions += self.withdraw(candidate, now)
            elif waited > self._warn_after and not candidate.warned:
                candidate.warned = True
                roster = self._members.roster
                text = elastic_texts.waits_long(self._name, candidate, roster, self._timeout, now)
                actions.append(Warn(text, self._members.connected()))
        return actions

    def refuse_all(self, fault: FaultError) -> list[Action]:
        """Refuses everybody, because the job has failed."""
        refused = list(self.candidates)
        self.candidates = Candidates()
        return [refuse(candidate, fault) for candidate in refused]

    def _all_have_said(self, admission: Admission) -> bool:
        """Whether all members have admitted a process, so that they have all results of the rounds before."""
        roster = self._members.roster
        return all(roster.member(rank) in admission.said for rank in roster.known if rank != admission.rank)

    def _admission(self, candidate: Candidate) -> Admission | None:
        """The admission of a candidate, None if it waits for one."""
        admission = self._members.admissions.get(candidate.hello.rank)
        return None if admission is None or admission.incarnation != candidate.hello.incarnation else admission

    def _next_generation(self, rank: int) -> int:
        return self._members.generation(rank) + 1

    def _in_vain(self, candidate: Candidate) -> FaultError:
        roster, holder = self._members.roster, self._members.holder(candidate.hello.rank)
        if roster.too_few:
            why = elastic_texts.below_minimum(roster)
        elif holder is not None and not roster.is_gone(candidate.hello.rank):
            why = elastic_texts.held(holder)
        else:
            why = elastic_texts.NOT_ADMITTED
        return elastic_texts.waited_in_vain(self._name, candidate, why, self._timeout)


def refuse(candidate: Candidate, fault: FaultError) -> Action:
    """Refuses a candidate that waits here or at a relay."""
    if candidate.via is None:
        return Refuse(candidate, fault)
    return _decide(candidate, candidate.via, fault=fault.to_message())


def _decide(
    candidate: Candidate, relay: int, *, fault: pb.Fault | None = None, admission: pb.Admission | None = None
) -> Decide:
    """Tells a relay what becomes of a candidate that waits at it."""
    hello = candidate.hello
    return Decide(relay, pb.Decision(rank=hello.rank, incarnation=hello.incarnation, fault=fault, admission=admission))
