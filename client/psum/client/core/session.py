"""A worker's side of the job: what each aggregator is sent, and what its answers complete.

Events in, messages and completions out, without I/O. The client's thread calls everything but `reserve`, which may be
called from any thread. KeyRegistry reserves rounds, RunningOperations takes operations from start to end, a SendWindow
makes the messages to one aggregator, and Session takes what aggregators answer.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from psum.client.core import roles
from psum.client.core.counters import Counters
from psum.client.core.joins import Joins
from psum.client.core.kept_sums import give_back
from psum.client.core.key import Key
from psum.client.core.key_loans import MapPieces, lends_nothing
from psum.client.core.key_registry import KeyRegistry
from psum.client.core.key_rounds import Part
from psum.client.core.known_departures import KnownDepartures
from psum.client.core.load import Load
from psum.client.core.operation import Operation
from psum.client.core.placement import Placement
from psum.client.core.recorder import Recorder
from psum.client.core.running_operations import RunningOperations
from psum.client.core.send_window import SendWindow
from psum.client.core.shard_notes import note_contributors, note_timings
from psum.client.core.small_results import SmallResults
from psum.client.core.ticket import State, Ticket
from psum.client.core.weights_agreement import WeightsAgreement
from psum.planes import WorkerPlane
from psum.v1 import aggregator_pb2 as pb
from psum.wire import MAX_SHARDS_PER_PAYLOAD, ElementType, ShardRound, decode, to_rows
from psum.wire.errors import FaultError, ProtocolError, PsumError


class Session:
    """The state of one worker.

    Args:
        addresses: The aggregators. With none, the job has one worker, and its sum is its own value.
        weights: Their weights in placement; empty: all 1. None: those that follow from the aggregators' roles, on which
            all ranks agree with their first operation. `beside` and `is_member` must be right by then.
        relay: The address of the relay that everything goes to, which forwards it to the aggregators. Empty: this
            worker connects to the aggregators themselves. With a relay there is one connection, number 0.
        processes_of: For each address the number of the aggregator that it is a process of; see roles.Aggregators. By
            default each is one of its own.
        rank: This worker's rank.
        num_workers: The nominal size of the job.
        elastic: Whether the job is elastic.
        keep_sums: Whether to keep the last sum of each shard for an aggregator that was started again. The sums take as
            many bytes as all keys together, in the received messages.
        partition_bytes: The size of a shard.
        credit_bytes: Bytes that may be under way to one aggregator.
        hand_over: Called from any thread with a ticket that was started or aborted; must lead to `submit`.
        shares_known: Called with each connection's share of the bytes on its link when the ranks have agreed on the
            weights; see Aggregators.link_shares.
        report_fault: Called with each failure that an aggregator reports, before anything fails because of it.
        map_pieces: Maps results in shared memory one after the other, to lend them. By default nothing is lent.
        recorder: Where operations are recorded, None if nowhere.
        clock: The time now, as the methods are given it.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        weights: Sequence[int] | None,
        *,
        rank: int,
        num_workers: int = 1,
        elastic: bool = False,
        partition_bytes: int,
        credit_bytes: int,
        relay: str = "",
        processes_of: Sequence[int] = (),
        keep_sums: bool = True,
        hand_over: Callable[[Ticket], None],
        shares_known: Callable[[Sequence[float]], None] = lambda shares: None,
        report_fault: Callable[[FaultError], None] = lambda fault: None,
        map_pieces: MapPieces = lends_nothing,
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rank = rank
        self.counters = Counters()
        self.notices: list[str] = []
        """What aggregators want this worker's user to know, for the client to take."""
        self.beside: Collection[int] = ()
        """The addresses of aggregators on this worker's host, as far as it knows, by their indices."""
        self.leaving = False
        """Whether this worker leaves: it begins no operation any more."""
        self.is_member = True
        """Whether this worker counts when the weights are found: one of those that share a relay does."""
        self._clock = clock
        self._addresses = (relay,) if relay else tuple(addresses)
        """The other ends of the connections. The methods number the connections in this order."""
        self._report_fault = report_fault
        self._windows = [SendWindow[Part](credit_bytes, self.counters, clock, brief=elastic) for _ in self._addresses]
        place = partial(Placement, partition_bytes, relayed=bool(relay))
        placement = place(tuple(weights) or (1,) * len(addresses)) if addresses and weights is not None else None
        self._registry = KeyRegistry(placement, self.counters, hand_over)
        if addresses:
            self._registry.steer(place((1, *[0] * (len(addresses) - 1))))
        self._operations = RunningOperations(
            rank, self._addresses, self._windows, self._registry, map_pieces, keep_sums=keep_sums, clock=clock
        )
        self._operations.recorder = recorder
        self._small = SmallResults(self._operations, keep_sums=keep_sums)
        self._shares_known = shares_known
        count = len(self._addresses)
        self._departures = KnownDepartures(count)
        self._elastic = elastic
        self.joins = Joins(self.title, count, num_workers, self._operations, self._registry, clock)
        """What this worker knows of losses and joins in an elastic job, and its part in them."""
        self._gossip = self.joins.gossip
        self._relayed = bool(relay)
        self._agreement: WeightsAgreement | None = None
        if addresses and weights is None:
            processes = roles.Aggregators(processes_of or range(len(addresses)))
            self._agreement = WeightsAgreement(processes, self._operations, self._registry, place, self._share_links)

    def __repr__(self) -> str:
        return f"<Session rank={self.rank} keys={len(self._registry)} running={len(self._operations.since)}>"

    @property
    def title(self) -> str:
        """Who this is, in the log and in errors."""
        return f"rank {self.rank}"

    @property
    def recorder(self) -> Recorder | None:
        """Where operations are recorded; may be changed at any time, from any thread."""
        return self._operations.recorder

    @recorder.setter
    def recorder(self, recorder: Recorder | None) -> None:
        self._operations.recorder = recorder

    @property
    def failure(self) -> PsumError | None:
        """Why every operation fails from now on."""
        return self._registry.failure

    @property
    def finished(self) -> list[tuple[Ticket, PsumError | None]]:
        """Operations that have ended, for the client to take out and report."""
        return self._operations.finished

    @property
    def running(self) -> dict[Ticket, float]:
        """The running operations and since when they run, the oldest first."""
        return self._operations.since

    @property
    def busy(self) -> bool:
        """Whether an operation that was submitted has not ended."""
        return bool(self.running) or any(rounds.waiting for rounds in self._operations.rounds.values())

    def take_recalled(self) -> set[int]:
        """The aggregators to which memory of failed operations may still be sent. The client must stop that before it
        reports what has finished."""
        if not (recalled := self._operations.recalled):
            return recalled
        self._operations.recalled = set()
        return recalled

    @property
    def took_part(self) -> bool:
        """Whether an aggregator may know of a round from this worker."""
        return any(window.contributed for window in self._windows)

    def reserve(
        self,
        store: int,
        name: str,
        shape: tuple[int, ...],
        element_type: ElementType,
        operation: Operation,
        priority: int,
        label: str = "",
        ranks: tuple[int, ...] = (),
    ) -> Ticket:
        """Fixes the round of an operation. From any thread; the order of calls on a key must be the same on all ranks.

        With `ranks`, only these ranks of an elastic job use the key, and the first is the root of a broadcast. All of
        them must give the same list, and a name stands for another key under each list. If the root is lost, the key
        fails with WorkerLostError, and the job goes on.

        Raises:
            ValueError: The key had another shape or element type before, or an earlier label again.
            PsumError: The key, or everything, has failed.
        """
        return self._registry.reserve(
            store, name, shape, element_type, operation, priority, label, self._operations.recorder, self._clock, ranks
        )

    def reserve_again(self, key: Key, priority: int, label: str = "") -> Ticket:
        """Fixes the next round of a key that is for all ranks. From any thread.

        Raises:
            ValueError: The label was the key's before, and another one came in between.
            PsumError: The key, or everything, has failed.
        """
        return self._registry.reserve_again(key, priority, self._operations.recorder, self._clock, label)

    def forget_ranked_keys(self) -> None:
        """Forgets the keys that are not for all ranks and have no operation left, and what is kept for them.

        To be called when this worker hears of an admission to its elastic job. Aggregators do the same then, so a name
        may be used again after that. It is safer to give each transfer names of its own: a key that still has
        operations is not forgotten.
        """
        self._operations.forget_ranked_keys()

    def submit(self, ticket: Ticket, now: float) -> None:
        """Takes a ticket that was started or aborted."""
        agreement = self._agreement
        if agreement is None or agreement.over or self._operations.needs_no_weights(ticket.key):
            self._operations.submit(ticket, now)
        else:
            agreement.hold(ticket, now, self.beside, is_member=self.is_member)

    def following(self, aggregator: int) -> list[memoryview]:
        """The payloads that must follow the last message to an aggregator on the data connection; given once."""
        return self._windows[aggregator].take_following()

    def next_message(self, aggregator: int) -> bytes | None:
        """The next message to an aggregator, None if nothing may be sent now."""
        if (news := self._gossip.next_message(aggregator)) is not None:
            return news
        message = self._windows[aggregator].next_message()
        if message is None:
            self._note_settled(aggregator)
        return message

    def receive(self, aggregator: int, data: bytes, now: float) -> None:
        """Handles a message from an aggregator that no payload follows. See `handle`."""
        self.handle(aggregator, *decode(pb.ExchangeResponse, data), (), now)

    def handle(
        self,
        aggregator: int,
        message: pb.ExchangeResponse,
        payload: memoryview,
        following: Iterable[memoryview],
        now: float,
    ) -> None:
        """Handles a message from an aggregator.

        Args:
            aggregator: Which aggregator.
            message: The message.
            payload: The payload in it.
            following: The payloads that followed it on the data connection.
            now: The time, in seconds.

        Raises:
            ProtocolError: The message is wrong here. Its wrong part has changed nothing.
        """
        window = self._windows[aggregator]
        match message.WhichOneof("kind"):
            case "result":
                shards, plane, following = message.result.shards, window.plane, iter(following)
                if shards.contributors:
                    note_contributors(window.outstanding, to_rows(shards, MAX_SHARDS_PER_PAYLOAD))

                def handle(row: ShardRound, piece: memoryview) -> None:
                    outside = row.outside_size > 0
                    value = plane.get(row, following) if outside else piece
                    self._operations.receive(aggregator, row, value, now, stays=outside and plane.shares_sums)

                self._small.take(window, shards, payload, now, handle)
            case "taken":
                for row in to_rows(message.taken.shards):
                    self._operations.note_taken(aggregator, row)
            case "timings":
                note_timings(window.outstanding, message.timings.timings)
            case "want":
                for row in to_rows(message.want.shards):
                    rounds = self._operations.rounds.get(row.id)
                    self.counters.restores += give_back(self.rank, rounds, aggregator, row, window)
            case "sync":
                self._departures.note(message.sync.departures)
                window.syncs.append(message.sync.number)
            case "losses" if self._elastic:
                self.joins.note_losses(message.losses.losses, now, aggregator)
            case "candidates" if self._elastic:
                self.joins.note_candidates(aggregator, message.candidates.candidates)
            case "drain":
                window.drain(to_rows(message.drain.open))
            case "notice":
                self.notices.append(message.notice.text)
                self._operations.note_warning(aggregator, message.notice.text, now)
            case "fault":
                self._fault(FaultError.from_message(message.fault))
            case kind:
                raise ProtocolError(
                    f"aggregator {self._addresses[aggregator]} sent {kind}, which it must not send here"
                )

    def load(self) -> Load:
        """What is under way. From any thread, so the numbers may not belong to exactly one moment."""
        return Load(
            operations=len(self.running),
            waiting_shards=sum(len(window.scheduler) for window in self._windows),
            under_way_bytes=sum(window.scheduler.under_way_bytes for window in self._windows),
        )

    def welcomed(self, welcome: pb.Welcome) -> None:
        """Takes what an aggregator said on a new stream."""
        self._departures.note(welcome.departures)
        if self._elastic:
            self.joins.welcomed(welcome)

    def departures(self, aggregator: int) -> list[pb.Departure]:
        """The members that have left, for the next hello to an aggregator, which may have been started again."""
        self._note_settled(aggregator)
        return self._departures.for_next_process(aggregator)

    @property
    def weights_total(self) -> Sequence[int] | None:
        """What all ranks have agreed on for the weights of aggregators; None if they need not, or have not yet."""
        return None if self._agreement is None else self._agreement.total

    def adopt_weights(self, total: Sequence[int]) -> None:
        """Takes over what the others have agreed on, in a process that joins an elastic job."""
        if self._agreement is not None:
            self._agreement.adopt(total, self.beside)

    def use_plane(self, aggregator: int, plane: WorkerPlane) -> None:
        """Uses a plane for large payloads on a new stream to an aggregator."""
        self._windows[aggregator].use_plane(plane)

    def waits(self, aggregator: int) -> bool | None:
        """Whether something was sent to an aggregator that has no result yet; None: the aggregator is about to end."""
        window = self._windows[aggregator]
        return bool(window.outstanding) if window.still_open is None else None

    def disconnected(self, aggregator: int) -> None:
        """Notes that the stream to an aggregator has broken. In an elastic job, the others are told."""
        if self._elastic and not self.leaving:
            self.joins.disconnected(aggregator)

    def reconnected(self, aggregator: int) -> None:
        """Begins anew on a new stream to an aggregator: declares everything again, and sends again what has no result.

        The aggregator may be the same process, which ignores what it had already, or another one, which knows nothing.
        """
        self.counters.reconnects += 1
        self.joins.reconnected(aggregator)
        declared = [
            rounds
            for rounds in self._operations.rounds.values()
            if rounds.declared and aggregator in rounds.key.connections
        ]
        self._windows[aggregator].start_again(
            [rounds.declaration(aggregator) for rounds in declared],
            [rounds.abort for rounds in declared if rounds.abort is not None],
        )

    def fail(self, error: PsumError) -> None:
        """Ends all operations with an error, now and from now on. Only the first error counts."""
        if self.failure is None:
            self._operations.fail(error)

    def expire(self, round_timeout: float, now: float) -> None:
        """Fails the operations that have waited longer than this many seconds for their result, or for their turn."""
        self._operations.expire(round_timeout, now)

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        for window in self._windows:
            under_way = sum(p.size for p in window.outstanding.values() if not p.credited)
            assert window.scheduler.under_way_bytes == under_way
            assert all(p.ticket.state is State.RUNNING for p in window.outstanding.values())
        for rounds in self._operations.rounds.values():
            assert (rounds.running is None) or rounds.running.round == rounds.round
            assert all(round >= rounds.round for round in rounds.waiting)

    def _note_settled(self, aggregator: int) -> None:
        if self._departures.may_lack(aggregator) and self._windows[aggregator].settled:
            self._departures.lacks_nothing(aggregator)

    def _share_links(self, shares: Sequence[float]) -> None:
        if self._relayed:
            # The only connection is the relay's.
            return
        for window, share in zip(self._windows, shares, strict=True):
            window.share = share
        self._shares_known(shares)

    def _fault(self, fault: FaultError) -> None:
        if fault.key is None or self.busy or not self.leaving:
            # Otherwise it is no fault of this worker, which has all its results.
            self.counters.faults[fault.kind] += 1
            self._report_fault(fault)
        if fault.key is None:
            self.fail(fault)
        elif (key := self._registry.by_id(fault.key)) is not None:
            self._operations.note_fault(key, fault)
            self._operations.fail_key(key, fault)
