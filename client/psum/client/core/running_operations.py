"""The operations of one worker: which run, which wait for their turn, and which have ended."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from psum.client.core import error_texts
from psum.client.core.buffers import flat
from psum.client.core.kept_sums import kept
from psum.client.core.key import Key
from psum.client.core.key_loans import KeyLoans, MapPieces
from psum.client.core.key_registry import KeyRegistry
from psum.client.core.key_rounds import KeyRounds, Part
from psum.client.core.operation import Operation
from psum.client.core.recorder import Recorder, ShardRecord
from psum.client.core.send_window import SendWindow
from psum.client.core.solo import Solo
from psum.client.core.ticket import State, Ticket
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import FaultError, InvalidError, PsumError

# Cached at module level: an enum's members take long to find.
_QUEUED: Final = State.QUEUED
_RUNNING: Final = State.RUNNING


class RunningOperations:
    """Takes operations from `submit` to `finished`. Used from the client's thread only.

    Args:
        rank: This worker's rank.
        addresses: The addresses at the other ends of the connections, for errors.
        windows: What is sent on each connection.
        registry: Where failed keys are noted.
        map_pieces: Maps results in shared memory one after the other, to lend them.
        keep_sums: Whether to keep the last sum of each shard for an aggregator that was started again.
        clock: The time now, as the methods are given it.
    """

    def __init__(
        self,
        rank: int,
        addresses: Sequence[str],
        windows: Sequence[SendWindow[Part]],
        registry: KeyRegistry,
        map_pieces: MapPieces,
        *,
        keep_sums: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.finished: list[tuple[Ticket, PsumError | None]] = []
        """Operations that have ended, for the client to report."""
        self.recalled: set[int] = set()
        """Connections on which memory of failed operations may still be sent."""
        self.since: dict[Ticket, float] = {}
        """The running operations and since when they run, the oldest first."""
        self.rounds: dict[int, KeyRounds] = {}
        """The keys that were used, by id."""
        self.recorder: Recorder | None = None
        self.solo: Solo | None = None
        """What completes operations while this process waits to join an elastic job."""
        self._warnings: dict[int, tuple[float, str]] = {}
        """The last warning that came on each connection, and when."""
        self._own: dict[Ticket, Callable[[PsumError | None], None]] = {}
        """Running operations of the session itself, and what to call when they end."""
        self._rank = rank
        self._addresses = addresses
        self._windows = windows
        self._registry = registry
        self._map_pieces = map_pieces
        self._keep_sums = keep_sums
        self._clock = clock
        self._stalled: OrderedDict[KeyRounds, float] = OrderedDict()
        """Keys with operations that wait for an earlier one that was reserved and not started, and since when."""

    @property
    def completes_plainly(self) -> bool:
        """Whether an operation of the program that is complete only joins `finished`: nothing is recorded, and no
        operation is the session's own."""
        return self.recorder is None and not self._own

    def needs_no_weights(self, key: Key) -> bool:
        """Whether operations on a key can begin, or fail, before ranks have agreed on the weights of aggregators."""
        return key.steers or self.solo is not None or self._registry.failure is not None

    def submit(self, ticket: Ticket, now: float) -> None:
        """Takes a ticket that was started or aborted."""
        key = ticket.key
        if (failure := self._registry.failure or key.failure) is not None:
            self._finish(ticket, failure)
            return
        if (solo := self.solo) is not None and solo.takes(key):
            self._complete_alone(solo, ticket)
            return
        rounds = self.rounds.get(key.id)
        if rounds is None:
            rounds = self.rounds[key.id] = KeyRounds(key)
        if ticket.record is not None:
            ticket.record.ready = now
        elif (
            rounds.running is None
            and len(rounds.parts) == 1
            and ticket.round == rounds.round
            and ticket.state is _QUEUED
            and not rounds.waiting
            and rounds.loans is None
            and not ticket.borrows
            and not self._stalled
        ):
            # What `run_next` does, for a small key that was used before.
            [part] = rounds.parts
            ticket.state = _RUNNING
            ticket.pending = 1
            rounds.running = ticket
            self.since[ticket] = now
            part.begin(ticket, now)
            self._windows[part.shard.connection].add(part)
            return
        rounds.waiting[ticket.round] = ticket
        self.run_next(rounds, now)

    def run_own(self, ticket: Ticket, ended: Callable[[PsumError | None], None], now: float) -> None:
        """Takes a ticket of the session's own. Its end is not reported.

        Args:
            ticket: The ticket, which was started.
            ended: Called with None or the error.
            now: The time, in seconds.
        """
        self._own[ticket] = ended
        self.submit(ticket, now)

    def run_next(self, rounds: KeyRounds, now: float) -> None:
        """Runs the key's next operation if it was submitted and the previous one has ended."""
        while rounds.running is None and (ticket := rounds.waiting.pop(rounds.round, None)) is not None:
            if ticket.state is State.ABORTED:
                self._abort(rounds, ticket)
                return
            if not rounds.declared:
                self._declare(rounds)
            shards = rounds.key.shards
            ticket.state = State.RUNNING
            ticket.pending = len(shards)
            rounds.running = ticket
            self.since[ticket] = now
            if ticket.pending == 0:
                if rounds.key.nbytes and not self._windows and ticket.source is not None and ticket.target is not None:
                    # A job of one worker without aggregators: the sum is the value.
                    flat(ticket.target)[:] = flat(ticket.source)
                self.complete(rounds, ticket, now)
                continue
            if not self._keeps_loans(rounds, ticket):
                return
            if not rounds.parts:
                rounds.parts = [Part(rounds, shard, ticket) for shard in shards]
            for part in rounds.parts:
                part.begin(ticket, now)
                shard = part.shard
                if ticket.record is not None:
                    part.record = ShardRecord(ticket.record, shard.index, shard.size, now)
                    ticket.record.shards.append(part.record)
                self._windows[shard.connection].add(part)
        if rounds.running is None and rounds.waiting:
            self._stalled.setdefault(rounds, now)
        elif self._stalled:
            self._stalled.pop(rounds, None)

    def note_taken(self, connection: int, row: ShardRound) -> None:
        """Notes that an aggregator has taken this worker's value of a shard: its bytes are not under way any more."""
        window = self._windows[connection]
        part = window.outstanding.get((row.id, row.shard))
        if part is not None and part.ticket.round == row.round:
            window.credit(part)
            part.free()

    def note_warning(self, connection: int, text: str, now: float) -> None:
        """Notes a warning of an aggregator, which mostly says what rounds wait for: see `expire`."""
        self._warnings[connection] = now, text

    def receive(self, connection: int, row: ShardRound, payload: memoryview, now: float, *, stays: bool) -> None:
        """Takes the result of a shard. One that nobody waits for any more is ignored.

        Args:
            connection: On which connection it came.
            row: Which shard, and which round of it.
            payload: The result, as it was sent.
            now: When it came.
            stays: Whether it lies in memory that the aggregator shares.

        Raises:
            ProtocolError: It does not have the shard's size.
        """
        window = self._windows[connection]
        part_id, round, received = row[:2], row.round, len(payload)
        part = window.outstanding.get(part_id)
        if part is None or (ticket := part.ticket).round != round:
            # It was under way when the operation failed, or had its result already.
            return
        shard, key = part.shard, ticket.key
        own = ticket.source is not None and key.operation is Operation.BROADCAST
        if key.codec is not None and not own:
            payload = key.codec.decode(payload, shard.size)
            received, stays = len(payload), False
        if received != (expected := 0 if own else shard.size):
            raise error_texts.wrong_size(self._addresses[connection], key, shard, received, expected)
        part.receive(payload, own=own, stays=stays)
        if part.record is not None:
            part.record.received, part.record.written = now, self._clock()
        rounds = part.rounds
        rounds.next_rounds[shard.index] = round + 1
        if self._keep_sums or key.keeps_sum:
            rounds.sums[shard.index] = kept(ticket, shard, payload)
        del window.outstanding[part_id]
        window.credit(part)
        if part.lease is not None:
            part.free()
        counters = key.counters
        counters.exchange.observe(now - part.sent)
        counters.received_bytes += received
        ticket.pending -= 1
        if ticket.pending == 0:
            self.complete(rounds, ticket, now)
            if rounds.waiting:
                self.run_next(rounds, now)

    def complete(self, rounds: KeyRounds, ticket: Ticket, now: float) -> None:
        """Ends the key's running operation, whose result is complete."""
        if ticket.borrows and rounds.loans is not None:
            ticket.loan = rounds.loans.conclude(lambda shard, piece: rounds.parts[shard].write(piece))
        rounds.key.counters.total.observe(now - self.since[ticket])
        if (recorder := self.recorder) is not None:
            recorder.completed(ticket.record, now)
        rounds.running = None
        rounds.round += 1
        self._finish(ticket, None)

    def note_fault(self, key: Key, fault: FaultError) -> None:
        """Notes what an aggregator has said of a key, for one that is started again: it does not know, and other ranks
        may not have heard of it."""
        rounds = self.rounds.get(key.id)
        if rounds is not None and rounds.abort is None:
            rounds.abort = pb.Abort(id=key.id, round=fault.round or 0, text=str(fault), fault=fault.to_message())

    def fail_key(self, key: Key, error: PsumError) -> None:
        """Ends all operations of a key with an error, now and from now on. Only the first error counts."""
        if key.failure is None:
            self._registry.fail_key(key, error)
            if (rounds := self.rounds.get(key.id)) is not None:
                self._end_all(rounds, error)
            if key.successor is not None:
                self.fail_key(key.successor, error)

    def forget_ranked_keys(self) -> None:
        """Forgets the keys that are not for all ranks, if all operations that were reserved on them have ended."""

        def is_at_rest(key: Key) -> bool:
            rounds = self.rounds.get(key.id)
            return key.failure is not None or key.reserved == (0 if rounds is None else rounds.round)

        for key in self._registry.forget(is_at_rest):
            self.rounds.pop(key.id, None)

    def fail(self, error: PsumError) -> None:
        """Ends all operations with an error, now and from now on."""
        for key in self._registry.fail(error):
            self.fail_key(key, error)

    def expire(self, round_timeout: float, now: float) -> None:
        """Fails the operations that have waited longer than this for their result, or for their turn.

        Args:
            round_timeout: Seconds.
            now: The time, in seconds.
        """
        while self._stalled:
            rounds, since = next(iter(self._stalled.items()))
            if now - since <= round_timeout:
                break
            self.fail_key(rounds.key, error_texts.never_started(self._rank, rounds, now - since))
        while self.since:
            ticket, since = next(iter(self.since.items()))
            if now - since <= round_timeout:
                return
            silent = [
                number
                for number, window in enumerate(self._windows)
                if any(part.ticket is ticket for part in window.outstanding.values())
            ]
            addresses = [self._addresses[number] for number in silent]
            told = [self._warnings[number] for number in silent if number in self._warnings]
            warning = max((each for each in told if each[0] >= since), default=None)
            last = None if warning is None else (now - warning[0], warning[1])
            self.fail_key(ticket.key, error_texts.overdue(self._rank, ticket, now - since, addresses, last))

    def _complete_alone(self, solo: Solo, ticket: Ticket) -> None:
        error: PsumError | None = None
        try:
            if ticket.state is State.ABORTED:
                error = error_texts.aborted(self._rank, ticket)
            else:
                solo.complete(ticket)
        except InvalidError as beyond:
            error = beyond
        self._finish(ticket, error)
        if error is not None:
            self.fail_key(ticket.key, error)

    def _declare(self, rounds: KeyRounds) -> None:
        rounds.declared = True
        for connection in rounds.key.connections:
            self._windows[connection].declarations.append(rounds.declaration(connection))

    def _keeps_loans(self, rounds: KeyRounds, ticket: Ticket) -> bool:
        """Keeps the key's results that are still lent from changing. Returns False if the key has failed over it."""
        if rounds.loans is None and ticket.borrows:
            rounds.loans = KeyLoans(len(rounds.key.shards), self._map_pieces)
        if rounds.loans is not None:
            try:
                rounds.loans.secure()
            except MemoryError as error:
                ticket.reason = str(error)
                self._abort(rounds, ticket)
                return False
        return True

    def _abort(self, rounds: KeyRounds, ticket: Ticket) -> None:
        if not rounds.declared:
            self._declare(rounds)
        rounds.abort = pb.Abort(id=rounds.key.id, round=ticket.round, text=ticket.reason)
        for connection in rounds.key.connections:
            self._windows[connection].aborts.append(rounds.abort)
        self.fail_key(rounds.key, error_texts.aborted(self._rank, ticket))

    def _finish(self, ticket: Ticket, error: PsumError | None) -> None:
        self.since.pop(ticket, None)
        if (recorder := self.recorder) is not None and ticket.record is not None:
            recorder.ended(ticket.record)
        was_aborted = ticket.state is State.ABORTED
        ticket.state = State.FINISHED
        if self._own and ticket in self._own:
            self._own.pop(ticket)(error)
        elif not was_aborted:
            self.finished.append((ticket, error))

    def _end_all(self, rounds: KeyRounds, error: PsumError) -> None:
        tickets: Iterable[Ticket] = [*filter(None, [rounds.running]), *rounds.waiting.values()]
        for shard in rounds.key.shards:
            window = self._windows[shard.connection]
            part = window.outstanding.pop((rounds.key.id, shard.index), None)
            if part is not None:
                window.credit(part)
                if window.plane.payloads_follow:
                    self.recalled.add(shard.connection)
        for part in rounds.parts:
            part.cancelled = True
        for ticket in tickets:
            self._finish(ticket, error)
        rounds.running = None
        rounds.waiting.clear()
        self._stalled.pop(rounds, None)
        rounds.sums.clear()
        rounds.loans = None
