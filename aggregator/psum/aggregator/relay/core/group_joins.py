"""Joining an elastic job through a relay: who waits here, what the owners report, and when a process is let in.

The owners decide. The relay tells them who waits here, and its workers who waits at all owners: a worker with a relay
has one aggregator, and names a candidate that its aggregator reports. When every owner has decided that a process is
one of the group, the relay lets it in.
"""

from psum.aggregator.core.actions import Action, TellCandidates
from psum.aggregator.core.admissions import Admission
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.joins import Joins, refuse
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.membership_log import MembershipLog
from psum.aggregator.core.memory import JobMemory
from psum.aggregator.relay.core.group_membership import GroupMembership
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError


class GroupJoins(Joins):
    """See Joins.

    Args:
        members: The group.
        memory: The memory of its job.
        limits: How long a candidate may wait.
        log: Where events are noted.
        uplinks: How many aggregators the relay forwards to. They are named by their index.
    """

    def __init__(
        self, members: GroupMembership, memory: JobMemory, limits: Limits, log: MembershipLog, uplinks: int
    ) -> None:
        super().__init__(members, memory, limits, log)
        self._reported: list[dict[tuple[int, int], pb.Candidate]] = [{} for _ in range(uplinks)]
        """The candidates that each aggregator reports, by rank and incarnation."""
        self._decided: list[set[tuple[int, int]]] = [set() for _ in range(uplinks)]
        """The processes of which each aggregator has decided that they are of the group."""
        self._told: list[tuple[int, int]] = []
        """The candidates that the workers were told of last."""

    def waiting(self, now: float) -> list[pb.Candidate]:
        """All that wait here, as the owners are told."""
        return [
            pb.Candidate(
                rank=each.hello.rank,
                incarnation=each.hello.incarnation,
                worker=each.hello.worker,
                age_seconds=each.hello.age_seconds + now - each.since,
            )
            for each in self.candidates
        ]

    def common(self) -> list[pb.Candidate]:
        """The candidates that all aggregators report, as the workers are told, by rank."""
        first, *others = self._reported
        here = {_process(each) for each in self.candidates}
        listed = []
        for process in sorted(process for process in first if all(process in other for other in others)):
            message = pb.Candidate()
            message.CopyFrom(first[process])
            message.in_group = process in here
            listed.append(message)
        return listed

    def report(self, uplink: int, candidates: tuple[pb.Candidate, ...]) -> list[Action]:
        """Takes what an aggregator reports: all that wait there, or nothing because it has another stream."""
        self._reported[uplink] = {(each.rank, each.incarnation): each for each in candidates}
        return self.tell()

    def reopened(self, uplink: int) -> None:
        """An aggregator is about to have another stream, on which it decides again about those who wait here."""
        self._decided[uplink].clear()

    def decide(self, uplink: int, decision: pb.Decision, now: float) -> list[Action]:
        """Takes what an aggregator has decided about a process that waits here."""
        candidate = self.candidates.of(decision.rank)
        if candidate is None or candidate.hello.incarnation != decision.incarnation:
            return []
        if decision.HasField("fault"):
            return [refuse(candidate, FaultError.from_message(decision.fault)), *self.withdraw(candidate, now)]
        self._decided[uplink].add(_process(candidate))
        return self.welcome(now)

    def tell(self) -> list[Action]:
        """See Joins. The workers are told of those that all aggregators report."""
        candidates = self.common()
        listed = [(each.rank, each.incarnation) for each in candidates]
        if listed == self._told:
            return []
        # Those that are away are told with their welcome.
        self._told = listed
        ranks = tuple(member for member in self._members.connected() if not self._members.is_lost(member))
        return [TellCandidates(candidates, ranks)] if ranks else []

    def due(self, now: float) -> list[Action]:
        """See Joins. The owners warn and refuse."""
        return []

    def _all_have_said(self, admission: Admission) -> bool:
        """See Joins. Every aggregator has decided that the process is one of the group."""
        return all((admission.rank, admission.incarnation) in decided for decided in self._decided)


def _process(candidate: Candidate) -> tuple[int, int]:
    return candidate.hello.rank, candidate.hello.incarnation
