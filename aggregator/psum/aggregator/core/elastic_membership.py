"""The members of an elastic job: which processes are lost, which were admitted, and who may come back."""

from collections.abc import Iterable, Iterator, Sequence

from psum.aggregator.core import elastic_texts
from psum.aggregator.core.admissions import Admission
from psum.aggregator.core.elastic_roster import ElasticRoster
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.losses import Loss, Losses
from psum.aggregator.core.membership import Membership, is_replaced
from psum.aggregator.core.relay_members import Introduction, RelayMembers
from psum.aggregator.core.silence import Silence
from psum.aggregator.core.view import View
from psum.aggregator.core.worker import Process, Worker, set_processes
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError

#: The generation of a rank that never had a process.
NEVER_THERE = -1


class ElasticMembership(Membership):
    """See Membership. What would end another job makes a rank lost here: `due` says which, and `lose_rank` notes it.

    A rank may have several processes, one after the other. They are numbered by their generation: how many processes of
    the rank were members before. A loss is about one generation. An admission begins the next one.

    All this is about ranks, also about those behind relays. `workers` has members, by their numbers in the roster.

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
        self.draining = False
        """Whether this aggregator is about to end, and accepts no streams. Then it loses nobody by time."""
        self._deadlines: dict[int, float] = {}
        """When ranks are lost that were admitted and whose processes are not here."""
        self._round_timeout = limits.round_timeout
        self._replaced: dict[int, str] = {}
        """Ranks for which another process has come, or whose relay goes on without them, and why they are lost."""
        self._relay_timeout = limits.relay_timeout or limits.worker_timeout
        """How long the place of a relay is kept."""
        self._decided: set[int] = set()
        """The newcomers that were let in through a relay, which has not listed them in a hello yet."""
        self._lost_processes: dict[int, Process] = {}
        """The last process of each rank that was lost behind a relay."""
        self._outdated: dict[int, list[Loss]] = {}
        """What relays are told with their welcome: processes of theirs in whose place others are."""
        self._silence = Silence(limits.worker_timeout)
        self._view = View()
        """Whether time decides anything."""
        super().__init__(hello, limits, before)
        for rank in self._left_before:
            self.roster.leave(rank)
        self._relays = RelayMembers(self.roster, self.workers, self.losses, self.admissions)

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

    def outdated(self, member: int) -> list[Loss]:
        """The losses of earlier processes that a relay still had in its last hello. Each is told once."""
        return self._outdated.pop(member, [])

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

    def has_left(self, rank: int) -> bool:
        """Whether a rank has left in good order, alone or with its member."""
        return rank in self.departures.left and rank not in self.roster.lost

    def is_stranger(self, hello: pb.Hello) -> bool:
        """See Membership. A job that has begun goes on without a process whose settings differ."""
        return self.complete or self._resumed_at is not None or bool(self.losses) or bool(self.admissions)

    def join(self, hello: pb.Hello, peer: str, now: float) -> tuple[FaultError | None, FaultError | None]:
        """See Membership. The job never fails. A process is refused that is lost, or whose rank goes on without it."""
        self._silence.pass_time(self.workers.values(), now)
        if hello.ranks:
            return self._join_relay(hello, peer, now), None
        rank, holder = hello.rank, self.workers.get(hello.rank)
        if (refusal := self._refusal(hello, peer, now)) is not None:
            return refusal, None
        if (member := self.roster.member(rank)) is not None and member != rank:
            # The relay notices for itself if a process has ended.
            return self._taken([self.workers[member]], hello, peer, now)[0], None
        if holder is None and rank in self.admissions:
            self._enter(hello, peer, now)
            return None, None
        had_left = rank in self._left_before
        refusal, failure = super().join(hello, peer, now)
        if refusal is None:
            self.reaches(rank, now, all_of_them=True)
        if had_left and rank not in self._left_before:
            self.roster.take_back(rank)
        if failure is not None:
            # Another process has come for a rank, so nobody waits for the one before.
            self._replaced[rank] = elastic_texts.replaced(hello, peer)
        return refusal, None

    def kept_seconds(self, worker: Worker) -> float:
        """See Membership. A process that has come back to an aggregator counts as one that has taken part."""
        if worker.is_relay:
            return self._relay_timeout
        ended = worker.closed and (worker.contributed or worker.hello.resuming)
        return self._closed_timeout if ended else self.worker_timeout

    def was_closed(self, worker: Worker, now: float, keepalive: float) -> bool:
        """See Membership. Workers of elastic jobs send something with each beat."""
        return super().was_closed(worker, now, max(keepalive, 1.5 * self._silence.beat))

    def reaches(self, rank: int, now: float, *, all_of_them: bool) -> None:
        """Notes whether a member has a stream to each aggregator."""
        self.workers[rank].reaches_all = all_of_them
        self._look(now)

    def lose(self, rank: int, now: float, *, closed: bool) -> None:
        """See Membership. A stream that is given up as silent has been silent for some time."""
        self._silence.pass_time(self.workers.values(), now)
        heard = self.workers[rank].last_heard
        super().lose(rank, now, closed=closed)
        if not closed:
            self.workers[rank].last_heard = heard
        self._look(now)

    def admit(self, admission: Admission, now: float) -> None:
        """Begins the next generation of a rank. The process before is lost or has left.

        Its process has the worker timeout to come, unless `await_newcomer` says otherwise.
        """
        rank = admission.rank
        if admission.rounds:
            # Otherwise it may be an earlier one, of which this process hears late.
            for earlier in self.admissions.values():
                # All members are past the step boundary of earlier admissions.
                earlier.rounds = {}
        self.admissions[rank] = admission
        self._replaced.pop(rank, None)
        self._left_before.discard(rank)
        self.departures.left.discard(rank)
        self._await(rank, now + self.worker_timeout)

    def await_newcomer(
        self, rank: int, now: float, *, here: bool, relayed: bool = False, cut_off: bool = False
    ) -> None:
        """Notes that the process of an admitted rank waits here for its welcome, or that its stream has ended.

        Its welcome waits for members that have not come to the step boundary. If its relay has come without it, it has
        the time to come back to the relay. If the relay itself is away, it has as long as that.
        """
        if rank not in self._deadlines:
            return
        gone_for = self.worker_timeout if relayed else self._closed_timeout
        if cut_off:
            gone_for = self._relay_timeout
        self._deadlines[rank] = now + (self._round_timeout if here else gone_for)

    def welcome(self, hello: pb.Hello, peer: str, now: float) -> Worker:
        """Makes an admitted process a member, or the relay that has only this one."""
        hello.joining, hello.generation = False, self.admissions[hello.rank].generation
        return self._enter(hello, peer, now)

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

    def _await(self, rank: int, deadline: float) -> None:
        """Waits for the process of an admitted rank, and for no other one of this rank."""
        member = self.roster.member(rank)
        self.roster.expect(rank)
        self._decided.discard(rank)
        self._deadlines[rank] = deadline
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

    def _enter(self, hello: pb.Hello, peer: str, now: float) -> Worker:
        self._deadlines.pop(hello.rank, None)
        if hello.ranks:
            rank = hello.rank
            set_processes(hello, {rank: (hello.incarnations[0], hello.generation)})
            if self.roster.member(rank) is not None:
                # It did not receive its welcome.
                self._await(rank, now)
                del self._deadlines[rank]
            hello.rank = self.roster.add_relay((rank,))
        else:
            self.roster.add((hello.rank,))
        worker = self.workers[hello.rank] = Worker(hello, peer, joined=now, last_heard=now)
        self._note_resumed(hello, now)
        self._look(now)
        return worker

    def _note_resumed(self, hello: pb.Hello, now: float) -> None:
        if hello.resuming and self._resumed_at is None:
            self._resumed_at = now

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
        self.reaches(member, now, all_of_them=True)
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
        named = {rank for each in hello.departures if not each.level for rank in each.ranks}
        left = named.intersection(found.missing)
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

    def _add(self, ranks: Sequence[int]) -> int:
        """See Membership."""
        return self.roster.add_relay(ranks) if len(ranks) > 1 else super()._add(ranks)

    def learn_departures(self, hello: pb.Hello, peer: str, now: float) -> None:
        """See Membership. Nothing waits for those who have left. Another process may have been admitted since."""
        later = [
            each
            for each in hello.departures
            if any(
                (admission := self.admissions.get(rank)) is not None and admission.incarnation != each.incarnation
                for rank in each.ranks
            )
        ]
        for each in later:
            hello.departures.remove(each)
        super().learn_departures(hello, peer, now)
        for member in self.departed:
            for rank in self.roster.living(member):
                self.roster.leave(rank)

    def inherit(self) -> FaultError | None:
        """See Membership. Those who begin with the first round are lost instead: see `newcomers`."""
        self._inherits = True
        return None

    def newcomers(self, now: float) -> list[Loss]:
        """The ranks of processes that have joined as new ones, now that a rank has a sum of an earlier process."""
        return [
            Loss(rank, elastic_texts.began_anew(worker), now, generation=self.generation(rank), reason="began anew")
            for member, worker in self.workers.items()
            if not self.goes_on(member)
            for rank in self.roster.living(member)
        ]

    def goes_on(self, member: int) -> bool:
        """Whether a member has the rounds of an earlier aggregator process: from itself or from others."""
        return self.workers[member].hello.resuming or any(rank in self.admissions for rank in self.roster.ranks(member))

    def overdue(self, now: float) -> FaultError | None:
        """See Membership. An elastic job does not fail because of lost ranks."""
        return None

    def have_resumed(self, ranks: Iterable[int]) -> bool:
        """Whether one of these ranks has come back to this process, which may have learned rounds from it."""
        return any((worker := self.holder(rank)) is not None and worker.hello.resuming for rank in ranks)

    def resume(self) -> None:
        """Notes that all members have been in the job before: what this process knew of their rounds is forgotten."""
        for member, worker in self.workers.items():
            if not self.is_lost(member):
                worker.hello.resuming = True

    def due(self, now: float) -> list[Loss]:
        """The ranks that are lost by now and have not been noted as lost.

        Time alone decides nothing unless this aggregator has had a view of the job for as long.
        """
        self._look(now)
        return [] if self.draining else list(self._due(now))

    def lose_rank(self, loss: Loss) -> bool:
        """Notes that a process is lost. Returns whether that is new, and the process has not left in good order before.

        A loss of an earlier generation than the present one is old, and changes nothing.
        """
        rank, generation = loss.rank, self.generation(loss.rank)
        if loss.generation < generation or (loss.generation == generation and rank in self.departures.left):
            return False
        if not self.losses.add(loss):
            return False
        self._replaced.pop(rank, None)
        self._deadlines.pop(rank, None)
        self._decided.discard(rank)
        self.departures.left.discard(rank)
        self.roster.lose(rank)
        found = self.roster.member(rank)
        member = rank if found is None else found
        worker = self.workers.get(member)
        if worker is not None and rank in worker.processes:
            self._lost_processes[rank] = worker.processes[rank]
        if worker is not None and len(worker.ranks) > 1:
            worker.processes = {other: process for other, process in worker.processes.items() if other != rank}
        if member in self.roster.gone:
            if worker is not None:
                worker.uncredited.clear()
                worker.credited.clear()
            for other in self.workers.values():
                other.needed_by.discard(member)
        return True

    def replaced(self, now: float) -> list[Loss]:
        """The ranks that are lost because others have come for them, or because their relay goes on without them."""
        return [
            Loss(rank, text, now, generation=self.generation(rank), reason="replaced")
            for rank, text in self._replaced.items()
        ]

    def replace(self, hello: pb.Hello, peer: str, now: float) -> list[Loss]:
        """The loss of a rank's process that vanished, and in whose place another one has come. Empty if there is none.

        Args:
            hello: The hello of the other process, which waits to join.
            peer: Its address.
            now: The time.
        """
        holder = self.holder(hello.rank)
        if holder is None or holder.is_relay or hello.rank in self.roster.gone:
            # A relay notices for itself if a process has ended.
            return []
        if holder.hello.incarnation == hello.incarnation:
            return []
        if not is_replaced(holder, hello, now):
            return []
        text, generation = elastic_texts.replaced(hello, peer), self.generation(hello.rank)
        return [Loss(hello.rank, text, now, generation=generation, reason="replaced")]

    def _due(self, now: float) -> Iterator[Loss]:
        yield from self.replaced(now)
        view, here = self._view, elastic_texts.aggregator(self.first)
        for worker in self._gone_for(1.0, now):
            if view.held_longer(self.kept_seconds(worker), now):
                text, reason = elastic_texts.vanished(worker, here, now), "closed" if worker.closed else "silent"
                yield from self._losses_of(worker, text, now, reason)
        for worker in self._silence.silent(self.workers.values(), now):
            if worker.is_relay and now - worker.last_heard <= self._relay_timeout:
                continue
            # A connection that worked again at the same time as that of the member with the view may still be slow.
            if view.held_longer(2 * self._silence.beat, now):
                yield from self._losses_of(worker, elastic_texts.silent(worker, here, now), now, "silent")
        # A rank that is missed may be behind a relay that was killed too.
        patience = self._relay_timeout if self.roster.has_relays else self.worker_timeout
        for rank in self.roster.not_joined():
            deadline, generation = self._deadlines.get(rank), self.generation(rank)
            if deadline is not None:
                if now > deadline and view.held_longer(self._closed_timeout, now):
                    text = elastic_texts.not_come(self.admissions[rank])
                    yield Loss(rank, text, now, generation=generation, reason="not come")
            elif self._resumed_at is not None and now - self._resumed_at > patience and view.held_longer(patience, now):
                text = elastic_texts.not_back(patience, here)
                yield Loss(rank, text, now, generation=generation, reason="not back")

    def _losses_of(self, worker: Worker, text: str, now: float, reason: str) -> Iterator[Loss]:
        """The losses of all ranks that a member stands for."""
        for rank in self.roster.living(worker.hello.rank):
            yield Loss(rank, text, now, generation=self.generation(rank), reason=reason)

    def _look(self, now: float) -> None:
        gone, silence = self.roster.gone, self._silence
        silence.pass_time(self.workers.values(), now)
        # What a member has said of its reach may be old if it is quiet.
        heard = (each for rank, each in self.workers.items() if rank not in gone and not silence.is_quiet(each, now))
        self._view.update(heard, now)

    def _refusal(self, hello: pb.Hello, peer: str, now: float) -> FaultError | None:
        """Why a process is refused: it is out, or its rank goes on without it. None if it is not refused for that."""
        rank, job, generation = hello.rank, self.first.job, self.generation(hello.rank)
        if (loss := self.loss(rank)) is not None:
            holder = self.workers.get(rank)
            if self._is_known(hello, holder):
                return elastic_texts.excluded(job, loss, now)
            return elastic_texts.begun_without(
                job, hello, peer, f"lost {max(0.0, now - loss.at):.1f} s ago ({loss.text})"
            )
        admission = self.admissions.get(rank)
        if hello.generation < generation or (admission is not None and admission.incarnation != hello.incarnation):
            return elastic_texts.superseded(job, hello, peer, generation)
        if generation == NEVER_THERE:
            return elastic_texts.begun_without(job, hello, peer, f"not among the {self.first.num_workers} first ranks")
        holder = self.workers.get(rank)
        if rank in self.roster.left - self._left_before and not self._is_known(hello, holder):
            return elastic_texts.begun_without(job, hello, peer, "left by another process")
        return None

    @staticmethod
    def _is_known(hello: pb.Hello, holder: Worker | None) -> bool:
        """Whether a process has been a member before, as far as it says or is known here."""
        return hello.resuming or (holder is not None and holder.hello.incarnation == hello.incarnation != 0)
