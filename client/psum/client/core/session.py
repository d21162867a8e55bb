"""A worker's side of the job: what is under way to which aggregator, and what each answer completes.

Events in, messages and completions out, without I/O. All methods but `reserve` are to be called from one thread, the
client's; `reserve` may be called from any. `next_message` gives what is to be sent to an aggregator, `finished` what
has ended meanwhile and is to be reported to its owner.
"""

import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from psum.client.core import failures
from psum.client.core.buffers import flat
from psum.client.core.counters import Counters
from psum.client.core.keys import Key, Operation
from psum.client.core.placement import Placement, Shard
from psum.client.core.recorder import Recorder, ShardRecord
from psum.client.core.send_window import SendWindow
from psum.client.core.ticket import Part, State, Ticket
from psum.client.transport.shared_memory import SharedMemory
from psum.v1 import aggregator_pb2 as pb
from psum.wire import (
    BATCH_BYTES,
    MAX_SHARDS_PER_PAYLOAD,
    ElementType,
    ShardRound,
    decode,
    split,
    to_rows,
)
from psum.wire.errors import FaultError, ProtocolError, PsumError

#: Sums from this size on are kept as views of their message, which has at most twice as much.
_KEPT_VIEW_BYTES = BATCH_BYTES // 2


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What is under way.

    Attributes:
        operations: Operations that were begun and have no result.
        waiting_shards: Shards that wait to be sent.
        under_way_bytes: Bytes that count against the credit.
    """

    operations: int
    waiting_shards: int
    under_way_bytes: int


class Session:
    """The state of one worker.

    Args:
        addresses: The aggregators; with none, the job has one worker, and its sum is its own value.
        weights: Their weights in placement, empty: all 1.
        rank: This worker's rank.
        keep_sums: Whether to keep the last sum of each shard for an aggregator that was started again: as many bytes as
            all keys together have, in the received messages.
        partition_bytes: The size of a shard.
        credit_bytes: Bytes that may be under way to one aggregator.
        hand_over: Called from any thread with a ticket that was started or aborted; is to lead to `submit`.
        report_fault: Called with each failure that an aggregator tells of, before anything fails of it.
        recorder: Where operations are recorded, None where they are not.
        clock: The time now, as it is given to the methods.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        weights: Sequence[int],
        *,
        rank: int,
        partition_bytes: int,
        credit_bytes: int,
        keep_sums: bool = True,
        hand_over: Callable[[Ticket], None],
        report_fault: Callable[[FaultError], None] = lambda fault: None,
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rank = rank
        self.tally = Counters()
        self.recorder = recorder
        """Where operations are recorded; may be taken away at any time, from any thread."""
        self._clock = clock
        self.failure: PsumError | None = None
        """Why every operation fails from now on."""
        self.finished: list[tuple[Ticket, PsumError | None]] = []
        """Operations that have ended, for the caller to take and report."""
        self.recalled: set[int] = set()
        """Aggregators to which memory is perhaps still being sent that is no longer this worker's to send, for the
        caller to see to before it reports what has finished."""
        self.notices: list[str] = []
        """What aggregators want this worker's user to know, for the caller to take."""
        self.running: dict[Ticket, float] = {}
        """Operations under way and since when, the oldest first."""
        self._stalled: OrderedDict[Key, float] = OrderedDict()
        """Keys with operations that wait for one that was reserved before them and has not been started, since when."""
        self._addresses = tuple(addresses)
        self._hand_over = hand_over
        self._report_fault = report_fault
        self._keep_sums = keep_sums
        self._lanes = [SendWindow(credit_bytes, self.tally, clock) for _ in addresses]
        self._placement = Placement(partition_bytes, tuple(weights) or (1,) * len(addresses)) if addresses else None
        self._keys: dict[tuple[int, str, Operation], Key] = {}
        self._by_id: dict[int, Key] = {}
        # Reentrant, since a signal's handler may push where the main thread is about to.
        self._reserving = threading.RLock()

    def __repr__(self) -> str:
        return f"<Session rank={self.rank} keys={len(self._keys)} running={len(self.running)}>"

    @property
    def took_part(self) -> bool:
        """Whether an aggregator may have heard of some round from this worker."""
        return any(lane.contributed for lane in self._lanes)

    def reserve(
        self,
        store: int,
        name: str,
        shape: tuple[int, ...],
        element_type: ElementType,
        operation: Operation,
        priority: int,
        label: str = "",
    ) -> Ticket:
        """Fixes the round of an operation. From any thread; the order of calls on a key must be that of all ranks.

        Raises:
            ValueError: The key had another shape or element type before, or its label comes back after another one.
            PsumError: The key, or everything, has failed.
        """
        with self._reserving:
            key = self._keys.get((store, name, operation))
            if key is None:
                tally = self.tally.operations[operation]
                key = Key(store, name, shape, element_type, operation, self._placement, tally, label)
                first = self._keys.get((store, name, Operation.BROADCAST))
                if label and first is not None and first.label == label:
                    key.begins_with = first
                self._keys[store, name, operation] = self._by_id[key.id] = key
            begun = None if key.begins_with is None else key.begins_with.failure
            if (failure := self.failure or key.failure or begun) is not None:
                # The same object is raised many times: it must not gather the traces of all of them.
                raise failure.with_traceback(None)
            key.check(shape, element_type, label)
            ticket = Ticket(key, key.reserved, priority, self._hand_over)
            key.reserved += 1
            if (recorder := self.recorder) is not None:
                ticket.record = recorder.reserved(key, ticket.round, self._clock())
            return ticket

    def submit(self, ticket: Ticket, now: float) -> None:
        """A ticket was started or aborted."""
        key = ticket.key
        if (failure := self.failure or key.failure) is not None:
            self._finish(ticket, failure)
            return
        if ticket.record is not None:
            ticket.record.ready = now
        key.waiting[ticket.round] = ticket
        self._run_next(key, now)

    def beside(self, aggregator: int) -> list[memoryview]:
        """The payloads that the last message to an aggregator has announced: to be sent on the data connection."""
        return self._lanes[aggregator].beside

    def next_message(self, aggregator: int) -> bytes | None:
        """The next message to an aggregator, None where there is nothing that may be sent now."""
        return self._lanes[aggregator].next_message()

    def receive(self, aggregator: int, data: bytes, now: float) -> None:
        """A message came from an aggregator, with all that it announces. See `take`."""
        self.take(aggregator, *decode(pb.ExchangeResponse, data), (), now)

    def take(
        self,
        aggregator: int,
        message: pb.ExchangeResponse,
        payload: memoryview,
        beside: Iterable[memoryview],
        now: float,
    ) -> None:
        """A message came from an aggregator.

        Args:
            aggregator: Which.
            message: The message.
            payload: The payload in it.
            beside: The payloads that it announces, from the data connection.
            now: The time.

        Raises:
            ProtocolError: It is none that was to be expected; nothing was changed by the wrong part of it.
        """
        match message.WhichOneof("kind"):
            case "result":
                rows = to_rows(message.result.shards, MAX_SHARDS_PER_PAYLOAD)
                shared, piped = self._lanes[aggregator].shared, iter(beside)
                for row, piece in zip(rows, split(payload, rows), strict=True):
                    value = piece
                    if row.placed:
                        value = shared.sum(row) if shared is not None else next(piped, piece)
                    self._result(aggregator, row, value, now)
            case "taken":
                for entry in to_rows(message.taken.shards):
                    part = self._lanes[aggregator].outstanding.get((entry.id, entry.shard))
                    if part is not None and part.ticket.round == entry.round:
                        self._lanes[aggregator].credit(part)
                        self._free(part)
            case "timings":
                for timing in message.timings.timings:
                    part = self._lanes[aggregator].outstanding.get((timing.id, timing.shard))
                    if part is not None and part.record is not None and part.ticket.round == timing.round:
                        part.record.last_rank = timing.last_rank
                        part.record.waiting, part.record.summing = timing.waiting_seconds, timing.summing_seconds
            case "want":
                for entry in to_rows(message.want.shards):
                    self._give_back(aggregator, entry)
            case "sync":
                self._lanes[aggregator].syncs.append(message.sync.number)
            case "drain":
                self._lanes[aggregator].drain(to_rows(message.drain.open))
            case "notice":
                self.notices.append(message.notice.text)
            case "fault":
                fault = FaultError.from_message(message.fault)
                self.tally.faults[fault.kind] += 1
                self._report_fault(fault)
                if fault.key is None:
                    self.fail(fault)
                elif (key := self._by_id.get(fault.key)) is not None:
                    self._fail_key(key, fault)
            case kind:
                raise ProtocolError(
                    f"aggregator {self._addresses[aggregator]} sent {kind}, which was not to be expected"
                )

    def load(self) -> Load:
        """What is under way now; from any thread, hence not quite one moment's."""
        return Load(
            operations=len(self.running),
            waiting_shards=sum(len(lane.scheduler) for lane in self._lanes),
            under_way_bytes=sum(lane.scheduler.under_way_bytes for lane in self._lanes),
        )

    def use_plane(self, aggregator: int, shared: SharedMemory | None, *, piped: bool) -> None:
        """On a new stream to an aggregator large payloads lie in this memory, go on a data connection (piped), or, with
        neither, lie in the messages."""
        self._lanes[aggregator].use_plane(shared, piped=piped)

    def waits(self, aggregator: int) -> bool | None:
        """Whether something was sent to an aggregator that has no result yet; None: it is about to end."""
        lane = self._lanes[aggregator]
        return bool(lane.outstanding) if lane.still_open is None else None

    def reconnected(self, aggregator: int) -> None:
        """The stream to an aggregator was opened anew: tells it everything again, and sends again what has no result.

        The aggregator may be the same process, which ignores what it had already, or another one, which knows nothing.
        """
        self.tally.reconnects += 1
        declared = [key for key in list(self._keys.values()) if key.declared and aggregator in key.aggregators]
        self._lanes[aggregator].start_again(
            [key.declaration(aggregator) for key in declared],
            [key.abort for key in declared if key.abort is not None],
        )

    def fail(self, error: PsumError) -> None:
        """Everything fails, now and from now on."""
        if self.failure is not None:
            return
        with self._reserving:
            self.failure = error
            keys = list(self._keys.values())
        for key in keys:
            self._fail_key(key, error)

    def expire(self, round_timeout: float, now: float) -> None:
        """Fails the operations that have waited longer than this for their result, or for their turn."""
        while self._stalled:
            key, since = next(iter(self._stalled.items()))
            if now - since <= round_timeout:
                break
            self._fail_key(key, failures.never_started(self.rank, key, now - since))
        while self.running:
            ticket, since = next(iter(self.running.items()))
            if now - since <= round_timeout:
                return
            missing = sorted(
                {p.shard.aggregator for lane in self._lanes for p in lane.outstanding.values() if p.ticket is ticket}
            )
            addresses = [self._addresses[aggregator] for aggregator in missing]
            self._fail_key(ticket.key, failures.overdue(self.rank, ticket, now - since, addresses))

    def check(self) -> None:
        """Asserts what always holds; for tests."""
        for lane in self._lanes:
            under_way = sum(p.size for p in lane.outstanding.values() if not p.credited)
            assert lane.scheduler.under_way_bytes == under_way
            assert all(p.ticket.state is State.RUNNING for p in lane.outstanding.values())
        for key in self._keys.values():
            assert (key.running is None) or key.running.round == key.round
            assert all(round >= key.round for round in key.waiting)

    def _run_next(self, key: Key, now: float) -> None:
        """Runs the key's next operation where it is there and the one before has ended."""
        while key.running is None and (ticket := key.waiting.pop(key.round, None)) is not None:
            if ticket.state is State.ABORTED:
                self._abort(key, ticket)
                return
            if not key.declared:
                self._declare(key)
            ticket.state = State.RUNNING
            ticket.pending = len(key.shards)
            key.running = ticket
            self.running[ticket] = now
            if ticket.pending == 0:
                if key.nbytes and not self._lanes and ticket.source is not None and ticket.target is not None:
                    # A job of one worker without aggregators: the sum is the value.
                    flat(ticket.target)[:] = flat(ticket.source)
                self._complete(ticket, now)
                continue
            if not key.parts:
                key.parts = [Part(key.id, shard, ticket) for shard in key.shards]
            for part in key.parts:
                part.begin(ticket, now)
                shard = part.shard
                if ticket.record is not None:
                    part.record = ShardRecord(ticket.record, shard.index, shard.size, now)
                    ticket.record.shards.append(part.record)
                self._lanes[shard.aggregator].add(part)
        if key.running is None and key.waiting:
            self._stalled.setdefault(key, now)
        elif self._stalled:
            self._stalled.pop(key, None)

    def _declare(self, key: Key) -> None:
        key.declared = True
        for aggregator in key.aggregators:
            self._lanes[aggregator].declarations.append(key.declaration(aggregator))

    def _abort(self, key: Key, ticket: Ticket) -> None:
        if not key.declared:
            self._declare(key)
        key.abort = pb.Abort(id=key.id, round=ticket.round, text=ticket.reason)
        for aggregator in key.aggregators:
            self._lanes[aggregator].aborts.append(key.abort)
        self._fail_key(key, failures.aborted(self.rank, ticket))

    def _result(self, aggregator: int, entry: ShardRound, payload: memoryview, now: float) -> None:
        lane = self._lanes[aggregator]
        place, round, received = entry[:2], entry.round, len(payload)
        part = lane.outstanding.get(place)
        if part is None or (ticket := part.ticket).round != round:
            # It was under way when the operation failed or had its result already.
            return
        shard, key, source, target = part.shard, ticket.key, ticket.source, ticket.target
        own = source is not None and key.operation is Operation.BROADCAST
        if received != (expected := 0 if own else shard.size):
            raise failures.wrong_size(self._addresses[aggregator], key, shard, received, expected)
        if target is not None:
            if not own:
                flat(target)[shard.start : shard.stop] = payload
            elif source is not None and target is not source:
                flat(target)[shard.start : shard.stop] = flat(source)[shard.start : shard.stop]
        if part.record is not None:
            part.record.received, part.record.written = now, self._clock()
        key.next_rounds[shard.index] = round + 1
        if self._keep_sums:
            key.sums[shard.index] = self._kept(ticket, shard, payload)
        del lane.outstanding[place]
        lane.credit(part)
        if part.place is not None:
            self._free(part)
        tally = key.tally
        tally.exchange.observe(now - part.sent)
        tally.received_bytes += received
        ticket.pending -= 1
        if ticket.pending == 0:
            self._complete(ticket, now)
            if key.waiting:
                self._run_next(key, now)

    @staticmethod
    def _kept(ticket: Ticket, shard: Shard, payload: memoryview) -> memoryview | bytes:
        """A result in a form that can be kept."""
        if not payload and ticket.source is not None:
            # The root of a broadcast has the only copy, in memory that its owner may change from now on.
            return bytes(flat(ticket.source)[shard.start : shard.stop])
        # A view keeps the whole message, which is little more than a large payload, but many times a small one.
        return payload if len(payload) >= _KEPT_VIEW_BYTES else bytes(payload)

    def _give_back(self, aggregator: int, entry: ShardRound) -> None:
        key = self._by_id.get(entry.id)
        if key is None or key.failure is not None or not entry.shard < len(key.shards):
            return
        if key.shards[entry.shard].aggregator != aggregator:
            # It is another one's.
            return
        if key.next_rounds[entry.shard] != entry.round + 1:
            # It is asked for no more: all ranks have contributed to a later round.
            return
        total = key.sums.get(entry.shard)
        if total is None:
            reason = f"rank {self.rank} was asked for the sum of round {entry.round} and keeps none (PSUM_KEEP_SUMS=0)"
            self._lanes[aggregator].aborts.append(pb.Abort(id=key.id, round=entry.round, text=reason))
            return
        answer = ShardRound(entry.id, entry.shard, entry.round, length=len(total))
        self._lanes[aggregator].restores.append((answer, total))
        self.tally.restores += 1

    @staticmethod
    def _free(part: Part) -> None:
        """The aggregator has taken a part's value out of the shared memory, or summed it.

        Not to be called for an operation that failed on this side only: the aggregator may yet sum it, for others.
        """
        if part.place is not None:
            shared, offset = part.place
            part.place = None
            shared.free(offset, part.size)

    def _complete(self, ticket: Ticket, now: float) -> None:
        """The result of the key's running operation is whole."""
        key = ticket.key
        key.tally.total.observe(now - self.running[ticket])
        if (recorder := self.recorder) is not None:
            recorder.completed(ticket.record, now)
        key.running = None
        key.round += 1
        self._finish(ticket, None)

    def _finish(self, ticket: Ticket, error: PsumError | None) -> None:
        self.running.pop(ticket, None)
        if (recorder := self.recorder) is not None and ticket.record is not None:
            recorder.ended(ticket.record)
        was_aborted = ticket.state is State.ABORTED
        ticket.state = State.FINISHED
        if not was_aborted:
            self.finished.append((ticket, error))

    def _fail_key(self, key: Key, error: PsumError) -> None:
        if key.failure is not None:
            return
        with self._reserving:
            key.failure = error
        tickets: Iterable[Ticket] = [*filter(None, [key.running]), *key.waiting.values()]
        for shard in key.shards:
            part = self._lanes[shard.aggregator].outstanding.pop((key.id, shard.index), None)
            if part is not None:
                lane = self._lanes[shard.aggregator]
                lane.credit(part)
                if lane.piped:
                    self.recalled.add(shard.aggregator)
        for ticket in tickets:
            self._finish(ticket, error)
        key.running = None
        key.waiting.clear()
        self._stalled.pop(key, None)
        key.sums.clear()
