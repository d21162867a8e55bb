"""The members of an elastic job: which processes are lost, which were admitted, and who may come back."""

from collections.abc import Iterator, Sequence

from psum.aggregator.core import elastic_texts
from psum.aggregator.core.admissions import Admission
from psum.aggregator.core.elastic_ranks import NEVER_THERE
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.losses import Loss
from psum.aggregator.core.membership import Membership, is_replaced
from psum.aggregator.core.relayed_membership import RelayedMembership
from psum.aggregator.core.silence import Silence
from psum.aggregator.core.view import View
from psum.aggregator.core.worker import Worker, set_processes
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError


class ElasticMembership(RelayedMembership):
    """See Membership. What would end another job makes a rank lost here: `due` says which, and `lose_rank` notes it.

    Args:
        hello: The first worker's hello, which is elastic.
        limits: How long the place of a vanished worker is kept.
        before: See Membership.
    """

    def __init__(self, hello: pb.Hello, limits: Limits, before: "Membership | None" = None) -> None:
        self.draining = False
        """Whether this aggregator is about to end, and accepts no streams. Then it loses nobody by time."""
        self._round_timeout = limits.round_timeout
        self._silence = Silence(limits.worker_timeout)
        self._all_away_since: float | None = None
        self._view = View()
        """Whether time decides anything."""
        super().__init__(hello, limits, before)

    @property
    def looked_at(self) -> float | None:
        """When this job last took note of the time; None: never."""
        return self._silence.checked

    def is_stranger(self, hello: pb.Hello) -> bool:
        """See Membership. A job that has begun goes on without a process whose settings differ."""
        return self.complete or self._resumed_at is not None or bool(self.losses) or bool(self.admissions)

    def join(self, hello: pb.Hello, peer: str, now: float) -> tuple[FaultError | None, FaultError | None]:
        """See Membership. The job never fails. A process is refused that is lost, or whose rank goes on without it."""
        self._pass_time(now)
        if hello.ranks:
            if (refusal := self._join_relay(hello, peer, now)) is None:
                self.reaches(hello.rank, now, all_of_them=True)
            return refusal, None
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
            return super().kept_seconds(worker)
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
        self._pass_time(now)
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

    def await_back(self, rank: int, now: float) -> None:
        """Notes that a member has told in its hello of an admission that is not known here.

        This aggregator was started again. So the process may be a member as any other, and has as long to come back.
        How long that is depends on how many others are missed by then.
        """
        if rank in self._deadlines:
            self._told_back[rank] = now

    def await_newcomer(
        self, rank: int, now: float, *, here: bool, relayed: bool = False, cut_off: bool = False
    ) -> None:
        """Notes that the process of an admitted rank waits here for its welcome, or that its stream has ended.

        Its welcome waits for members that have not come to the step boundary. If its relay has come without it, it has
        the time to come back to the relay. If the relay itself is away, it has as long as that.

        Args:
            rank: The rank.
            now: Since when it waits, or when its stream has ended, which may have been before the admission.
            here: Which of these.
        """
        if rank not in self._deadlines:
            return
        gone_for = self.worker_timeout if relayed else self._closed_timeout
        if cut_off:
            gone_for = self._relay_timeout
        self._told_back.pop(rank, None)
        self._deadlines[rank] = now + (self._round_timeout if here else gone_for)

    def welcome(self, hello: pb.Hello, peer: str, now: float) -> Worker:
        """Makes an admitted process a member, or the relay that has only this one."""
        hello.joining, hello.generation = False, self.admissions[hello.rank].generation
        return self._enter(hello, peer, now)

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

    def learn_departures(self, hello: pb.Hello, peer: str, now: float) -> None:
        """See Membership. Nothing waits for those who have left. Another process may have been admitted since."""
        present = {each.rank: each.incarnation for each in hello.admissions}
        present |= {rank: admission.incarnation for rank, admission in self.admissions.items()}
        # One that has left is never lost. So another one was lost, after it left or before it was admitted.
        lost = {each.rank for each in (*hello.losses, *self.losses)}
        later = [
            each
            for each in hello.departures
            if any(
                present.get(rank, 0 if rank in lost else each.incarnation) != each.incarnation for rank in each.ranks
            )
        ]
        for each in later:
            hello.departures.remove(each)
        generations = {(each.rank, each.incarnation): each.generation for each in hello.admissions}
        generations |= {(each.rank, each.incarnation): each.generation for each in self.admissions.values()}
        super().learn_departures(hello, peer, now)
        for member in self.departed:
            said = self.workers[member].hello
            said.generation = generations.get((said.rank, said.incarnation), said.generation)
            for rank in self.roster.living(member):
                self.roster.leave(rank)

    def _may_have_left(self, ranks: Sequence[int]) -> bool:
        """See Membership. The job may have had more ranks than at its beginning."""
        return True

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

    def overdue(self, now: float) -> FaultError | None:
        """See Membership. An elastic job does not fail because of lost ranks."""
        return None

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
                worker.forget_credit()
            for other in self.workers.values():
                other.needed_by.discard(member)
        return True

    def all_away_for(self, now: float) -> float:
        """How long no member has been connected, in seconds, as far as the calls of this method tell."""
        if not self.workers or any(worker.connected for worker in self.workers.values()):
            self._all_away_since = None
            return 0.0
        if self._all_away_since is None:
            self._all_away_since = now
        return now - self._all_away_since

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

    def excluded(self, member: int, now: float) -> FaultError:
        """What a member is told that is lost."""
        ranks = [rank for rank in self.roster.ranks(member) if rank in self.roster.lost]
        [*_, loss] = [loss for rank in ranks if (loss := self.losses.of(rank)) is not None]
        return elastic_texts.excluded(self.first.job, loss, now, ranks=ranks)

    def _due(self, now: float) -> Iterator[Loss]:
        yield from self.replaced(now)
        view, here = self._view, elastic_texts.aggregator(self.first)
        for worker in self._gone_for(1.0, now):
            if view.held_longer(self.kept_seconds(worker), now):
                text, reason = elastic_texts.vanished(worker, here, now), "closed" if worker.closed else "silent"
                yield from self._losses_of(worker, text, now, reason)
        for worker in self._silence.silent(self.workers.values(), now):
            if worker.is_relay and now - worker.last_heard <= self.kept_seconds(worker):
                continue
            # A connection that worked again at the same time as that of the member with the view may still be slow.
            if view.held_longer(2 * self._silence.beat, now):
                yield from self._losses_of(worker, elastic_texts.silent(worker, here, now), now, "silent")
        patience = self._back_within
        for rank in self.roster.not_joined():
            deadline, generation = self._deadlines.get(rank), self.generation(rank)
            admitted = deadline is not None
            if deadline is not None and now <= deadline:
                continue
            seen = self._may_lose_absent if admitted else view.held_longer
            since = self._told_back.get(rank) if admitted else self._resumed_at
            if since is None:
                if admitted and seen(self._closed_timeout, now):
                    text = elastic_texts.not_come(self.admissions[rank])
                    yield Loss(rank, text, now, generation=generation, reason="not come")
            elif now - since > patience and seen(patience, now):
                text = elastic_texts.not_back(patience, here)
                yield Loss(rank, text, now, generation=generation, reason="not back")

    def _may_lose_absent(self, seconds: float, now: float) -> bool:
        """Whether processes may be lost that were admitted and have not come, for so long."""
        return self._view.held_longer(seconds, now)

    @property
    def _group_within(self) -> float:
        """How long a relay that was started again waits for its group.

        A rank that is missed may be behind another relay that was killed too.
        """
        return self._relay_timeout if self.roster.has_relays else self.worker_timeout

    @property
    def _back_within(self) -> float:
        """How long a rank has to come back to this process of the aggregator.

        Several that are missed may be a group whose relay was started again at the same time, and waits for one of
        them. That relay comes without it after `_group_within`, which must not be too late.
        """
        several = len(self.roster.not_joined()) > 1 and not self.roster.has_relays
        return self._group_within + (self.worker_timeout if several else 0.0)

    def _losses_of(self, worker: Worker, text: str, now: float, reason: str) -> Iterator[Loss]:
        """The losses of all ranks that a member stands for."""
        for rank in self.roster.living(worker.hello.rank):
            yield Loss(rank, text, now, generation=self.generation(rank), reason=reason)

    def _pass_time(self, now: float) -> None:
        """Leaves out the time in which this process did not run: whoever came back then has not been let in yet."""
        paused = self._silence.pass_time(self.workers.values(), now)
        if not paused:
            return
        for worker in self.workers.values():
            if not worker.connected:
                worker.last_heard = min(now, worker.last_heard + paused)
        for rank in self._deadlines:
            self._deadlines[rank] += paused
        for rank in self._told_back:
            self._told_back[rank] = min(now, self._told_back[rank] + paused)
        if self._resumed_at is not None:
            self._resumed_at = min(now, self._resumed_at + paused)
        self._view.leave_out(paused, now)
        self._vouchers.leave_out(paused, now)

    def _look(self, now: float) -> None:
        gone, silence = self.roster.gone, self._silence
        self._pass_time(now)
        # What a member has said of its reach may be old if it is quiet.
        heard = (each for rank, each in self.workers.items() if rank not in gone and not silence.is_quiet(each, now))
        self._view.update(heard, now)

    def vacant_ranks(self) -> list[int]:
        """The ranks whose processes are lost or have left. Other processes with these ranks ask to join."""
        return sorted(self.roster.lost | (self.roster.left - self._left_before))

    def goes_on_without(self, hello: pb.Hello, peer: str, now: float) -> FaultError | None:
        """Why a process cannot begin with the first round: the job goes on without its rank. None if it can."""
        return self._refusal(hello, peer, now)

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
