"""What a relay sends to the owners of shards, and what they answer: a worker's side of the job for a whole group.

Like the client's session, it makes messages and takes answers, without I/O. It has no operations: its shards are sums
that the group's job has made, and results go back to that job. HostJob connects the two.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from psum.aggregator.relay.core.events import Arrived, Event, Faulted, Noticed
from psum.aggregator.relay.core.sent_notes import SentNotes
from psum.aggregator.relay.core.uplink_keys import UplinkKeys
from psum.client.core.known_departures import KnownDepartures
from psum.planes import WorkerPlane
from psum.v1 import aggregator_pb2 as pb
from psum.wire import MAX_SHARDS_PER_PAYLOAD, ShardRound, decode, split, to_rows
from psum.wire.errors import FaultError, ProtocolError, PsumError

_NOTHING: Final = memoryview(b"")


class Uplink(UplinkKeys):
    """The state of one relay for one job: its keys, and what is said about them. Aggregators are named by the index of
    their uplink.

    Args: Those of UplinkKeys.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        routes: Sequence[int],
        *,
        credit_bytes: int,
        to_relay: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(addresses, routes, credit_bytes=credit_bytes, to_relay=to_relay, clock=clock)
        self.title = "a relay"
        """Who this is, in the log and in errors."""
        self.failure: PsumError | None = None
        """Why nothing more is sent."""
        self.events: list[Event] = []
        """What has come, for the group's job to take."""
        self.syncs: dict[tuple[int, int], Sequence[pb.Departure]] = {}
        """The syncs that the group has not confirmed yet, by (uplink, number): who is about to leave."""
        self.departures = KnownDepartures(len(self.addresses))
        """The other members that have left, as the owners or the group's workers have told."""
        self.received_bytes = [0] * len(self.addresses)
        """Payload received on each uplink."""
        self._broken: set[int] = set()
        """The uplinks whose stream has broken, until there is another one."""
        self._awaited: set[int] = set()
        """The uplinks whose aggregator has not let the group in."""
        self.await_all()
        self.notes = SentNotes(len(self.addresses))
        """What the owners are told beside contributions."""

    # What the group's job says.

    def confirm(self, uplink: int, number: int) -> None:
        """The group has all sums of this uplink that it has been sent."""
        if (uplink, number) in self.syncs:
            del self.syncs[uplink, number]
            self.windows[uplink].syncs.append(number)

    def fail(self, failure: PsumError) -> None:
        """Ends everything: the group's job has failed."""
        if self.failure is None:
            self.failure = failure
        self.end()

    def end(self) -> None:
        """Lets go of everything: nothing more is sent, and what still comes is ignored."""
        self.syncs.clear()
        self._release_all()

    def left(self, ranks: Iterable[int]) -> None:
        """Some ranks have left the group while others stay. Nothing more is to be forwarded for them."""
        self.notes.leave(ranks)

    def lacking(self, rounds: Sequence[tuple[int, int, int, Sequence[int]]]) -> None:
        """Tells the owners which ranks of the group some rounds wait for: (key's id, shard, round, ranks) each."""
        for uplink in range(len(self.addresses)):
            # Also of keys that some rank of the group has not declared: the owner may wait for just that rank.
            self.notes.lack(uplink, [row for row in rounds if self._leads_to(uplink, row[0], row[1])])

    def has_messages(self, aggregator: int) -> bool:
        """Whether something waits to be sent on an uplink; it may wait for credit."""
        window = self.windows[aggregator]
        if self.notes.waits(aggregator):
            return True
        return bool(window.declarations or window.aborts or window.restores or window.scheduler or window.syncs)

    def await_all(self) -> None:
        """Sends nothing until every aggregator has let the group in.

        An aggregator that knows other processes of the group refuses it. Before that, no other aggregator may have a
        contribution: some shards of one sum would be made of the old processes' values, and others of the new ones'.
        """
        self._awaited = set(range(len(self.addresses)))

    def let_in(self, aggregator: int) -> bool:
        """The aggregator at the end of an uplink has let the group in. Returns whether all have by now."""
        self._awaited.discard(aggregator)
        return not self._awaited

    # What connections ask and bring: see psum.client.transport.party.Party.

    def next_message(self, aggregator: int) -> bytes | None:
        """The next message on an uplink, None if nothing may be sent now."""
        if self._awaited:
            return None
        window = self.windows[aggregator]
        if not window.declarations and (lacking := self.notes.next_lacking(aggregator)) is not None:
            return lacking
        message = window.next_message()
        if message is None and not (window.postponed or window.scheduler):
            # Not before: the owner would miss the contributions of these ranks that are still to be sent.
            message = self.notes.next_goodbye(aggregator)
        if message is None:
            self._note_settled(aggregator)
        return message

    def following(self, aggregator: int) -> list[memoryview]:
        """The payloads that must follow the last message on an uplink on the data connection. They are given once."""
        return self.windows[aggregator].take_following()

    def receive(self, aggregator: int, data: bytes, now: float) -> None:
        """Handles a message that no payload follows. See `handle`."""
        self.handle(aggregator, *decode(pb.ExchangeResponse, data), (), now)

    def handle(
        self,
        aggregator: int,
        message: pb.ExchangeResponse,
        payload: memoryview,
        following: Iterable[memoryview],
        now: float,
    ) -> None:
        """Handles a message that came on an uplink; `events`, `wanted` and `syncs` then say what follows for the group.

        Args:
            aggregator: Which uplink.
            message: The message.
            payload: The payload in it.
            following: The payloads that followed it on the data connection.
            now: The time, in seconds.

        Raises:
            ProtocolError: The message is wrong here. Its wrong part has changed nothing.
        """
        window = self.windows[aggregator]
        match message.WhichOneof("kind"):
            case "result":
                rows = to_rows(message.result.shards, MAX_SHARDS_PER_PAYLOAD)
                plane, following = window.plane, iter(following)
                for row, piece in zip(rows, split(payload, rows), strict=True):
                    self._result(aggregator, row, plane.get(row, following) if row.outside_size else piece)
            case "taken":
                for row in to_rows(message.taken.shards):
                    shard = window.outstanding.get((row.id, row.shard))
                    if shard is not None and shard.round == row.round:
                        window.credit(shard)
                        shard.free()
            case "timings":
                for timing in message.timings.timings:
                    shard = window.outstanding.get((timing.id, timing.shard))
                    if shard is not None and shard.round == timing.round:
                        shard.timing = timing
            case "want":
                for row in to_rows(message.want.shards):
                    self._want(aggregator, row)
            case "sync":
                self.departures.note(message.sync.departures)
                self.syncs[aggregator, message.sync.number] = message.sync.departures
            case "drain":
                window.drain(to_rows(message.drain.open))
            case "notice":
                self.events.append(Noticed(message.notice.text, aggregator))
            case "fault":
                fault = FaultError.from_message(message.fault)
                self.counters.faults[fault.kind] += 1
                if fault.key is None and self.failure is None:
                    # At once: the connection asks for it.
                    self.failure = fault
                self.events.append(Faulted(fault))
            case kind:
                raise ProtocolError(f"aggregator {self.addresses[aggregator]} sent {kind}, which it must not send here")

    def welcomed(self, welcome: pb.Welcome) -> None:
        """Takes what an owner said on a new stream."""
        self.departures.note(welcome.departures)

    def departures_for(self, aggregator: int) -> list[pb.Departure]:
        """The other members that have left, for the next hello on an uplink. See Session.departures."""
        self._note_settled(aggregator)
        return self.departures.for_next_process(aggregator)

    def use_plane(self, aggregator: int, plane: WorkerPlane) -> None:
        """Uses a plane for large payloads on a new stream."""
        self.windows[aggregator].use_plane(plane)

    def waits(self, aggregator: int) -> bool | None:
        """Whether something was sent that has no result yet; None: the aggregator is about to end."""
        window = self.windows[aggregator]
        return bool(window.outstanding) if window.still_open is None else None

    def unreached(self, aggregator: int) -> list[str]:
        """The addresses of the aggregators without a connection because of which nothing is sent on an uplink."""
        missing = self._awaited or self._broken.intersection({aggregator})
        return [self.addresses[each] for each in sorted(missing)]

    def disconnected(self, aggregator: int) -> None:
        """Notes that the stream on an uplink has broken."""
        self._broken.add(aggregator)

    def reconnected(self, aggregator: int) -> None:
        """Begins anew on a new stream: declares everything again, and sends again what has no result."""
        self.counters.reconnects += 1
        self._broken.discard(aggregator)
        declared = [each for each in self.keys.values() if each.declared and aggregator in each.uplinks]
        self.windows[aggregator].start_again(
            [forwarded.declaration(aggregator, to_relay=self._to_relay) for forwarded in declared],
            [forwarded.abort for forwarded in declared if forwarded.abort is not None],
        )
        self.notes.reopened(aggregator)
        # The owner asks again if it needs an answer still.
        self.syncs = {which: leaving for which, leaving in self.syncs.items() if which[0] != aggregator}
        self.wanted.reopened(aggregator)

    def _note_settled(self, aggregator: int) -> None:
        if self.departures.may_lack(aggregator) and self.windows[aggregator].settled:
            self.departures.lacks_nothing(aggregator)

    def _result(self, aggregator: int, row: ShardRound, payload: memoryview) -> None:
        window = self.windows[aggregator]
        shard = window.outstanding.get((row.id, row.shard))
        if shard is None or shard.round != row.round:
            # It was under way when the key failed, or had its result already.
            return
        forwarded, index = shard.forwarded, shard.index
        key = forwarded.key
        # The root of a broadcast has the value already, unless another one has taken its place.
        own = key.broadcast and not shard.pulls and not payload
        total = payload if own or key.codec is None else key.codec.decode(payload, key.sizes[index])
        if len(total) != (expected := 0 if own else key.sizes[index]):
            raise ProtocolError(
                f"aggregator {self.addresses[aggregator]} answered shard {index} of key {key.title} with {len(total)}"
                f" bytes; expected {expected}"
            )
        if own:
            assert shard.value is not None
            total = shard.value
            payload = total if key.codec is None else key.codec.encode(total)
        else:
            self.received_bytes[aggregator] += len(payload)
            shard.counters.received_bytes += len(payload)
        del window.outstanding[row.id, row.shard]
        window.credit(shard)
        shard.free()
        shard.counters.exchange.observe(self._clock() - shard.sent)
        forwarded.rounds[index] = row.round + 1
        forwarded.keep(index, total)
        forwarded.count(index, row.contributors)
        # All ranks have contributed since then.
        self.wanted.forget(key.id, index)
        shard.value = None
        self.events.append(
            Arrived(key, index, row.round, shard.priority, payload, shard.timing, contributors=row.contributors)
        )

    def _want(self, aggregator: int, row: ShardRound) -> None:
        self.wanted.ask(aggregator, row)
