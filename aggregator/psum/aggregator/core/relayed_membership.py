"""The relays among the members of an elastic job: who is let in with a relay, and who is not."""

from collections.abc import Iterable

from psum.aggregator.core import elastic_texts
from psum.aggregator.core.elastic_ranks import ElasticRanks
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.losses import Loss
from psum.aggregator.core.membership import Membership
from psum.aggregator.core.relay_members import Introduction, RelayMembers
from psum.aggregator.core.vouchers import Vouchers
from psum.aggregator.core.worker import Process, Worker, set_processes
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError


class RelayedMembership(ElasticRanks):
    """See ElasticRanks. A relay is one member, whose ranks change with its group.

    Args:
        hello: The first worker's hello, which is elastic.
        limits: How long the place of a vanished worker is kept.
        before: See Membership.
    """

    def __init__(self, hello: pb.Hello, limits: Limits, before: "Membership | None" = None) -> None:
        super().__init__(hello, limits, before)
        self._relay_timeout = limits.relay_timeout or limits.worker_timeout
        """How long the place of a relay is kept while its workers live."""
        self._vouchers = Vouchers(limits.worker_timeout, self._relay_timeout)
        self._outdated: dict[int, list[Loss]] = {}
        """What relays are told with their welcome: processes of theirs in whose place others are."""
        self._relays = RelayMembers(self.roster, self.workers, self.losses, self.admissions)

    def outdated(self, member: int) -> list[Loss]:
        """The losses of earlier processes that a relay still had in its last hello. Each is told once."""
        return self._outdated.pop(member, [])

    def let_in(self, member: int, rank: int) -> bool:
        """Lets an admitted process in that waits at a relay: the relay stands for it from now on.

        Returns:
            False if it did before.
        """
        holder = self.roster.member(rank)
        if holder == member:
            return False
        if holder is not None:
            # Its welcome by another way did not reach it.
            self._await(rank, 0.0)
        admission, worker = self.admissions[rank], self.workers[member]
        self._deadlines.pop(rank, None)
        self._decided.add(rank)
        self.roster.extend(member, rank)
        worker.processes = {**worker.processes, rank: (admission.incarnation, admission.generation)}
        return True

    def is_undecided(self, rank: int) -> bool:
        """Whether a process is one of a relay's group here, and its relay has not said that it has let it in."""
        return rank in self._decided

    def expect_again(self, rank: int, now: float) -> None:
        """Expects a newcomer once more whose relay has ended without letting it in."""
        self._await(rank, now + self._closed_timeout)

    def vouch(self, rank: int, incarnation: int, now: float) -> pb.Standing.ValueType:
        """A process behind a relay says, past the relay, that it lives. Returns what is known of it here."""
        holder = self.holder(rank)
        if holder is None or self.roster.is_gone(rank) or holder.processes.get(rank, (0, 0))[0] != incarnation:
            return pb.STANDING_UNSPECIFIED
        self._vouchers.hear(rank, incarnation, now)
        return pb.STANDING_PRESENT if holder.connected else pb.STANDING_AWAITED

    def kept_seconds(self, worker: Worker) -> float:
        """See Membership. For how long it is a relay depends on whether its workers live."""
        if not worker.is_relay:
            return super().kept_seconds(worker)
        return self._vouchers.kept_seconds(worker, self.roster.living(worker.hello.rank))

    def _join_relay(self, hello: pb.Hello, peer: str, now: float) -> FaultError | None:
        """Lets a relay in. Its hello's rank becomes the member's number. Returns why it is refused."""
        generations = {rank: self.generation(rank) for rank in hello.ranks}
        found = self._relays.compare(hello, generations, tuple(self.departed))
        if found.holders:
            refusal, failure = self._taken(found.holders, hello, peer, now)
            if failure is not None:
                self._replace(found.holders, hello, peer)
            return refusal
        for rank in found.replaced:
            self._replaced[rank] = elastic_texts.replaced(hello, peer)
        processes = {**found.stays, **found.joins}
        if not processes:
            return self._all_out(hello, peer, found, now)
        if found.member is None and self._inherits and not hello.resuming and not self.admissions.keys() & processes:
            return self._begun_without(hello, peer, now)[0]
        for each in found.departed:
            self._forget_departed(each)
        left = set() if found.member is None else self._go_without(found, hello, peer, now)
        for rank in processes:
            self._deadlines.pop(rank, None)
            self._decided.discard(rank)
            self._left_before.discard(rank)
        member = found.member
        if member is None:
            set_processes(hello, processes)
            hello.rank = member = self.roster.add_relay(sorted(processes))
            self.workers[member] = Worker(hello, peer, joined=now, last_heard=now)
            self._note_resumed(hello, now)
        else:
            self._come_back(member, hello, peer, now, processes, left)
        if outdated := [loss for rank in found.out if (loss := self._outdated_loss(rank, found.out[rank], now))]:
            self._outdated[member] = outdated
        return None

    def _come_back(
        self, member: int, hello: pb.Hello, peer: str, now: float, processes: dict[int, Process], left: set[int]
    ) -> None:
        """Takes over what a relay says on a new stream."""
        worker = self.workers[member]
        for rank in processes:
            if self.roster.member(rank) is None:
                self.roster.extend(member, rank)
        # Those that have left are the relay's until it leaves itself.
        left = {rank for rank in worker.ranks if rank in left or self.has_left(rank)} - processes.keys()
        set_processes(hello, {**{rank: worker.processes[rank] for rank in left}, **processes})
        hello.rank, hello.resuming = member, worker.hello.resuming
        worker.hello, worker.peer, worker.last_heard = hello, peer, now
        worker.connected, worker.taking_leave = True, False
        worker.uncredited.clear()
        self.departed.discard(member)

    def _go_without(self, found: Introduction, hello: pb.Hello, peer: str, now: float) -> set[int]:
        """Notes which ranks of a relay are gone, because it names them no more. Returns those that have left."""
        before = self.workers[found.member].processes if found.member is not None else {}
        # The departure of an earlier process of a rank says nothing of the present one.
        named = {(rank, each.incarnation) for each in hello.departures if not each.level for rank in each.ranks}
        left = {rank for rank in found.missing if rank in before and (rank, before[rank][0]) in named}
        for rank in found.missing:
            if rank in left:
                self.departures.left.add(rank)
                self.roster.leave(rank)
            elif rank in self._decided:
                # The relay has not let it in yet. It says with its next message that the process still waits.
                self._await(rank, now + self.worker_timeout)
            else:
                self._replaced[rank] = elastic_texts.without(hello, peer)
        return left

    def _forget_departed(self, member: int) -> None:
        """Forgets a member that had left according to others: it comes back, behind a relay, to repeat its goodbye."""
        self.departed.discard(member)
        worker = self.workers.pop(member)
        left = [rank for rank in worker.ranks if rank in self.roster.left]
        for rank in worker.ranks:
            self.roster.expect(rank)
        for rank in left:
            self.roster.leave(rank)

    def _replace(self, holders: Iterable[Worker], hello: pb.Hello, peer: str) -> None:
        """Another relay has come for ranks of members that vanished, so nobody waits for those."""
        for holder in holders:
            for rank in self.roster.living(holder.hello.rank):
                if rank in hello.ranks:
                    self._replaced[rank] = elastic_texts.replaced(hello, peer)

    def _all_out(self, hello: pb.Hello, peer: str, found: Introduction, now: float) -> FaultError:
        """Why a relay is refused of which no process belongs to the job any more."""
        losses = [loss for rank in found.out if (loss := self.loss(rank)) is not None]
        if losses:
            return elastic_texts.excluded(self.first.job, losses[0], now, ranks=hello.ranks)
        rank = hello.ranks[0]
        return elastic_texts.superseded(self.first.job, hello, peer, self.generation(rank))

    def _outdated_loss(self, rank: int, process: Process, now: float) -> Loss | None:
        """What a relay is told of a process that is out, unless its welcome tells of it anyway."""
        if self.loss(rank) is not None:
            return None
        return Loss(rank, elastic_texts.IN_ITS_PLACE, now, generation=process[1], reason="replaced")
