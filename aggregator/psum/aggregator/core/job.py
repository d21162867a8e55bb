"""One training job on one aggregator: its workers, its keys, and what follows from what they do.

Events in, actions out, without I/O. The shell calls `join`, `declare`, `contribute`, `abort`, `leave` and `lost` as
messages and disconnections arrive, `summed` when a sum is made, and `tick` from time to time; each returns the actions
that follow. A method that raises ProtocolError has changed nothing: the shell ends that worker's stream.
"""

import mmap
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from psum.aggregator.core import failures
from psum.aggregator.core.actions import (
    Action,
    Ask,
    Deliver,
    Release,
    Report,
    ReturnCredit,
    Sum,
    Warn,
)
from psum.aggregator.core.budget import Budget
from psum.aggregator.core.counters import JobCounters
from psum.aggregator.core.departures import Departures
from psum.aggregator.core.key import Key
from psum.aggregator.core.round import Phase, ShardRounds, Verdict
from psum.aggregator.core.stall_warnings import StallWarnings
from psum.aggregator.core.timings import Timings
from psum.aggregator.core.worker import Worker
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import FaultError, ProtocolError

#: How long a contribution may count against its worker's credit while its round waits for others. Without a limit, two
#: workers that push different keys first would wait for each other for ever.
CREDIT_HOLD_SECONDS: Final = 0.01

#: A worker that has vanished for this long is not about to be back, where another process has come for its rank: those
#: that lose a connection to an aggregator that is there have another one within two seconds.
REPLACED_SECONDS: Final = 3.0

_NOTHING: Final = memoryview(b"")


class Job:
    """The state of one job.

    Args:
        hello: The first worker's hello, which says what all must agree on.
        worker_timeout: Seconds for which the place of a vanished worker is kept.
        closed_timeout: The same where its stream was closed and it had taken part in some round; 0: as worker_timeout.
        round_timeout: Seconds for which a round may wait.
        warn_after: Seconds after which those who wait are told for whom.
        max_shards: How many shards it may declare; every key has at least one.
        budget: The memory that the job shares with others.
        tally: Where what it does is counted.
        before: The job of this name that the worker is too late for, since all who had joined it have left.
    """

    def __init__(
        self,
        hello: pb.Hello,
        *,
        worker_timeout: float,
        closed_timeout: float = 0.0,
        round_timeout: float,
        warn_after: float = 30.0,
        max_shards: int = 500_000,
        budget: Budget | None = None,
        tally: JobCounters | None = None,
        before: "Job | None" = None,
    ) -> None:
        self.name = hello.job
        self.num_workers: int = hello.num_workers if before is None else before.num_workers
        self.worker_timeout = worker_timeout
        self._closed_timeout = min(closed_timeout, worker_timeout) or worker_timeout
        self.round_timeout = round_timeout
        self.max_shards = max_shards
        self.shards = 0
        """How many it has declared."""
        self.budget = budget or Budget()
        self.tally = tally or JobCounters()
        self.workers: dict[int, Worker] = {}
        """Those that joined, by rank; they stay after they left."""
        self.keys: dict[int, Key] = {}
        """The declared keys by id."""
        self.failure: FaultError | None = None
        """Why the job failed; then nothing is held any more."""
        self.failed_at: float | None = None
        self.told: dict[int, int] = {}
        """The incarnation of each rank that was refused with what ended the job, by rank."""
        self._turned_away: dict[int, str] = {}
        """The last process that was refused since its rank is taken, by rank."""
        self.ended = False
        """Whether it was told to `end`."""
        self.held_bytes = 0
        """Bytes of contributions and results that are referred to."""
        self.rounds_completed = 0
        self.timings = Timings()
        """When contributions came, where their senders want to know."""
        self.first: pb.Hello = hello if before is None else before.first
        """The first hello, which all others must agree with."""
        self._ranks = tuple(range(self.num_workers))
        self._farewells = Departures(self.num_workers, self.workers)
        self._departed: set[int] = set()
        """Ranks that had left before this job began. They may come again, as its workers."""
        self._impatience = StallWarnings(warn_after)
        self._resumed_at: float | None = None
        """When the first worker came that had been in the job before this aggregator process knew of it."""
        self._inherits = False
        """Whether some rank has a sum that was made before this aggregator process knew of the job: all ranks have
        taken part in that, so no process can be in the job that was not in it before."""
        self.waiting: OrderedDict[tuple[int, int], tuple[Key, ShardRounds[object]]] = OrderedDict()
        """Shards whose round has some contributions but not all, by (key, shard), the oldest round first."""
        if before is not None:
            self.workers |= before.workers
            self._departed |= before.workers.keys()
            self._farewells.left |= self._departed

    def __repr__(self) -> str:
        return f"<Job {self.name!r} workers={sorted(self.workers)}/{self.num_workers} waiting={len(self.waiting)}>"

    @property
    def complete(self) -> bool:
        """Whether every rank has joined."""
        return len(self.workers) == self.num_workers

    @property
    def over(self) -> bool:
        """Whether nobody will use the job any more: all who joined have left, or it failed, and they are gone."""
        if any(w.connected for w in self.workers.values()):
            return False
        return self.failure is not None or self._farewells.over

    @property
    def uncredited(self) -> bool:
        """Whether a contribution counts against some worker's credit, so that `tick` should come soon."""
        return any(w.uncredited for w in self.workers.values())

    def join(self, hello: pb.Hello, peer: str, now: float) -> tuple[list[Action], FaultError | None]:
        """A worker introduces itself.

        Returns:
            What to do, and why the worker is refused (None: it has joined).
        """
        holder = self.workers.get(hello.rank)
        same = holder is not None and hello.incarnation and holder.hello.incarnation == hello.incarnation
        if self.failure is not None:
            if holder is not None and hello.incarnation and not same and not hello.resuming:
                # It is of the next run, which begins when all of this one are gone.
                return [], failures.still_ending(self, holder, hello, peer)
            self.told[hello.rank] = hello.incarnation
            return [], self.failure
        if (refusal := failures.disagreement(self, hello, peer)) is not None:
            self.told[hello.rank] = hello.incarnation
            # A stranger must not end a job that is complete without it. While ranks are missing it is one of them.
            return ([] if self.complete else self.fail(refusal, now)), refusal
        if holder is not None and same:
            # The same process: its connection broke, though the end of the old one may not have been seen yet. After
            # its goodbye too: it waits for the answer, and says it again.
            holder.connected, holder.peer, holder.last_heard = True, peer, now
            holder.uncredited.clear()
            holder.taking_leave = False
            return [], None
        if hello.rank in self._departed and not hello.resuming:
            self._departed.discard(hello.rank)
            self._farewells.left.discard(hello.rank)
        elif holder is not None and (
            holder.connected or holder.left or holder.contributed or self._farewells.left - self._departed
        ):
            taken = failures.taken(self, holder, hello, peer, now)
            if not self._is_replaced(holder, hello, now):
                return [], taken
            if not holder.contributed and self._connected():
                # Some have left in good order, and the others are about to.
                return [], taken
            # The job cannot go on with a process that begins at the beginning, and the one before is not coming back.
            return self.fail(failures.replaced(self, holder, hello, peer, now), now), taken
        if self._inherits and not hello.resuming:
            return [], failures.begun_without(self, hello, peer)
        self.workers[hello.rank] = Worker(hello, peer, joined=now, last_heard=now)
        if hello.resuming and self._resumed_at is None:
            self._resumed_at = now
        return [], None

    def turn_away(self, hello: pb.Hello) -> bool:
        """Notes that a worker was refused since its rank is taken; returns whether it is the first time."""
        first = self._turned_away.get(hello.rank) != hello.worker
        self._turned_away[hello.rank] = hello.worker
        return first

    def declare(self, rank: int, declared: pb.Key, now: float) -> list[Action]:
        """A worker describes a key.

        Raises:
            ProtocolError: The description contradicts itself.
        """
        if self.failure is not None:
            return []
        key = self.keys.get(declared.id)
        if key is None:
            shards = self.shards + max(1, len(declared.shards))
            if shards > self.max_shards:
                return self.fail(failures.too_many_shards(self, declared, shards), now)
            self.keys[declared.id] = key = Key(declared, rank, self.num_workers)
            self.shards = shards
            if not self.budget.reserve(need := self._need(key)):
                # Nothing was set aside that failing it would release.
                failure = failures.exhausted(self, key, need)
                key.fail(failure)
                return [Report(failure, self._connected())]
        if key.failure is not None:
            return [Report(key.failure, (rank,))]
        if (disagreement := key.disagreement(declared, rank)) is not None:
            return self._fail_key(key, disagreement)
        key.learn(declared.label, rank)
        if any(shard.round > 0 and key.shards[shard.index].inherited for shard in declared.shards):
            self._inherits = True
            if newcomers := [r for r, w in self.workers.items() if not w.hello.resuming]:
                return self.fail(failures.started_again(self, newcomers), now)
        for shard in declared.shards:
            if not self._in_step(key.shards[shard.index], shard.round):
                return self._fail_key(key, failures.out_of_step(self, key, shard, rank))
        wanted = [
            (key.id, shard.index, key.shards[shard.index].round - 1)
            for shard in declared.shards
            if self._reconcile(key, shard, rank, now)
        ]
        return [Ask(rank, tuple(wanted))] if wanted else []

    def contribute(
        self, rank: int, entry: ShardRound, payload: memoryview | None, now: float, message_bytes: int = 0
    ) -> list[Action]:
        """A worker pushes a shard (payload) or asks for one of a broadcast (None).

        Args:
            rank: The worker.
            entry: Which shard, and which round of it.
            payload: Its value.
            now: The time.
            message_bytes: How much a view of the payload keeps alive, 0 where not much more than itself.

        Raises:
            ProtocolError: There is no such key or shard, or the payload or the round is not what is expected.
        """
        if self.failure is not None:
            return []
        key_id, index, round = entry.id, entry.shard, entry.round
        key = self.keys.get(key_id)
        if key is None:
            raise ProtocolError(f"rank {rank} contributed to key id {key_id:#x}, which it has not declared")
        if key.failure is not None:
            return []
        shard = key.shards.get(index)
        if shard is None:
            raise ProtocolError(
                f"rank {rank} contributed to shard {index} of key {key.title}, which is none of those declared"
            )
        whole, sends = key.sizes[index], not key.broadcast or rank == 0
        size = len(payload) if payload is not None else 0
        if (payload is not None) is not sends or (sends and size != whole):
            raise ProtocolError(
                f"rank {rank} contributed {'nothing' if payload is None else f'{size} bytes'} to shard {index} of key"
                f" {key.name!r}; expected {whole if sends else 'a pull'}"
            )
        # A rank whose round completes has what it needs of the round before: that result is let go.
        kept = whole if shard.last_result is not None else 0
        asked = bool(shard.waiters)
        verdict = shard.contribute(rank, round, _NOTHING if payload is None else payload, entry.priority, now)
        worker = self.workers[rank]
        self.tally.contributed(key.broadcast, verdict, size, now - (shard.since or now))
        if (entry.timed or self.timings.rounds) and verdict in (Verdict.TAKE, Verdict.COMPLETE):
            complete = verdict is Verdict.COMPLETE
            self.timings.contributed(key, entry.shard, entry.round, rank, asked=entry.timed, complete=complete)
        match verdict:
            case Verdict.TAKE:
                worker.contributed = True
                self.held_bytes += size
                self.waiting[key_id, index] = (key, shard)
                if 2 * size < message_bytes:
                    # However long the round waits, it would keep the whole message, which no budget counts.
                    shard.copy(rank)
                if payload:
                    worker.uncredited.append((now, key, index, round))
                return self._fail_if_deserted(key, shard) if self._farewells.left else []
            case Verdict.COMPLETE:
                worker.contributed = True
                self.held_bytes += size - kept
                self.waiting.pop((key_id, index), None)
                given = shard.in_rank_order()
                contributions = given[:1] if key.broadcast else given
                return [Sum(key, index, round, shard.priority or 0, contributions)]
            case Verdict.REPLAY:
                return [Deliver(key, index, round, entry.priority, shard.last_result, (rank,))]
            case Verdict.WAIT:
                self.waiting.setdefault((key_id, index), (key, shard))
                worker.uncredited.append((now, key, index, round))
                if shard.holder is None or asked:
                    return []
                return [Ask(shard.holder, ((key_id, index, round),))]
            case Verdict.IGNORE:
                # Its sender has put it against its credit once more.
                worker.uncredited.append((now, key, index, round))
                return []
            case Verdict.REFUSE:
                raise ProtocolError(
                    f"rank {rank} contributed to round {round} of key {key.title} shard {index},"
                    f" which is at round {shard.round}"
                )

    def summed(self, key: Key, index: int, result: object) -> list[Action]:
        """The sum that a Sum action asked for was made."""
        shard = key.shards.get(index)
        if shard is None or shard.phase is not Phase.SUMMING:
            # The key or the job failed meanwhile.
            return []
        round, priority = shard.round, shard.priority or 0
        # In a broadcast one rank has contributed bytes, else all have.
        self.held_bytes -= 0 if key.broadcast else key.sizes[index] * (self.num_workers - 1)
        shard.complete(result)
        self.rounds_completed += 1
        deliver = Deliver(key, index, round, priority, result, self._ranks)
        return [*self.timings.summed(key, index, round), deliver] if self.timings.rounds else [deliver]

    def restore(self, rank: int, entry: ShardRound, payload: memoryview) -> list[Action]:
        """A worker gives back the sum of a round that this aggregator process has not made.

        Raises:
            ProtocolError: It is not of the size of the shard.
        """
        key = self.keys.get(entry.id)
        shard = key.shards.get(entry.shard) if key is not None else None
        if key is None or shard is None or shard.last_result is not None or entry.round != shard.round - 1:
            # The key failed, or the sum came from another rank already.
            return []
        if len(payload) != key.sizes[entry.shard]:
            raise ProtocolError(
                f"rank {rank} gave back {len(payload)} bytes as the sum of key {key.title} shard {entry.shard};"
                f" expected {key.sizes[entry.shard]}"
            )
        return [Sum(key, entry.shard, entry.round, entry.priority, (payload,), restored=True)]

    def restored(self, key: Key, index: int, round: int, result: object) -> list[Action]:
        """The sum that was given back can be sent."""
        shard = key.shards.get(index)
        if shard is None or shard.last_result is not None or shard.round != round + 1:
            return []
        if shard.phase is Phase.SUMMING:
            # All ranks have begun the next round, hence have this sum.
            return []
        self.held_bytes += key.sizes[index]
        waiters = shard.restore(result)
        if shard.since is None:
            self.waiting.pop((key.id, index), None)
        return [Deliver(key, index, round, shard.priority or 0, result, waiters)]

    def abort(self, rank: int, message: pb.Abort) -> list[Action]:
        """A worker says that it will not contribute to a round."""
        key = self.keys.get(message.id)
        if self.failure is not None or key is None or key.failure is not None:
            return []
        return self._fail_key(key, failures.aborted(self, key, rank, message))

    def leave(self, rank: int, now: float) -> list[Action]:
        """A worker leaves in good order; what still needs a contribution of it fails. It is released in time."""
        worker = self.workers[rank]
        if worker.taking_leave:
            return []
        worker.uncredited.clear()
        farewell = self._farewells.begin(rank, now)
        actions: list[Action] = []
        for key, shard in list(self.waiting.values()):
            # Where nobody has contributed yet, some rank waits for the sum of the round before, and for no other rank.
            if shard.missing < self.num_workers:
                actions += self._fail_if_deserted(key, shard)
        return actions + farewell + self._farewells.releases(now)

    def leave_early(self, rank: int, goodbye: pb.Goodbye, now: float) -> list[Action]:
        """A worker leaves before its work is done: it is released at once, and the job fails.

        Where it has taken part in nothing at all, the job waits for another process in its place instead.
        """
        worker = self.workers[rank]
        if worker.taking_leave:
            return []
        worker.taking_leave = True
        others = tuple(other for other in self._connected() if other != rank)
        if self.failure is None and goodbye.replaceable and not worker.contributed:
            # Its stream ends next, from when on its place is kept.
            return [Warn(failures.replaceable(self, worker, goodbye.fault), others), Release(rank)]
        worker.left, worker.release_at = True, None
        self._farewells.left.add(rank)
        return [*self.fail(failures.ended_early(self, worker, goodbye.fault), now, others), Release(rank)]

    def synced(self, rank: int, number: int, now: float) -> list[Action]:
        """A worker lacks no sum any more; the number is that of the sync, which is the leaving rank."""
        self._farewells.synced(rank, number)
        return self._farewells.releases(now)

    def end(self) -> None:
        """Lets go of everything: all workers have left."""
        self.ended = True
        for key in self.keys.values():
            # Others may still have the key, such as the workers' accounts of credit; what it holds is not theirs.
            key.shards.clear()
        self.budget.release(sum(self._need(key) for key in self.keys.values() if key.failure is None))
        self.keys.clear()
        self.waiting.clear()
        self.timings.clear()
        self.held_bytes = 0

    def open_rounds(self) -> list[tuple[int, int, int]]:
        """The rounds to be finished before this aggregator may end: (key's id, shard, round).

        Some rank has contributed, there is no result yet, and all who are missing are connected. A round that waits for
        others cannot be finished, as no new streams are taken any more.
        """
        here = set(self._connected())
        return [
            (key.id, index, shard.round)
            for key in self.keys.values()
            for index, shard in key.shards.items()
            if shard.missing < self.num_workers and here.issuperset(shard.waiting_for())
        ]

    def kept_seconds(self, worker: Worker) -> float:
        """How long the place of a worker that vanished is kept."""
        return self._closed_timeout if worker.closed and worker.contributed else self.worker_timeout

    def lost(self, rank: int, now: float, *, closed: bool = False) -> list[Action]:
        """A worker's stream ended without a goodbye, or after one; whether it was closed, and not silent."""
        worker = self.workers[rank]
        worker.connected, worker.closed = False, closed
        worker.last_heard = now
        worker.uncredited.clear()
        return []

    def tick(self, now: float) -> list[Action]:
        """Time passes: returns credit that is held for long, and fails what has waited too long."""
        actions: list[Action] = []
        if self._resumed_at is not None and not self.complete and now - self._resumed_at > self.worker_timeout:
            return self.fail(failures.not_back(self), now)
        for rank, worker in self.workers.items():
            if not worker.connected and not worker.left and now - worker.last_heard > self.kept_seconds(worker):
                return self.fail(failures.vanished(self, rank, now), now)
            if returned := tuple(self._credit_due(worker, now)):
                actions.append(ReturnCredit(rank, returned))
        actions += self._farewells.releases(now)
        while self.waiting:
            key, shard = next(iter(self.waiting.values()))
            if shard.since is None or now - shard.since <= self.round_timeout:
                break
            actions += self._fail_key(key, failures.timed_out(self, key, shard, now))
        return actions + self._warnings(now)

    def fail(self, failure: FaultError, now: float, ranks: tuple[int, ...] | None = None) -> list[Action]:
        """Ends the job for every rank, and lets go of everything that it holds.

        Args:
            failure: Why.
            now: The time.
            ranks: Who is told; None: all that are connected.
        """
        if self.failure is not None:
            return []
        self.failure, self.failed_at = failure, now
        for key in self.keys.values():
            self._let_go(key, failure)
        self.keys.clear()
        self.waiting.clear()
        self.timings.clear()
        self.held_bytes = 0
        for worker in self.workers.values():
            worker.uncredited.clear()
        return [Report(failure, self._connected() if ranks is None else ranks)]

    def check(self) -> None:
        """Asserts what always holds; for tests."""
        held = 0
        waiting = set()
        for key in self.keys.values():
            assert key.failure is None or not key.shards
            for index, shard in key.shards.items():
                held += sum(map(len, shard.contributions.values()))
                held += key.sizes[index] if shard.last_result is not None else 0
                assert shard.missing == len(list(shard.waiting_for()))
                assert (shard.phase is Phase.SUMMING) == (shard.missing == 0)
                begun = shard.missing < self.num_workers or bool(shard.waiters)
                assert (shard.since is not None) == begun
                assert not shard.waiters or shard.last_result is None
                if shard.phase is Phase.GATHERING and begun:
                    waiting.add((key.id, index))
        assert waiting == set(self.waiting)
        assert held == self.held_bytes
        assert len(self.timings) <= self.shards
        assert sum(self._need(key) for key in self.keys.values() if key.failure is None) <= self.budget.reserved_bytes

    @staticmethod
    def _is_replaced(holder: Worker, hello: pb.Hello, now: float) -> bool:
        """Whether another process has come in the place of a worker that vanished, so that this one is not waited for.

        One that was started when the worker had vanished was started because of that. One that was there before may be
        a second worker with the same rank by mistake: it counts only when the first one has had time to come back.
        """
        if holder.connected or holder.left or hello.resuming:
            return False
        return now - hello.age_seconds > holder.last_heard or now - holder.last_heard >= REPLACED_SECONDS

    @staticmethod
    def _in_step(shard: ShardRounds[object], round: int) -> bool:
        """Whether a rank can be at this round: at the current one, at the one before, whose result it then lacks, or,
        where this aggregator process has seen no round of the shard end, at the next one."""
        # While a rank waits for the sum of the round before, nobody can have that of this one.
        ahead = shard.inherited and shard.phase is Phase.GATHERING and not shard.waiters
        return shard.round - 1 <= round <= shard.round + (1 if ahead else 0)

    def _reconcile(self, key: Key, declared: pb.Shard, rank: int, now: float) -> bool:
        """Compares the round that a rank is at with the shard's; returns whether to ask this rank for its last sum."""
        shard = key.shards[declared.index]
        if declared.round > shard.round:
            self.held_bytes -= sum(map(len, shard.contributions.values()))
            self.waiting.pop((key.id, declared.index), None)
            shard.adopt(rank, now)
            if shard.waiters:
                self.waiting[key.id, declared.index] = (key, shard)
        if declared.round != shard.round or shard.round == 0 or shard.last_result is not None:
            return False
        if shard.phase is Phase.GATHERING and shard.inherited:
            shard.holder = rank
        return bool(shard.waiters)

    def _fail_if_deserted(self, key: Key, shard: ShardRounds[object]) -> list[Action]:
        """Fails the key where its current round needs a rank that has left."""
        if key.failure is not None:
            return []
        gone = sorted(self._farewells.left - shard.contributions.keys())
        if not gone:
            return []
        return self._fail_key(key, failures.deserted(self, key, shard, gone))

    def _fail_key(self, key: Key, failure: FaultError) -> list[Action]:
        for index, shard in key.shards.items():
            self.waiting.pop((key.id, index), None)
            self.held_bytes -= sum(map(len, shard.contributions.values()))
            self.held_bytes -= key.sizes[index] if shard.last_result is not None else 0
        self._let_go(key, failure)
        self.timings.forget(key)
        return [Report(failure, self._connected())]

    def _need(self, key: Key) -> int:
        """What a key may come to take."""
        return key.nbytes * (self.num_workers + 1)

    def _let_go(self, key: Key, failure: FaultError) -> None:
        if key.failure is None:
            self.budget.release(self._need(key))
            key.fail(failure)

    def _warnings(self, now: float) -> list[Action]:
        """Speaks of the oldest of the rounds that wait only: mostly those behind it wait for the same ranks."""
        if not self.waiting:
            return []
        (_, index), (key, shard) = next(iter(self.waiting.items()))
        if shard.since is None or not self._impatience.due((key.id, index, shard.round), now - shard.since):
            return []
        waiting = shard.waiters or set(range(self.num_workers)) - set(shard.waiting_for())
        ranks = tuple(rank for rank in self._connected() if rank in waiting)
        return [Warn(failures.waits(self, key, shard, now), ranks)]

    def _credit_due(self, worker: Worker, now: float) -> Iterator[tuple[int, int, int]]:
        rank = worker.hello.rank
        while worker.uncredited and now - worker.uncredited[0][0] >= CREDIT_HOLD_SECONDS:
            _, key, index, round = worker.uncredited.popleft()
            shard = key.shards.get(index)
            if shard is None or shard.phase is not Phase.GATHERING:
                continue
            if shard.round == round or (shard.round == round + 1 and rank in shard.waiters):
                # With its credit the worker gets back its shared memory.
                if isinstance(shard.contributions.get(rank, _NOTHING).obj, mmap.mmap):
                    shard.copy(rank)
                yield key.id, index, round

    def _connected(self) -> tuple[int, ...]:
        return tuple(rank for rank, worker in self.workers.items() if worker.connected)
