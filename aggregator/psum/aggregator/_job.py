"""One training job on one aggregator: its workers, its keys, and what follows from what they do.

Events in, actions out, without I/O. The shell calls `join`, `declare`, `contribute`, `abort`, `leave` and `lost` as
messages and disconnections arrive, `summed` when a sum is made, and `tick` from time to time; each returns the actions
that follow. A method that raises ProtocolError has changed nothing: the shell ends that worker's stream.
"""

import dataclasses
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Final

from psum.aggregator._actions import Action, Deliver, Report, ReturnCredit, Sum
from psum.aggregator._key import Key
from psum.aggregator._round import Phase, ShardRounds, Verdict
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import (
    AbortedError,
    DisagreementError,
    FaultError,
    ProtocolError,
    RoundTimeoutError,
    TakenError,
    WorkerLostError,
)

#: How long a contribution may count against its worker's credit while its round waits for others. Without a limit, two
#: workers that push different keys first would wait for each other for ever.
CREDIT_HOLD_SECONDS: Final = 0.01

_NOTHING: Final = memoryview(b"")


@dataclasses.dataclass(slots=True)
class Worker:
    """One rank of the job, as its hello introduced it."""

    hello: pb.Hello
    peer: str
    joined: float
    last_heard: float
    connected: bool = True
    left: bool = False
    contributed: bool = False
    """Whether it took part in any round; one that vanished before may be replaced."""
    received_bytes: int = 0
    sent_bytes: int = 0
    uncredited: deque[tuple[float, Key, int, int]] = dataclasses.field(default_factory=deque)
    """Contributions that count against this worker's credit: since when, key, shard, round."""

    def __str__(self) -> str:
        return f"{self.hello.worker or 'unnamed worker'} ({self.peer})"


class Job:
    """The state of one job.

    Args:
        hello: The first worker's hello, which says what all must agree on.
        worker_timeout: Seconds for which the place of a vanished worker is kept.
        round_timeout: Seconds for which a round may wait.
    """

    def __init__(self, hello: pb.Hello, *, worker_timeout: float, round_timeout: float) -> None:
        self.name = hello.job
        self.num_workers = hello.num_workers
        self.worker_timeout = worker_timeout
        self.round_timeout = round_timeout
        self.workers: dict[int, Worker] = {}
        """Those that joined, by rank; they stay after they left."""
        self.keys: dict[int, Key] = {}
        """The declared keys by id."""
        self.failure: FaultError | None = None
        """Why the job failed; then nothing is held any more."""
        self.failed_at: float | None = None
        self.held_bytes = 0
        """Bytes of contributions and results that are referred to."""
        self.rounds_completed = 0
        self._first: pb.Hello = hello
        self._waiting: OrderedDict[tuple[int, int], tuple[Key, ShardRounds[object]]] = OrderedDict()
        """Shards whose round has some contributions but not all, by (key, shard), the oldest round first."""

    def __repr__(self) -> str:
        return f"<Job {self.name!r} workers={sorted(self.workers)}/{self.num_workers} waiting={len(self._waiting)}>"

    @property
    def complete(self) -> bool:
        """Whether every rank has joined."""
        return len(self.workers) == self.num_workers

    @property
    def over(self) -> bool:
        """Whether nobody will use the job any more: all who joined have left, or it failed and they are gone."""
        if self.failure is not None:
            return not any(w.connected for w in self.workers.values())
        return bool(self.workers) and all(w.left for w in self.workers.values())

    @property
    def uncredited(self) -> bool:
        """Whether a contribution counts against some worker's credit, so that `tick` should come soon."""
        return any(w.uncredited for w in self.workers.values())

    def join(self, hello: pb.Hello, peer: str, now: float) -> tuple[list[Action], FaultError | None]:
        """A worker introduces itself.

        Returns:
            What to do, and why the worker is refused (None: it has joined).
        """
        if self.failure is not None:
            return [], self.failure
        if (refusal := self._disagreement(hello, peer)) is not None:
            # A stranger must not end a job that is complete without it. While ranks are missing it is one of them.
            return ([] if self.complete else self.fail(refusal, now)), refusal
        holder = self.workers.get(hello.rank)
        if holder is not None and (holder.connected or holder.left or holder.contributed):
            state = (
                "which has left it"
                if holder.left
                else f"connected {now - holder.joined:.1f} s ago"
                if holder.connected
                else f"which vanished {now - holder.last_heard:.1f} s ago"
            )
            return [], TakenError(
                f"rank {hello.rank} of job {self.name!r} is taken by {holder}, {state};"
                f" refused {hello.worker or 'an unnamed worker'} ({peer})."
                " Give every worker its own PSUM_RANK, and every job its own PSUM_JOB",
                ranks=[hello.rank],
            )
        self.workers[hello.rank] = Worker(hello, peer, joined=now, last_heard=now)
        return [], None

    def declare(self, rank: int, declared: pb.Key, now: float) -> list[Action]:
        """A worker describes a key.

        Raises:
            ProtocolError: The description contradicts itself.
        """
        if self.failure is not None:
            return []
        key = self.keys.get(declared.id)
        if key is None:
            self.keys[declared.id] = key = Key(declared, rank, self.num_workers)
            if any(s.round for s in declared.shards):
                return self._fail_key(key, self._lost_state(key, rank))
        if key.failure is not None:
            return [Report(key.failure, (rank,))]
        if (disagreement := key.disagreement(declared, rank)) is not None:
            return self._fail_key(key, disagreement)
        return []

    def contribute(self, rank: int, entry: pb.ShardRound, payload: memoryview | None, now: float) -> list[Action]:
        """A worker pushes a shard (payload) or asks for one of a broadcast (None).

        Raises:
            ProtocolError: There is no such key or shard, or the payload or the round is not what is expected.
        """
        if self.failure is not None:
            return []
        key = self.keys.get(entry.id)
        if key is None:
            raise ProtocolError(f"rank {rank} contributed to key id {entry.id:#x}, which it has not declared")
        if key.failure is not None:
            return []
        shard = key.shards.get(entry.shard)
        if shard is None:
            raise ProtocolError(
                f"rank {rank} contributed to shard {entry.shard} of key {key.name!r}, which is none of those declared"
            )
        sends = not key.broadcast or rank == 0
        if (payload is not None) is not sends or (payload is not None and len(payload) != key.sizes[entry.shard]):
            raise ProtocolError(
                f"rank {rank} contributed {'nothing' if payload is None else f'{len(payload)} bytes'} to shard"
                f" {entry.shard} of key {key.name!r}; expected {key.sizes[entry.shard] if sends else 'a pull'}"
            )
        size = len(payload) if payload is not None else 0
        # A rank whose round completes has what it needs of the round before: that result is let go.
        kept = key.sizes[entry.shard] if shard.last_result is not None else 0
        verdict = shard.contribute(rank, entry.round, _NOTHING if payload is None else payload, entry.priority, now)
        worker = self.workers[rank]
        match verdict:
            case Verdict.TAKE:
                worker.contributed = True
                self.held_bytes += size
                self._waiting[key.id, entry.shard] = (key, shard)
                if payload:
                    worker.uncredited.append((now, key, entry.shard, entry.round))
                return self._fail_if_deserted(key, shard)
            case Verdict.COMPLETE:
                worker.contributed = True
                self.held_bytes += size - kept
                self._waiting.pop((key.id, entry.shard), None)
                given = (c for c in shard.contributions if c is not None)
                contributions = (next(given),) if key.broadcast else tuple(given)
                return [Sum(key, entry.shard, entry.round, shard.priority or 0, contributions)]
            case Verdict.REPLAY:
                return [Deliver(key, entry.shard, entry.round, entry.priority, shard.last_result, (rank,))]
            case Verdict.IGNORE:
                return []
            case Verdict.REFUSE:
                raise ProtocolError(
                    f"rank {rank} contributed to round {entry.round} of key {key.name!r} shard {entry.shard},"
                    f" which is at round {shard.round}"
                )

    def summed(self, key: Key, index: int, result: object) -> list[Action]:
        """The sum that a Sum action asked for was made."""
        shard = key.shards.get(index)
        if shard is None or shard.phase is not Phase.SUMMING:
            # The key or the job failed meanwhile.
            return []
        round, priority = shard.round, shard.priority or 0
        self.held_bytes += key.sizes[index] - sum(map(len, filter(None, shard.contributions)))
        shard.complete(result)
        self.rounds_completed += 1
        return [Deliver(key, index, round, priority, result, tuple(range(self.num_workers)))]

    def abort(self, rank: int, message: pb.Abort) -> list[Action]:
        """A worker says that it will not contribute to a round."""
        key = self.keys.get(message.id)
        if self.failure is not None or key is None or key.failure is not None:
            return []
        return self._fail_key(
            key,
            AbortedError(
                f"rank {rank} of job {self.name!r} could not contribute to key {key.name!r} round {message.round}:"
                f" {message.text}",
                key=key.id,
                round=message.round,
                ranks=[rank],
            ),
        )

    def leave(self, rank: int) -> list[Action]:
        """A worker leaves in good order; whatever still needs it fails."""
        worker = self.workers[rank]
        worker.left = True
        worker.uncredited.clear()
        actions: list[Action] = []
        for key, shard in list(self._waiting.values()):
            actions += self._fail_if_deserted(key, shard)
        return actions

    def lost(self, rank: int, now: float) -> list[Action]:
        """A worker's stream ended without a goodbye, or after one."""
        worker = self.workers[rank]
        worker.connected = False
        worker.last_heard = now
        worker.uncredited.clear()
        return []

    def tick(self, now: float) -> list[Action]:
        """Time passes: returns credit that is held for long, and fails what has waited too long."""
        actions: list[Action] = []
        for rank, worker in self.workers.items():
            if not worker.connected and not worker.left and now - worker.last_heard > self.worker_timeout:
                return self.fail(
                    WorkerLostError(
                        f"rank {rank} of job {self.name!r}, {worker}, vanished {now - worker.last_heard:.1f} s ago and"
                        f" did not come back within the worker timeout of {self.worker_timeout:g} s;"
                        " look into its log, then start the job again",
                        ranks=[rank],
                    ),
                    now,
                )
            if returned := tuple(self._credit_due(worker, now)):
                actions.append(ReturnCredit(rank, returned))
        while self._waiting:
            key, shard = next(iter(self._waiting.values()))
            if shard.since is None or now - shard.since <= self.round_timeout:
                break
            actions += self._fail_key(key, self._timed_out(key, shard, now))
        return actions

    def fail(self, failure: FaultError, now: float) -> list[Action]:
        """Ends the job for every rank, and lets go of everything that it holds."""
        if self.failure is not None:
            return []
        self.failure, self.failed_at = failure, now
        for key in self.keys.values():
            key.fail(failure)
        self.keys.clear()
        self._waiting.clear()
        self.held_bytes = 0
        for worker in self.workers.values():
            worker.uncredited.clear()
        return [Report(failure, self._connected())]

    def status(self, now: float) -> pb.JobStatus:
        """What an operator wants to know."""
        return pb.JobStatus(
            name=self.name,
            num_workers=self.num_workers,
            workers=[
                pb.WorkerStatus(
                    rank=rank,
                    worker=worker.hello.worker,
                    peer=worker.peer,
                    connected=worker.connected,
                    last_heard_seconds=now - worker.last_heard,
                    received_bytes=worker.received_bytes,
                    sent_bytes=worker.sent_bytes,
                    left=worker.left,
                )
                for rank, worker in sorted(self.workers.items())
            ],
            keys=len(self.keys),
            held_bytes=self.held_bytes,
            rounds_completed=self.rounds_completed,
            rounds_waiting=len(self._waiting),
            rounds=[
                pb.RoundStatus(
                    key=key.name,
                    shard=index,
                    round=shard.round,
                    waiting_seconds=now - (shard.since or now),
                    waiting_for=shard.waiting_for(),
                )
                for (_, index), (key, shard) in _first(64, self._waiting.items())
            ],
        )

    def check(self) -> None:
        """Asserts what always holds; for tests."""
        held = 0
        waiting = set()
        for key in self.keys.values():
            assert key.failure is None or not key.shards
            for index, shard in key.shards.items():
                held += sum(map(len, filter(None, shard.contributions)))
                held += key.sizes[index] if shard.last_result is not None else 0
                assert shard.missing == len(list(shard.waiting_for()))
                assert (shard.phase is Phase.SUMMING) == (shard.missing == 0)
                assert (shard.since is None) == (shard.missing == self.num_workers)
                if shard.phase is Phase.GATHERING and shard.missing < self.num_workers:
                    waiting.add((key.id, index))
        assert waiting == set(self._waiting)
        assert held == self.held_bytes

    def _disagreement(self, hello: pb.Hello, peer: str) -> DisagreementError | None:
        first = self._first
        differences = [
            f"{what}: rank {first.rank} has {old}, rank {hello.rank} has {new}"
            for what, old, new in (
                ("the number of workers (PSUM_NUM_WORKERS)", first.num_workers, hello.num_workers),
                ("the partition size (PSUM_PARTITION_BYTES)", first.partition_bytes, hello.partition_bytes),
                ("the list of aggregators (PSUM_AGGREGATORS)", list(first.aggregators), list(hello.aggregators)),
                ("the weights of the aggregators", list(first.weights), list(hello.weights)),
                ("this aggregator's place in the list", first.aggregator_index, hello.aggregator_index),
            )
            if old != new
        ]
        if not differences:
            return None
        one = self.workers.get(first.rank)
        return DisagreementError(
            f"ranks of job {self.name!r} disagree on " + "; on ".join(differences) + f". Rank {first.rank} is"
            f" {one or first.worker}, rank {hello.rank} is {hello.worker} ({peer})."
            " Give all workers of a job the same settings, and every job its own PSUM_JOB",
            ranks=sorted({first.rank, hello.rank}),
        )

    def _lost_state(self, key: Key, rank: int) -> FaultError:
        return WorkerLostError(
            f"rank {rank} is in the midst of key {key.name!r}, of which this aggregator knows nothing:"
            " it was started again during the training. Start the job again",
            key=key.id,
        )

    def _timed_out(self, key: Key, shard: ShardRounds[object], now: float) -> RoundTimeoutError:
        ranks = list(shard.waiting_for())
        who = ", ".join(f"rank {r}" + ("" if r in self.workers else " (never joined)") for r in ranks)
        return RoundTimeoutError(
            f"job {self.name!r} key {key.name!r} round {shard.round} has waited {now - (shard.since or now):.1f} s for"
            f" {who}, longer than the round timeout of {self.round_timeout:g} s; see what keeps them busy",
            key=key.id,
            round=shard.round,
            ranks=ranks,
        )

    def _fail_if_deserted(self, key: Key, shard: ShardRounds[object]) -> list[Action]:
        """Fails the key where its current round needs a rank that has left."""
        if key.failure is not None:
            return []
        gone = [r for r in shard.waiting_for() if r in self.workers and self.workers[r].left]
        if not gone:
            return []
        who = ", ".join(f"rank {r} ({self.workers[r].hello.worker})" for r in gone)
        return self._fail_key(
            key,
            WorkerLostError(
                f"{who} has left job {self.name!r} without contributing to key {key.name!r} round {shard.round};"
                " all ranks must push the same keys the same number of times",
                key=key.id,
                round=shard.round,
                ranks=gone,
            ),
        )

    def _fail_key(self, key: Key, failure: FaultError) -> list[Action]:
        for index, shard in key.shards.items():
            self._waiting.pop((key.id, index), None)
            self.held_bytes -= sum(map(len, filter(None, shard.contributions)))
            self.held_bytes -= key.sizes[index] if shard.last_result is not None else 0
        key.fail(failure)
        return [Report(failure, self._connected())]

    def _credit_due(self, worker: Worker, now: float) -> Iterator[tuple[int, int, int]]:
        while worker.uncredited and now - worker.uncredited[0][0] >= CREDIT_HOLD_SECONDS:
            _, key, index, round = worker.uncredited.popleft()
            shard = key.shards.get(index)
            if shard is not None and shard.round == round and shard.phase is Phase.GATHERING:
                yield key.id, index, round

    def _connected(self) -> tuple[int, ...]:
        return tuple(rank for rank, worker in self.workers.items() if worker.connected)


def _first(
    count: int, entries: Iterable[tuple[tuple[int, int], tuple[Key, ShardRounds[object]]]]
) -> Iterator[tuple[tuple[int, int], tuple[Key, ShardRounds[object]]]]:
    return (entry for _, entry in zip(range(count), entries, strict=False))
