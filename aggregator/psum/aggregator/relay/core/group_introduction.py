"""How a relay introduces its group to the owners of an elastic job: rank by rank, and with all that it knows of others.

A relay's hello is the truth about its group. An owner that was started again learns from it, as from that of a worker.
"""

from collections.abc import Callable, Iterable, Set

from psum.aggregator.core.admissions import Admission
from psum.aggregator.core.worker import Worker
from psum.aggregator.relay.core import introduction
from psum.aggregator.relay.core.elastic_uplink import ElasticUplink
from psum.aggregator.relay.core.group_membership import GroupMembership
from psum.aggregator.relay.core.introduction import Identity
from psum.v1 import aggregator_pb2 as pb


class GroupIntroduction:
    """Makes the hellos of one relay's group.

    Args:
        identity: The process that relays.
        members: The group.
        uplink: What is sent to the owners.
        to_relay: Whether the only uplink leads to another relay.
        clock: The time now.
    """

    def __init__(
        self,
        identity: Identity,
        members: GroupMembership,
        uplink: ElasticUplink,
        *,
        to_relay: bool,
        clock: Callable[[], float],
    ) -> None:
        self._identity = identity
        self._members = members
        self._uplink = uplink
        self._to_relay = to_relay
        self._clock = clock

    def of_group(self, uplink: int, admissions: Iterable[Admission], *, resuming: bool) -> pb.Hello:
        """The hello for one uplink, with the process of each rank that is left.

        Args:
            uplink: The index of the uplink.
            admissions: Those that the owner may know from this relay.
            resuming: Whether this process was in the job before.
        """
        members, roster, left = self._members, self._members.roster, self._uplink.notes.left
        departed = {rank for member in members.departed for rank in roster.ranks(member)}
        gone = roster.lost | left | departed
        self._uplink.notes.in_hello(uplink)
        everybody = list(members.workers.values())
        workers = [worker for worker in everybody if not gone.issuperset(worker.ranks)]
        if not workers:
            # All that is left is to tell the owners so.
            workers = [each for each in everybody if not left.issuperset(each.ranks)]
            workers, gone = (workers, left) if workers else (everybody, set())
        said = introduction.introduction(
            self._identity,
            workers,
            uplink,
            self._clock(),
            resuming=resuming or self._uplink.was_let_in or any(worker.hello.resuming for worker in workers),
            departures=[*self._uplink.departures_for(uplink), *self._departures(left | departed)],
        )
        here = {
            rank: process
            for worker in workers
            for rank, process in introduction.processes(worker.hello)
            if rank not in gone and roster.member(rank) == worker.hello.rank
        }
        introduction.be_elastic(said, members.first.elastic, here)
        said.losses.extend(self._losses())
        said.admissions.extend(self._uplink.admission_for(uplink, admission) for admission in admissions)
        return said

    def of_founder(self, hello: pb.Hello, worker: Worker, uplink: int) -> pb.Hello:
        """The hello of a relay whose group has no member but a process that asks to join.

        Args:
            hello: What the process has said.
            worker: The process as the only member of the group.
            uplink: The index of the uplink.
        """
        said = introduction.introduction(self._identity, [worker], uplink, self._clock(), resuming=False)
        introduction.be_elastic(said, self._members.first.elastic, dict(introduction.processes(worker.hello)))
        # For an owner it is a candidate as others.
        said.joining, said.incarnation = True, hello.incarnation
        return said

    def _departures(self, left: Set[int]) -> list[pb.Departure]:
        """The ranks of the group that have left, for an owner that was started again."""
        return [
            pb.Departure(ranks=[rank], incarnation=incarnation)
            for worker in self._members.workers.values()
            for rank, (incarnation, _) in introduction.processes(worker.hello)
            if rank in left
        ]

    def _losses(self) -> list[pb.Loss]:
        """The losses that this relay tells, as a worker does."""
        now = self._clock()
        if not self._to_relay:
            return [loss.to_message(now) for loss in self._members.present_losses()]
        admitted = {rank: admission.to_message() for rank, admission in self._members.admissions.items()}
        return self._uplink.losses.all(now, admitted)
