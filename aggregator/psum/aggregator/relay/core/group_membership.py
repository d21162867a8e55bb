"""The members of a relay's group in an elastic job."""

from collections.abc import Collection

from psum.aggregator.core.admissions import Admission
from psum.aggregator.core.elastic_membership import ElasticMembership
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.membership import Membership
from psum.aggregator.core.silence import Silence
from psum.aggregator.relay.core.group_roster import GroupRoster
from psum.v1 import aggregator_pb2 as pb


class GroupMembership(ElasticMembership):
    """See ElasticMembership. The losses of all ranks of the job are known here, and the roster has those of the group.

    The relay can tell that a worker is gone, from being cut off itself, by its streams to the owners.

    Args:
        hello: The first worker's hello, which is elastic.
        limits: How long the place of a vanished worker is kept.
        before: See Membership.

    Attributes:
        reaches_owners: Whether there is a stream to each of the aggregators that the relay forwards to; None before
            there was any.
    """

    roster: GroupRoster

    def __init__(self, hello: pb.Hello, limits: Limits, before: "Membership | None" = None) -> None:
        self.reaches_owners: bool | None = None
        super().__init__(hello, limits, before)
        # Its streams to the owners show that its network works, also if all its workers are silent.
        self._silence = Silence(limits.worker_timeout, own_network_works=True)

    def _has_room(self, hello: pb.Hello) -> bool:
        """See Membership. A worker that comes back to a relay that was started again belongs to a group that may have
        grown."""
        return hello.resuming or super()._has_room(hello)

    def _make_roster(self) -> GroupRoster:
        return GroupRoster(self.first.group_size, self._is_newcomer)

    def _is_newcomer(self, rank: int) -> bool:
        return rank in self.admissions or rank >= self.first.num_workers

    def reaches_all_owners(self, now: float, *, all_of_them: bool | None) -> None:
        """Notes whether there is a stream to each aggregator that the relay forwards to; None: there never was one."""
        self.reaches_owners = all_of_them
        self._look(now)

    def learn_departures(self, hello: pb.Hello, peer: str, now: float) -> None:
        """See Membership. A rank that has left, and in whose place the next process is by now, was of the group too."""
        admissions = {each.rank: (each.incarnation, each.generation) for each in hello.admissions}
        admissions |= {rank: (each.incarnation, each.generation) for rank, each in self.admissions.items()}
        for each in (each for each in hello.departures if not each.level):
            for rank in each.ranks:
                incarnation, generation = admissions.get(rank, (each.incarnation, 0))
                # Of later ones it is not known whether the group has begun with them.
                if incarnation != each.incarnation and generation == 1:
                    self.roster.left_before(rank)
        super().learn_departures(hello, peer, now)

    def give_up_unknown(self, now: float) -> int:
        """How many ranks have not come back in time to this process, which was started again, and are not known.

        They are waited for no more. The owners say which they are.
        """
        unknown = self.roster.unknown
        if not unknown or self._resumed_at is None or now - self._resumed_at <= self._group_within:
            return 0
        self.roster.give_up()
        return unknown

    @property
    def _back_within(self) -> float:
        """See ElasticMembership. The owners wait for longer."""
        return self._group_within

    def admit_elsewhere(self, admission: Admission) -> None:
        """Notes that the next generation of a rank begins in another group. See `admit`."""
        if admission.rounds:
            for earlier in self.admissions.values():
                # All members are past the step boundary of earlier admissions.
                earlier.rounds = {}
        self.admissions[admission.rank] = admission
        self._replaced.pop(admission.rank, None)

    def found(self, admission: Admission) -> None:
        """Notes that the process of an admission is the first one of the group."""
        self.admissions[admission.rank] = admission
        self.roster.found()

    def said_by_all(self, admission: Admission, waiting: Collection[int]) -> bool:
        """Whether all ranks of the group that are left have said an admission. Only then may the owners be told.

        Ranks that have not come back to a relay that was started again have not said it either.

        Args:
            admission: The admission.
            waiting: The ranks of processes that wait here, and have nothing to say yet.
        """
        roster = self.roster
        saying = (rank for rank in roster.known if rank != admission.rank)
        return not roster.unknown and all(
            roster.member(rank) in admission.said or self._is_waiting(rank, waiting) for rank in saying
        )

    def _is_waiting(self, rank: int, waiting: Collection[int]) -> bool:
        return rank in waiting and self.roster.member(rank) is None

    def _look(self, now: float) -> None:
        self._pass_time(now)
        self._view.note(bool(self.reaches_owners), now)

    def _may_lose_absent(self, seconds: float, now: float) -> bool:
        """See ElasticMembership. A relay that was started again connects only without those who do not come."""
        return self.reaches_owners is None or super()._may_lose_absent(seconds, now)
