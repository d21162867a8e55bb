"""The members of one job: who joined, who may come back, who takes over a rank, and who has left."""

from collections.abc import Iterator, Sequence
from typing import Final

from psum.aggregator.core import membership_texts
from psum.aggregator.core.departures import Departures
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.roster import Roster, ranks_of
from psum.aggregator.core.worker import Worker, same_process
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError, ProtocolError

#: If another process comes for the rank of a worker that vanished this long ago, that worker is not expected back: a
#: worker that loses its connection to a running aggregator reconnects within two seconds.
REPLACED_SECONDS: Final = 3.0

#: Workers that vanish with their host are not noticed at the same moment, because each connection is probed at its own
#: times. When the place of one is given up, those vanished with it whose places have been kept for this part of the
#: time. One that vanished later may have ended because of the first.
TOGETHER: Final = 0.25


class Membership:
    """The ranks of one job and the members that stand for them: workers, and relays that stand for several ranks.

    Args:
        hello: The first worker's hello, which all others must agree with. With a group_size this is the job of a
            relay's group, otherwise that of a fleet.
        limits: How long the place of a vanished worker is kept.
        before: The membership of the ended job of this name, if the worker comes too late for that job: all who had
            joined it have left.
    """

    def __init__(self, hello: pb.Hello, limits: Limits, before: "Membership | None" = None) -> None:
        self.first: pb.Hello = hello if before is None else before.first
        """The first hello, which all others must agree with."""
        self.roster = self._make_roster()
        """The ranks."""
        self.workers: dict[int, Worker] = {}
        """The members that joined, by first rank; they stay here after they left."""
        self.told: dict[int, int] = {}
        """The incarnation of each refused worker that was told why the job ended, by first rank."""
        self.departures = Departures(self.roster, self.workers)
        self.worker_timeout = limits.worker_timeout
        """How long the place of a vanished worker is kept."""
        self._closed_timeout = min(limits.closed_timeout, limits.worker_timeout) or limits.worker_timeout
        self._turned_away: dict[int, str] = {}
        """The last process that was refused because its rank is taken, by first rank."""
        self._left_before: set[int] = set()
        """Ranks that had left before this job began. They may join it again."""
        self.departed: set[int] = set()
        """The members that have left according to others, and have not come to this aggregator process."""
        self._resumed_at: float | None = None
        """When the first worker came back that had joined the job in an earlier aggregator process."""
        self._inherits = False
        """Whether some rank has a sum that an earlier aggregator process made.

        All ranks took part in that sum, so every process that belongs to the job was in it then.
        """
        if before is not None:
            self.workers |= before.workers
            for worker in before.workers.values():
                self.roster.add(worker.ranks)
                self._left_before.update(worker.ranks)
            self.departures.left |= self._left_before

    @property
    def complete(self) -> bool:
        """Whether every rank has joined."""
        return self.roster.complete

    def connected(self) -> tuple[int, ...]:
        """The members whose stream is open."""
        return tuple(rank for rank, worker in self.workers.items() if worker.connected)

    def holders(self, hello: pb.Hello) -> list[Worker]:
        """The members that have joined with a rank that a hello is for, in rank order."""
        members = {self.roster.member(rank) for rank in ranks_of(hello)}
        return [self.workers[member] for member in sorted(m for m in members if m is not None)]

    def disagreement(self, hello: pb.Hello, peer: str) -> FaultError | None:
        """How a worker's settings differ from those of the first; None if they agree."""
        return membership_texts.disagreement(self.first, self.workers.get(self.first.rank), hello, peer)

    def is_stranger(self, hello: pb.Hello) -> bool:
        """Whether the job can go on without a process whose settings differ."""
        return self.complete

    def is_of_next_run(self, hello: pb.Hello) -> bool:
        """Whether a worker belongs to the next run of this job, which has failed or ended."""
        if hello.resuming:
            return False
        holders = self.holders(hello)
        if not holders:
            # All processes of this run took part in the sum of the earlier aggregator process. If all ranks of a group
            # have joined, another rank is not of this run either.
            return self._inherits or self.complete
        return bool(hello.incarnation) and not any(same_process(holder.hello, hello) for holder in holders)

    def next_run(self, hello: pb.Hello, peer: str) -> FaultError | None:
        """Why a worker must wait if it belongs to the next run of this failed job; None if it belongs to this one."""
        return (
            membership_texts.still_ending(self.workers, self.holders(hello), hello, peer)
            if self.is_of_next_run(hello)
            else None
        )

    def has_place(self, hello: pb.Hello) -> bool:
        """Whether a new process can have its ranks.

        Nobody has joined with them, or one that took part in no round and vanished.
        """
        holders = self.holders(hello)
        if self._inherits or not holders:
            return not self._inherits and self._has_room(hello)
        return holders[0].ranks == ranks_of(hello) and self._is_vacant(holders[0])

    def join(self, hello: pb.Hello, peer: str, now: float) -> tuple[FaultError | None, FaultError | None]:
        """Lets a worker in whose settings agree.

        Returns:
            Why the worker is refused (None: it has joined), and why the whole job fails (None: it goes on).
        """
        ranks, holders = ranks_of(hello), self.holders(hello)
        holder = holders[0] if holders and holders[0].ranks == ranks else None
        if holder is not None and same_process(holder.hello, hello):
            # The same process opened another stream; the end of the old one may not have been noticed yet. A worker
            # that said goodbye comes back too, and repeats it, because it waits for the farewell.
            holder.connected, holder.peer, holder.last_heard = True, peer, now
            holder.uncredited.clear()
            holder.taking_leave = False
            self.departed.discard(hello.rank)
            return None, None
        if holder is not None and self._left_before.issuperset(ranks) and not hello.resuming:
            self._left_before.difference_update(ranks)
            self.departures.left.difference_update(ranks)
        elif holder is None and holders:
            # Its ranks are divided among members in another way, so it can only belong to another run of the job.
            return self._taken(holders, hello, peer, now)
        elif holder is not None and not self._is_vacant(holder):
            return self._taken([holder], hello, peer, now)
        if holder is None and not self._has_room(hello):
            refusal = membership_texts.too_many_ranks(self.workers.values(), hello, peer)
            # While ranks are missing, the job cannot go on with this member or without it.
            return refusal, None if self.complete else refusal
        if self._inherits and not hello.resuming:
            return self._begun_without(hello, peer, now)
        if holder is None:
            self.roster.add(ranks)
        self.workers[hello.rank] = Worker(hello, peer, joined=now, last_heard=now)
        if hello.resuming and self._resumed_at is None:
            self._resumed_at = now
        return None, None

    def left_members(self) -> list[pb.Departure]:
        """The members that have left in good order, as the others tell the next aggregator process."""
        return [
            departure
            for worker in self.workers.values()
            if worker.left and not self._left_before.issuperset(worker.ranks)
            for departure in worker.departures()
        ]

    def learn_departures(self, hello: pb.Hello, peer: str, now: float) -> None:
        """Adds the members that have left before this aggregator process was started, as a worker that comes back says.

        They count as members, so that the job is complete without them. But they may come back, if they have not heard
        that they may leave. Until that is out of the question, nothing fails because they have left; see
        `give_up_departed`.

        Args:
            hello: The worker's hello; it has joined.
            peer: Its address.
            now: The time.
        """
        for each in hello.departures if hello.resuming else ():
            ranks = tuple(each.ranks)
            if (
                each.level
                or not self._may_have_left(ranks)
                or any(self.roster.member(rank) is not None for rank in ranks)
            ):
                continue
            said = pb.Hello()
            said.CopyFrom(hello)
            member = said.rank = self._add(ranks)
            said.incarnation, said.generation, said.worker = each.incarnation, 0, "a process that had left before"
            said.ranks[:] = ranks if len(ranks) > 1 else ()
            del said.departures[:], said.incarnations[:], said.generations[:]
            self.workers[member] = Worker(
                said, f"according to {peer}", joined=now, last_heard=now, connected=False, left=True, contributed=True
            )
            self.departed.add(member)

    def give_up_departed(self, now: float) -> list[int]:
        """The ranks that have left according to others, and by now have had the time to come back to this process.

        What needs them fails from now on.
        """
        if not self.departed or self._resumed_at is None or now - self._resumed_at <= self.worker_timeout:
            return []
        left = self.departures.left
        ranks = [rank for member in self.departed for rank in self.workers[member].ranks if rank not in left]
        left.update(ranks)
        return ranks

    def _is_vacant(self, holder: Worker) -> bool:
        """Whether another process may have the place of a member."""
        begun_to_end = self.departures.left - self._left_before
        return not (holder.connected or holder.left or holder.contributed or begun_to_end)

    def _may_have_left(self, ranks: Sequence[int]) -> bool:
        """Whether some ranks may have been members that have left before this aggregator process was started."""
        return len(ranks) <= self.roster.absent

    def _has_room(self, hello: pb.Hello) -> bool:
        """Whether as many ranks are missing as a new member stands for."""
        return len(ranks_of(hello)) <= self.roster.absent

    def _add(self, ranks: Sequence[int]) -> int:
        """Adds a member to the roster. Returns its number."""
        self.roster.add(ranks)
        return ranks[0]

    def _make_roster(self) -> Roster:
        return Roster(self.first.group_size or self.first.num_workers, fleet=not self.first.group_size)

    def _taken(
        self, holders: Sequence[Worker], hello: pb.Hello, peer: str, now: float
    ) -> tuple[FaultError, FaultError | None]:
        """Why a process is refused whose ranks others hold, and why the job fails (None: it goes on)."""
        taken = membership_texts.taken(holders, hello, peer, now)
        if not all(is_replaced(holder, hello, now) for holder in holders):
            return taken, None
        if not any(holder.contributed for holder in holders) and self.connected():
            # Some workers have left in good order, and the others are about to. Or the holders may be replaced by
            # processes that stand for the same ranks.
            return taken, None
        # The job cannot go on with a process that starts from the first round, and the others will not come back.
        return taken, membership_texts.replaced(holders, hello, peer, now)

    def _begun_without(self, hello: pb.Hello, peer: str, now: float) -> tuple[FaultError, FaultError | None]:
        """Why a new process is refused whose rank has taken part already, and why the job fails (None: it goes on)."""
        refusal = membership_texts.begun_without(hello, peer)
        holder = self.workers.get(hello.rank)
        if holder is not None:
            replaced = is_replaced(holder, hello, now)
            return refusal, membership_texts.replaced([holder], hello, peer, now) if replaced else None
        # The old process has not come back to this aggregator. It may have ended while no aggregator could notice.
        if self._resumed_at is None or not _has_replaced(self._resumed_at, hello, now):
            return refusal, None
        return refusal, membership_texts.replaced_unseen(hello, peer, now - self._resumed_at)

    def turn_away(self, hello: pb.Hello) -> bool:
        """Notes that a worker was refused because its rank is taken. Returns whether it is the first time."""
        first = self._turned_away.get(hello.rank) != hello.worker
        self._turned_away[hello.rank] = hello.worker
        return first

    def inherit(self) -> FaultError | None:
        """Notes that some rank has a sum of an earlier aggregator process.

        Returns:
            Why the job fails; None if all workers that joined had been in it by then.
        """
        self._inherits = True
        newcomers = [worker for worker in self.workers.values() if not worker.hello.resuming]
        return membership_texts.started_again(newcomers) if newcomers else None

    def kept_seconds(self, worker: Worker) -> float:
        """How long the place of a vanished worker is kept.

        A worker whose process has ended does not come back. A relay does, as soon as its process was started again, and
        its workers wait for it.
        """
        ended = worker.closed and worker.contributed and not worker.is_relay
        return self._closed_timeout if ended else self.worker_timeout

    def leave_partly(self, rank: int, ranks: Sequence[int]) -> None:
        """Notes that some ranks of a member leave, while others that it stands for may stay.

        Raises:
            ProtocolError: The member does not stand for them.
        """
        worker = self.workers[rank]
        if not set(ranks).issubset(worker.ranks):
            raise ProtocolError(
                f"{rank_names(worker.ranks)} of job {self.first.job!r} said goodbye for {rank_names(sorted(ranks))}"
            )
        self.departures.left.update(ranks)

    def was_closed(self, worker: Worker, now: float, keepalive: float) -> bool:
        """Whether a stream that ends now was closed, as by the end of its process, rather than given up as silent.

        Args:
            worker: The worker.
            now: The time.
            keepalive: Seconds of silence before a probe. Probes take longer to find out that a peer is gone.
        """
        return now - worker.last_heard < keepalive

    def lose(self, rank: int, now: float, *, closed: bool) -> None:
        """Notes that a worker's stream has ended, with or without a goodbye; it was closed, or given up as silent."""
        worker = self.workers[rank]
        worker.connected, worker.closed = False, closed
        worker.last_heard = now
        worker.uncredited.clear()

    def overdue(self, now: float) -> FaultError | None:
        """Why the job fails if some worker did not come back in time; None otherwise."""
        if self._resumed_at is not None and not self.complete and now - self._resumed_at > self.worker_timeout:
            return membership_texts.not_back(self.first.job, self.roster, self.worker_timeout)
        for worker in self._gone_for(1.0, now):
            together = list(self._gone_for(TOGETHER, now))
            return membership_texts.vanished(together, self.kept_seconds(worker), self.departures.left, now)
        return None

    def _gone_for(self, part: float, now: float) -> Iterator[Worker]:
        """The vanished workers whose places have been kept for longer than this part of the time."""
        for worker in self.workers.values():
            if not worker.connected and not worker.left and now - worker.last_heard > part * self.kept_seconds(worker):
                yield worker


def is_replaced(holder: Worker, hello: pb.Hello, now: float) -> bool:
    """Whether another process has come in the place of a vanished worker, so that nobody waits for that one.

    A process that started after the worker had vanished was started because of that. A process that started before may
    be a second worker with the same rank by mistake: it counts only after the first one has had time to come back.
    """
    if holder.connected or holder.left or hello.resuming:
        return False
    return _has_replaced(holder.last_heard, hello, now)


def _has_replaced(missed_since: float, hello: pb.Hello, now: float) -> bool:
    """Whether a process that is missed since a time is replaced by another one, which has sent this hello."""
    return now - hello.age_seconds > missed_since or now - missed_since >= REPLACED_SECONDS
