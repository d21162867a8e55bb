"""What a relay's hello means for the ranks of its group, in an elastic job.

A relay's hello is the truth about its group: a rank that is missing in it is gone. A relay is recognised by the
processes behind it, rank by rank, because its group changes, and because a new relay process knows nothing else.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from psum.aggregator.core.admissions import Admission
from psum.aggregator.core.elastic_roster import ElasticRoster
from psum.aggregator.core.losses import Losses
from psum.aggregator.core.worker import Process, Worker, processes_of
from psum.v1 import aggregator_pb2 as pb


@dataclasses.dataclass(slots=True)
class Introduction:
    """What follows from a relay's hello.

    Attributes:
        member: The member that says hello; None: a new one.
        stays: The processes that this member stood for before.
        joins: The processes that it stands for from now on.
        out: The processes that are lost, or in whose place others are. The relay has not heard of that.
        replaced: The ranks for which another process has come, although the one before has contributed.
        missing: The ranks that the member stood for, and that the relay goes on without.
        holders: Other members that stand for some of its ranks.
        departed: Members that had left according to others, and that come back with this relay.
    """

    member: int | None = None
    stays: dict[int, Process] = dataclasses.field(default_factory=dict)
    joins: dict[int, Process] = dataclasses.field(default_factory=dict)
    out: dict[int, Process] = dataclasses.field(default_factory=dict)
    replaced: list[int] = dataclasses.field(default_factory=list)
    missing: list[int] = dataclasses.field(default_factory=list)
    holders: list[Worker] = dataclasses.field(default_factory=list)
    departed: list[int] = dataclasses.field(default_factory=list)


class RelayMembers:
    """Compares relays' hellos with the members of one job. It changes nothing.

    Args:
        roster: The ranks of the job.
        workers: The job's members; a view of the membership's dictionary.
        losses: The losses that are known.
        admissions: The last admission of each rank that has one; a view of the membership's dictionary.
    """

    def __init__(
        self,
        roster: ElasticRoster,
        workers: Mapping[int, Worker],
        losses: Losses,
        admissions: Mapping[int, Admission],
    ) -> None:
        self._roster = roster
        self._workers = workers
        self._losses = losses
        self._admissions = admissions

    def find(self, hello: pb.Hello) -> int | None:
        """The member that a relay's hello is from: the relay that stands for one of its processes. None: a new one."""
        for rank, process in processes_of(hello).items():
            member = self._roster.member(rank)
            if member is not None and self._workers[member].processes.get(rank) == process:
                return member
        return self._untried(hello)

    def compare(self, hello: pb.Hello, generations: Mapping[int, int], departed: Sequence[int]) -> Introduction:
        """Compares a relay's hello with what is known.

        Args:
            hello: The hello.
            generations: The generation of each of its ranks, as it is known here.
            departed: The members that have left according to others, and have not come here.
        """
        found = Introduction(self.find(hello))
        before = {} if found.member is None else self._workers[found.member].processes
        contributed = found.member is not None and self._workers[found.member].contributed
        for rank, process in processes_of(hello).items():
            holder = self._roster.member(rank)
            if self._is_out(rank, process, generations[rank]):
                found.out[rank] = process
            elif holder is not None and holder == found.member:
                if before.get(rank) == process:
                    found.stays[rank] = process
                elif not contributed:
                    found.joins[rank] = process
                else:
                    found.replaced.append(rank)
                    found.out[rank] = process
            elif holder is None:
                found.joins[rank] = process
            elif holder in departed and hello.resuming:
                found.joins[rank] = process
                if holder not in found.departed:
                    found.departed.append(holder)
            elif (worker := self._workers[holder]) not in found.holders:
                found.holders.append(worker)
        if found.member is not None:
            there = {*found.stays, *found.joins, *found.out}
            found.missing = [rank for rank in self._roster.living(found.member) if rank not in there]
        return found

    def _is_out(self, rank: int, process: Process, generation: int) -> bool:
        """Whether a process is lost, or another one is in its place."""
        incarnation, number = process
        loss, admission = self._losses.of(rank), self._admissions.get(rank)
        if number != generation or (loss is not None and loss.generation >= number):
            return True
        return admission is not None and admission.generation == number and admission.incarnation != incarnation

    def _untried(self, hello: pb.Hello) -> int | None:
        """The relay that stood for these ranks, had taken part in nothing and vanished. Another one takes its place."""
        members = {self._roster.member(rank) for rank in hello.ranks} - {None}
        if len(members) != 1:
            return None
        [member] = members
        assert member is not None
        worker = self._workers[member]
        untried = worker.is_relay and not (worker.connected or worker.left or worker.contributed or hello.resuming)
        return member if untried and set(worker.ranks) <= set(hello.ranks) else None
