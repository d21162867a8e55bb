"""The ranks of an elastic job as this aggregator knows them: which process of each is the last one, and who is lost."""

from collections.abc import Iterable, Sequence

from psum.aggregator.core.admissions import Admission
from psum.aggregator.core.elastic_roster import ElasticRoster
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.losses import Loss, Losses
from psum.aggregator.core.membership import Membership
from psum.aggregator.core.worker import Process, Worker
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb

#: The generation of a rank that never had a process.
NEVER_THERE = -1


class ElasticRanks(Membership):
    """See Membership. Losses and admissions are about ranks, also about those behind relays.

    A rank may have several processes, one after the other. They are numbered by their generation: how many processes of
    the rank were members before. A loss is about one generation. An admission begins the next one.

    `workers` has members, by their numbers in the roster.

    Args:
        hello: The first worker's hello, which is elastic.
        limits: How long the place of a vanished worker is kept.
        before: See Membership.
    """

    roster: ElasticRoster

    def __init__(self, hello: pb.Hello, limits: Limits, before: "Membership | None" = None) -> None:
        self.losses = Losses()
        """The last loss of each rank. It may be of an earlier generation than the present one."""
        self.admissions: dict[int, Admission] = {}
        """The last admission of each rank that has one."""
        self._deadlines: dict[int, float] = {}
        """When ranks are lost that were admitted and whose processes are not here."""
        self._told_back: dict[int, float] = {}
        """Since when this process, which was started again, knows of some of these: members have told in a hello."""
        self._replaced: dict[int, str] = {}
        """Ranks for which another process has come, or whose relay goes on without them, and why they are lost."""
        self._decided: set[int] = set()
        """The newcomers that were let in through a relay, which has not listed them in a hello yet."""
        self._lost_processes: dict[int, Process] = {}
        """The last process of each rank that was lost behind a relay."""
        super().__init__(hello, limits, before)
        for rank in self._left_before:
            self.roster.leave(rank)

    def _make_roster(self) -> ElasticRoster:
        return ElasticRoster(self.first.num_workers, self.first.elastic.min)

    def generation(self, rank: int) -> int:
        """The generation of the last process of a rank that is known here; NEVER_THERE if the rank never had one."""
        admission, loss = self.admissions.get(rank), self.losses.of(rank)
        known = NEVER_THERE if rank >= self.first.num_workers else 0
        if admission is not None:
            known = max(known, admission.generation)
        return known if loss is None else max(known, loss.generation)

    def loss(self, rank: int) -> Loss | None:
        """The loss of a rank's last process; None if that is not lost."""
        loss = self.losses.of(rank)
        return None if loss is None or loss.generation < self.generation(rank) else loss

    def present_losses(self) -> list[Loss]:
        """The losses of those ranks whose last process is lost."""
        return [loss for loss in self.losses if self.loss(loss.rank) is not None]

    def holder(self, rank: int) -> Worker | None:
        """The member that stands for a rank; None if the rank has not joined."""
        member = self.roster.member(rank)
        return self.workers.get(rank if member is None else member)

    def members_of(self, ranks: Iterable[int]) -> list[int]:
        """The members that stand for some ranks; the rank itself if it has not joined."""
        found = ((rank, self.roster.member(rank)) for rank in ranks)
        return list(dict.fromkeys(rank if member is None else member for rank, member in found))

    def incarnation(self, rank: int) -> int:
        """The incarnation of a rank's process; 0 if none is here."""
        if (holder := self.holder(rank)) is None:
            return 0
        if not holder.hello.incarnations:
            return holder.hello.incarnation
        return holder.processes.get(rank, self._lost_processes.get(rank, (0, 0)))[0]

    def is_lost(self, member: int) -> bool:
        """Whether a member is out: all its ranks are gone, and it has not left with the last of them."""
        if member not in self.roster.gone or self.roster.lost.isdisjoint(self.roster.ranks(member)):
            return False
        return (worker := self.workers.get(member)) is None or not worker.left

    def speaks_for(self, member: int, ranks: Sequence[int]) -> bool:
        """Whether a member may say of these ranks, and of no others, that they end with it.

        A relay ends with its last rank. It may name others that it has lost before, and not those that have left. Of
        those in whose place others were admitted, the losses may not be known here.
        """
        if not self.workers[member].is_relay:
            return tuple(ranks) == (member,)
        before = (*(each.rank for each in self.losses), *self.admissions)
        return bool(ranks) and {*self.roster.ranks(member), *before}.issuperset(ranks)

    def title(self, member: int | None) -> str:
        """Which member it is, in errors. None: a relay that has not joined."""
        ranks = () if member is None else self.roster.ranks(member)
        return f"{rank_names(ranks) if ranks else 'a relay'} of job {self.first.job!r}"

    def has_left(self, rank: int) -> bool:
        """Whether a rank has left in good order, alone or with its member."""
        return rank in self.departures.left and rank not in self.roster.lost

    def _await(self, rank: int, deadline: float) -> None:
        """Waits for the process of an admitted rank, and for no other one of this rank."""
        member = self.roster.member(rank)
        self.roster.expect(rank)
        self._decided.discard(rank)
        self._deadlines[rank] = deadline
        self._told_back.pop(rank, None)
        if member is None or member == rank:
            self.workers.pop(rank, None)
            self.departed.discard(rank)
            return
        worker = self.workers[member]
        if others := {other: process for other, process in worker.processes.items() if other != rank}:
            worker.processes = others
        if not self.roster.stands(member):
            del self.workers[member]
            self.departed.discard(member)

    def _note_resumed(self, hello: pb.Hello, now: float) -> None:
        if hello.resuming and self._resumed_at is None:
            self._resumed_at = now

    def _add(self, ranks: Sequence[int]) -> int:
        """See Membership."""
        return self.roster.add_relay(ranks) if len(ranks) > 1 else super()._add(ranks)

    def goes_on(self, member: int) -> bool:
        """Whether a member has the rounds of an earlier aggregator process: from itself or from others."""
        return self.workers[member].hello.resuming or any(rank in self.admissions for rank in self.roster.ranks(member))

    def have_resumed(self, ranks: Iterable[int]) -> bool:
        """Whether one of these ranks has come back to this process, which may have learned rounds from it."""
        return any((worker := self.holder(rank)) is not None and worker.hello.resuming for rank in ranks)
