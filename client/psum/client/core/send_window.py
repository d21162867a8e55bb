"""What goes to one aggregator: the shards that wait for it, its messages, and what it has not answered yet.

Without I/O, as the session, whose parts these are.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from psum.client.core.buffers import flat
from psum.client.core.counters import Counters
from psum.client.core.scheduler import Scheduler
from psum.client.core.ticket import Part
from psum.client.transport.shared_memory import SharedMemory
from psum.v1 import aggregator_pb2 as pb
from psum.wire import (
    BATCH_BYTES,
    BESIDE_BYTES,
    SHARED_BYTES,
    ShardRound,
    encode,
    to_columns,
)

#: Keys described in one message: some tens of kilobytes.
_KEYS_PER_DECLARE: Final = 512

#: The same for their shards, which are many where keys are large; a key by itself may have more.
_SHARDS_PER_DECLARE: Final = 50_000


class SendWindow:
    """The way of shards to one aggregator.

    Args:
        credit_bytes: Bytes that may be under way.
        tally: Where stalls are counted.
        clock: The time now.
    """

    def __init__(self, credit_bytes: int, tally: Counters, clock: Callable[[], float]) -> None:
        self.scheduler: Scheduler[Part] = Scheduler(credit_bytes)
        self.shared: SharedMemory | None = None
        """What it shares with this worker, None where it does not."""
        self.piped = False
        """Whether large payloads go beside the messages, on a connection of their own."""
        self.contributed = False
        """Whether any shard was ever sent."""
        self.beside: list[memoryview] = []
        """Those that the last message has announced."""
        self.declarations: deque[pb.Key] = deque()
        """Keys that it has not been told of yet."""
        self.aborts: deque[pb.Abort] = deque()
        self.restores: deque[tuple[ShardRound, memoryview | bytes]] = deque()
        """Sums that it asked for."""
        self.outstanding: dict[tuple[int, int], Part] = {}
        """Shards that were sent and have no result yet, by (key's id, shard)."""
        self.syncs: deque[int] = deque()
        """Numbers of the syncs that are not answered yet."""
        self.still_open: set[tuple[int, int, int]] | None = None
        """While the aggregator is about to end: the rounds that it still finishes, as (key's id, shard, round)."""
        self.postponed: list[Part] = []
        """Shards of other rounds, for its next process."""
        self._credit_bytes = credit_bytes
        self._tally = tally
        self._clock = clock
        self._stalled_since: float | None = None
        """Since when something waits for credit."""

    def add(self, part: Part) -> None:
        """Queues a shard, or keeps it for the aggregator's next process."""
        if self.still_open is None or (*part.where, part.ticket.round) in self.still_open:
            self.scheduler.add(part)
        else:
            self.postponed.append(part)

    def use_plane(self, shared: SharedMemory | None, *, piped: bool) -> None:
        """On a new stream: see Session.use_plane."""
        self.shared, self.piped = shared, piped
        self.scheduler.credit_bytes = self._credit_bytes if shared is None else shared.credit_bytes
        self.scheduler.batch_bytes = BESIDE_BYTES if shared is not None or piped else BATCH_BYTES

    def drain(self, still_open: Iterable[ShardRound]) -> None:
        """The aggregator is about to end, and finishes no rounds but these."""
        self.still_open = {(entry.id, entry.shard, entry.round) for entry in still_open}
        for part in self.scheduler.clear():
            self.add(part)

    def start_again(self, declarations: Iterable[pb.Key], aborts: Iterable[pb.Abort]) -> None:
        """The stream was opened anew: everything is to be told again, and sent again what has no result."""
        unanswered = [*self.outstanding.values(), *self.postponed]
        self.outstanding.clear()
        self.postponed.clear()
        self.still_open = None
        self.syncs.clear()
        self.scheduler.forget_credit()
        self.restores.clear()
        self.declarations, self.aborts = deque(declarations), deque(aborts)
        for part in unanswered:
            part.credited, part.place = False, None
            self.scheduler.add(part)

    def credit(self, part: Part) -> None:
        """A shard's bytes count against the credit no more."""
        if not part.credited:
            part.credited = True
            self.scheduler.release(part.size)

    def next_message(self) -> bytes | None:
        """The next message, None where there is nothing that may be sent now. What it announces is in `beside`."""
        self.beside = []
        if self.declarations:
            return self._declare()
        if self.aborts:
            return encode(pb.ExchangeRequest(abort=self.aborts.popleft()))
        if self.restores:
            entry, total = self.restores.popleft()
            return encode(pb.ExchangeRequest(restore=pb.Restore(shards=to_columns([entry]))), total)
        batch = self.scheduler.take()
        now = self._clock()
        self._note_stall(not batch and len(self.scheduler) > 0, now)
        if batch:
            return self._contribute(batch, now)
        # What is not answered yet may be a sum that only the rank has that wants to leave.
        if self.syncs and not (self.outstanding or self.postponed or self.scheduler):
            return encode(pb.ExchangeRequest(synced=pb.Synced(number=self.syncs.popleft())))
        return None

    def _declare(self) -> bytes:
        keys, shards = [self.declarations.popleft()], 0
        while self.declarations and len(keys) < _KEYS_PER_DECLARE:
            shards += len(keys[-1].shards)
            if shards + len(self.declarations[0].shards) > _SHARDS_PER_DECLARE:
                break
            keys.append(self.declarations.popleft())
        return encode(pb.ExchangeRequest(declare=pb.Declare(keys=keys)))

    def _contribute(self, batch: Sequence[Part], now: float) -> bytes:
        """The message with these shards, all of one kind, which are under way from now on."""
        rows, payloads = [], []
        shared = self.shared
        self.contributed = True
        recorded = False
        for part in batch:
            ticket, shard, size = part.ticket, part.shard, part.size
            key = ticket.key
            self.outstanding[part.where] = part
            part.sent = now
            tally = key.tally
            tally.queue.observe(now - part.queued)
            tally.sent_bytes += size
            length = place = placed = 0
            if ticket.source is not None:
                value = flat(ticket.source)[shard.start : shard.stop]
                if size < SHARED_BYTES:
                    length = size
                    payloads.append(value)
                elif shared is not None and (taken := shared.put(value, part.staged)) is not None:
                    part.place = shared, taken
                    place, placed = taken, size
                elif self.piped:
                    placed = size
                    self.beside.append(value)
                else:
                    length = size
                    payloads.append(value)
            timed = part.record is not None
            recorded |= timed
            rows.append((key.id, shard.index, ticket.round, part.priority, length, place, placed, timed))
        columns = to_columns(rows)
        if batch[0].pulls:
            request = pb.ExchangeRequest(pull=pb.Pull(shards=columns))
        else:
            request = pb.ExchangeRequest(push=pb.Push(shards=columns))
        message = encode(request, *payloads)
        if recorded:
            self._record_sent(batch, now)
        return message

    def _record_sent(self, batch: Iterable[Part], sent: float) -> None:
        """The message with these shards was begun to be made at a time, and is made now."""
        copied = self._clock()
        for part in batch:
            if part.record is not None:
                part.record.sent, part.record.copied = sent, copied

    def _note_stall(self, stalled: bool, now: float) -> None:
        if stalled and self._stalled_since is None:
            self._tally.stalls += 1
            self._stalled_since = now
        elif not stalled and self._stalled_since is not None:
            self._tally.stall_seconds += now - self._stalled_since
            self._stalled_since = None
