"""The workers of one job: who joined, who may come back, who takes over a rank, and who has left."""

from typing import Final

from psum.aggregator.core import error_texts
from psum.aggregator.core.departures import Departures
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.worker import Worker
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError

#: If another process comes for the rank of a worker that vanished this long ago, that worker is not expected back: a
#: worker that loses its connection to a running aggregator reconnects within two seconds.
REPLACED_SECONDS: Final = 3.0


class Membership:
    """The ranks of one job and the workers that hold them.

    Args:
        hello: The first worker's hello, which all others must agree with.
        limits: How long the place of a vanished worker is kept.
        before: The membership of the ended job of this name, if the worker comes too late for that job: all who had
            joined it have left.
    """

    def __init__(self, hello: pb.Hello, limits: Limits, before: "Membership | None" = None) -> None:
        self.first: pb.Hello = hello if before is None else before.first
        """The first hello, which all others must agree with."""
        self.num_workers: int = self.first.num_workers
        """The number of ranks."""
        self.workers: dict[int, Worker] = {}
        """The workers that joined, by rank; they stay here after they left."""
        self.told: dict[int, int] = {}
        """The incarnation of each refused worker that was told why the job ended, by rank."""
        self.departures = Departures(self.num_workers, self.workers)
        self._worker_timeout = limits.worker_timeout
        self._closed_timeout = min(limits.closed_timeout, limits.worker_timeout) or limits.worker_timeout
        self._turned_away: dict[int, str] = {}
        """The last process that was refused because its rank is taken, by rank."""
        self._left_before: set[int] = set()
        """Ranks that had left before this job began. They may join it again."""
        self._resumed_at: float | None = None
        """When the first worker came back that had joined the job in an earlier aggregator process."""
        self._inherits = False
        """Whether some rank has a sum that an earlier aggregator process made.

        All ranks took part in that sum, so every process that belongs to the job was in it then.
        """
        if before is not None:
            self.workers |= before.workers
            self._left_before |= before.workers.keys()
            self.departures.left |= self._left_before

    @property
    def complete(self) -> bool:
        """Whether every rank has joined."""
        return len(self.workers) == self.num_workers

    def connected(self) -> tuple[int, ...]:
        """The ranks whose stream is open."""
        return tuple(rank for rank, worker in self.workers.items() if worker.connected)

    def disagreement(self, hello: pb.Hello, peer: str) -> FaultError | None:
        """How a worker's settings differ from those of the first; None if they agree."""
        return error_texts.disagreement(self.first, self.workers.get(self.first.rank), hello, peer)

    def is_of_next_run(self, hello: pb.Hello) -> bool:
        """Whether a worker belongs to the next run of this job, which has failed or ended."""
        if hello.resuming:
            return False
        holder = self.workers.get(hello.rank)
        if holder is None:
            # All processes of this run took part in the sum of the earlier aggregator process.
            return self._inherits
        return bool(hello.incarnation) and not _same_process(holder, hello)

    def next_run(self, hello: pb.Hello, peer: str) -> FaultError | None:
        """Why a worker must wait if it belongs to the next run of this failed job; None if it belongs to this one."""
        return error_texts.still_ending(self.workers, hello, peer) if self.is_of_next_run(hello) else None

    def join(self, hello: pb.Hello, peer: str, now: float) -> tuple[FaultError | None, FaultError | None]:
        """Lets a worker in whose settings agree.

        Returns:
            Why the worker is refused (None: it has joined), and why the whole job fails (None: it goes on).
        """
        holder = self.workers.get(hello.rank)
        if holder is not None and _same_process(holder, hello):
            # The same process opened another stream; the end of the old one may not have been noticed yet. A worker
            # that said goodbye comes back too, and repeats it, because it waits for the farewell.
            holder.connected, holder.peer, holder.last_heard = True, peer, now
            holder.uncredited.clear()
            holder.taking_leave = False
            return None, None
        if hello.rank in self._left_before and not hello.resuming:
            self._left_before.discard(hello.rank)
            self.departures.left.discard(hello.rank)
        elif holder is not None and (
            holder.connected or holder.left or holder.contributed or self.departures.left - self._left_before
        ):
            taken = error_texts.taken(holder, hello, peer, now)
            if not _is_replaced(holder, hello, now):
                return taken, None
            if not holder.contributed and self.connected():
                # Some workers have left in good order, and the others are about to.
                return taken, None
            # The job cannot go on with a process that starts from the first round, and the other will not come back.
            return taken, error_texts.replaced(holder, hello, peer, now)
        if self._inherits and not hello.resuming:
            return self._begun_without(hello, peer, now)
        self.workers[hello.rank] = Worker(hello, peer, joined=now, last_heard=now)
        if hello.resuming and self._resumed_at is None:
            self._resumed_at = now
        return None, None

    def _begun_without(self, hello: pb.Hello, peer: str, now: float) -> tuple[FaultError, FaultError | None]:
        """Why a new process is refused whose rank has taken part already, and why the job fails (None: it goes on)."""
        refusal = error_texts.begun_without(hello, peer)
        holder = self.workers.get(hello.rank)
        if holder is not None:
            return refusal, error_texts.replaced(holder, hello, peer, now) if _is_replaced(holder, hello, now) else None
        # The old process has not come back to this aggregator. It may have ended while no aggregator could notice.
        if self._resumed_at is None or not _has_replaced(self._resumed_at, hello, now):
            return refusal, None
        return refusal, error_texts.replaced_unseen(hello, peer, now - self._resumed_at)

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
        return error_texts.started_again(newcomers) if newcomers else None

    def kept_seconds(self, worker: Worker) -> float:
        """How long the place of a vanished worker is kept."""
        return self._closed_timeout if worker.closed and worker.contributed else self._worker_timeout

    def lose(self, rank: int, now: float, *, closed: bool) -> None:
        """Notes that a worker's stream has ended, with or without a goodbye; it was closed, or given up as silent."""
        worker = self.workers[rank]
        worker.connected, worker.closed = False, closed
        worker.last_heard = now
        worker.uncredited.clear()

    def overdue(self, now: float) -> FaultError | None:
        """Why the job fails if some worker did not come back in time; None otherwise."""
        if self._resumed_at is not None and not self.complete and now - self._resumed_at > self._worker_timeout:
            missing = sorted(set(range(self.num_workers)) - set(self.workers))
            return error_texts.not_back(self.first.job, missing, self._worker_timeout)
        for worker in self.workers.values():
            if not worker.connected and not worker.left and now - worker.last_heard > self.kept_seconds(worker):
                return error_texts.vanished(worker, self.kept_seconds(worker), now)
        return None


def _same_process(holder: Worker, hello: pb.Hello) -> bool:
    return bool(hello.incarnation) and holder.hello.incarnation == hello.incarnation


def _is_replaced(holder: Worker, hello: pb.Hello, now: float) -> bool:
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
