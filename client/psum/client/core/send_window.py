"""What one worker sends to one aggregator: waiting shards, the next message, and what has no answer yet."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from psum.client.core.buffers import Memory
from psum.client.core.counters import Counters, OperationCounters
from psum.client.core.scheduler import Scheduler, Sendable
from psum.planes import InlineWorker, WorkerPlane
from psum.v1 import aggregator_pb2 as pb
from psum.wire import LARGE_PAYLOAD_BYTES, ShardRound, encode, from_columns, to_columns

#: The most keys that one message declares: some tens of kilobytes.
_KEYS_PER_DECLARE: Final = 512

#: The most shards that one message declares, which are many if keys are large. A single key may have more.
_SHARDS_PER_DECLARE: Final = 50_000


class Outgoing(Sendable, Protocol):
    """A shard of a running round, as a window sends it.

    Attributes:
        id: (key's id, shard).
        counters: Where it is counted.
        queued: When it began to wait, in seconds.
        sent: When it was sent last.
        credited: Whether its bytes no longer count against the credit, though its result has not come.
        lease: The plane that holds a place for its value, the place, and the bytes there; None if none is held.
    """

    id: tuple[int, int]
    counters: OperationCounters
    queued: float
    sent: float
    credited: bool
    lease: tuple[WorkerPlane, int, int] | None

    @property
    def round(self) -> int:
        """The round."""

    @property
    def record(self) -> object | None:
        """Not None if the aggregator is asked how long the round waited. Then `went` is called."""

    def payload(self) -> memoryview:
        """What is sent, unless it pulls. It is not changed before the result comes."""

    def whole_value(self) -> Memory | None:
        """What is sent to a sum, if it is smaller than LARGE_PAYLOAD_BYTES and needs nothing but to be sent.

        None: see `payload` and `record`.
        """

    def went(self, sent: float, copied: float) -> None:
        """Notes that its turn came at a time, and when its message was made."""


Item = TypeVar("Item", bound=Outgoing)


class SendWindow(Generic[Item]):
    """The messages to one aggregator, in the order in which they are sent, and the shards that it has not answered.

    Args:
        credit_bytes: Bytes that may be under way.
        counters: Where stalls are counted.
        clock: The time now, in seconds.
        contributors: How many ranks a contribution counts, as the aggregator is told. Only from a relay in an elastic
            job.
        brief: Whether messages may have columns of two entries; see `to_columns`. Only in elastic jobs.
    """

    def __init__(
        self,
        credit_bytes: int,
        counters: Counters,
        clock: Callable[[], float],
        contributors: Callable[[Item], int] | None = None,
        *,
        brief: bool = False,
    ) -> None:
        self.scheduler: Scheduler[Item] = Scheduler(credit_bytes)
        self.plane: WorkerPlane = InlineWorker()
        """How large payloads cross on the current stream."""
        self._following: list[memoryview] = []
        """Payloads that the last message announced, until they are taken."""
        self.contributed = False
        """Whether any shard was ever sent."""
        self.declarations: deque[pb.Key] = deque()
        """Keys that the aggregator has not been told of."""
        self.aborts: deque[pb.Abort] = deque()
        """Rounds that this worker cannot contribute to, and has not told the aggregator of."""
        self.restores: deque[tuple[ShardRound, memoryview | bytes]] = deque()
        """Sums that the aggregator asked for."""
        self.outstanding: dict[tuple[int, int], Item] = {}
        """Shards that were sent and have no result yet, by (key's id, shard)."""
        self.syncs: deque[int] = deque()
        """Numbers of the syncs that are not answered yet."""
        self.still_open: set[tuple[int, int, int]] | None = None
        """The rounds that the aggregator still finishes before it ends, as (key's id, shard, round); None if it does
        not end."""
        self.postponed: list[Item] = []
        """Shards of other rounds, kept for the aggregator's next process."""
        self.share = 0.0
        """The connection's share of the bytes on its link; 0 if it is not known."""
        self._credit_bytes = credit_bytes
        self._counters = counters
        self._clock = clock
        self._contributors = contributors
        self._brief = brief
        self._stalled_since: float | None = None
        """Since when a shard waits for credit."""

    @property
    def settled(self) -> bool:
        """Whether everything has its result."""
        return not (self.outstanding or self.postponed or self.scheduler)

    def add(self, part: Item) -> None:
        """Queues a shard, or keeps it for the aggregator's next process."""
        if self.still_open is None or (*part.id, part.round) in self.still_open:
            self.scheduler.add(part)
        else:
            self.postponed.append(part)

    def use_plane(self, plane: WorkerPlane) -> None:
        """Uses a plane from now on. To be called on a new stream, before anything is sent on it."""
        self.plane = plane
        self.scheduler.credit_bytes = self._credit_bytes if plane.credit_bytes is None else plane.credit_bytes
        self.scheduler.batch_bytes = plane.batch_bytes
        self.scheduler.staged_divisor = plane.staged_divisor

    def drain(self, still_open: Iterable[ShardRound]) -> None:
        """Notes that the aggregator is about to end, and finishes only these rounds."""
        self.still_open = {(row.id, row.shard, row.round) for row in still_open}
        for part in self.scheduler.clear():
            self.add(part)

    def start_again(self, declarations: Iterable[pb.Key], aborts: Iterable[pb.Abort]) -> None:
        """Begins anew on a new stream: declares everything again, and sends again what has no result."""
        unanswered = [*self.outstanding.values(), *self.postponed]
        self.outstanding.clear()
        self.postponed.clear()
        self.still_open = None
        self.syncs.clear()
        self.scheduler.forget_credit()
        self.restores.clear()
        self.declarations, self.aborts = deque(declarations), deque(aborts)
        for part in unanswered:
            # The plane of the old stream is closed, and its memory with it.
            part.credited, part.lease = False, None
            self.scheduler.add(part)

    def credit(self, part: Item) -> None:
        """Stops counting a shard's bytes against the credit."""
        if not part.credited:
            part.credited = True
            self.scheduler.release(part)

    def next_message(self) -> bytes | None:
        """The next message, None if nothing may be sent now. `take_following` gives what must follow it."""
        self._following = []
        if self.declarations:
            return self._declare()
        if self.aborts:
            return encode(pb.ExchangeRequest(abort=self.aborts.popleft()))
        if self.restores:
            row, total = self.restores.popleft()
            return encode(pb.ExchangeRequest(restore=pb.Restore(shards=to_columns([row]))), total)
        batch = self.scheduler.take()
        now = self._clock()
        self._note_stall(not batch and len(self.scheduler) > 0, now)
        if batch:
            return self._contribute(batch, now)
        # While something has no answer, this rank may lack a sum that only the rank that wants to leave has.
        if self.syncs and self.settled:
            return encode(pb.ExchangeRequest(synced=pb.Synced(number=self.syncs.popleft())))
        return None

    def take_following(self) -> list[memoryview]:
        """The payloads that must follow the last message on the data connection, once: its owner may send messages of
        its own between those of the window, and nothing follows them."""
        following, self._following = self._following, []
        return following

    def _declare(self) -> bytes:
        keys, shards = [self.declarations.popleft()], 0
        while self.declarations and len(keys) < _KEYS_PER_DECLARE:
            shards += len(keys[-1].shards)
            if shards + len(self.declarations[0].shards) > _SHARDS_PER_DECLARE:
                break
            keys.append(self.declarations.popleft())
        return encode(pb.ExchangeRequest(declare=pb.Declare(keys=keys, share=self.share)))

    def _contribute(self, batch: Sequence[Item], now: float) -> bytes:
        """The message with these shards, all of one kind, which are under way from now on."""
        if self._contributors is None:
            values = [value for part in batch if (value := part.whole_value()) is not None]
            if len(values) == len(batch):
                return self._contribute_together(batch, values, now)
        rows, payloads, queued = [], [], []
        plane = self.plane
        self.contributed = True
        recorded = False
        for part in batch:
            part_id = part.id
            self.outstanding[part_id] = part
            part.sent = now
            queued.append((part.counters, part.queued))
            part.counters.sent_bytes += part.size
            length = offset = outside_size = 0
            if not part.pulls:
                value = part.payload()
                if (size := len(value)) < LARGE_PAYLOAD_BYTES:
                    length = size
                    payloads.append(value)
                else:
                    length, offset, outside_size, held, _ = plane.put(value, part.staged(), payloads, self._following)
                    if held:
                        part.lease = plane, offset, outside_size
            timed = part.record is not None
            recorded |= timed
            rows.append((*part_id, part.round, part.priority, length, offset, outside_size, timed))
        # Most of them began to wait at the same time.
        for (counters, since), count in Counter(queued).items():
            counters.queue.observe(now - since, count)
        if (contributors := self._contributors) is None:
            columns = to_columns(rows, brief=self._brief)
        else:
            counted = [ShardRound(*row, contributors(part)) for row, part in zip(rows, batch, strict=True)]
            columns = to_columns(counted, brief=self._brief)
        if batch[0].pulls:
            request = pb.ExchangeRequest(pull=pb.Pull(shards=columns))
        else:
            request = pb.ExchangeRequest(push=pb.Push(shards=columns))
        message = encode(request, *payloads)
        if recorded:
            copied = self._clock()
            for part in batch:
                part.went(now, copied)
        return message

    def _contribute_together(self, batch: Sequence[Item], values: Sequence[Memory], now: float) -> bytes:
        """What `_contribute` does if all shards have a `whole_value`: with columns, and without views of the values."""
        self.contributed = True
        part_ids = [part.id for part in batch]
        self.outstanding.update(zip(part_ids, batch, strict=True))
        for part in batch:
            part.sent = now
        # All are sums.
        counters, sizes = batch[0].counters, [part.size for part in batch]
        counters.queue.observe_since([part.queued for part in batch], now)
        counters.sent_bytes += (size := sum(sizes))
        ids, indices = zip(*part_ids, strict=True)
        rounds, priorities = [part.round for part in batch], [part.priority for part in batch]
        push = pb.Push(shards=from_columns(ids, indices, rounds, priorities, sizes, brief=self._brief))
        return encode(pb.ExchangeRequest(push=push), *values, size=size)

    def _note_stall(self, stalled: bool, now: float) -> None:
        if stalled and self._stalled_since is None:
            self._counters.stalls += 1
            self._stalled_since = now
        elif not stalled and self._stalled_since is not None:
            self._counters.stall_seconds += now - self._stalled_since
            self._stalled_since = None
