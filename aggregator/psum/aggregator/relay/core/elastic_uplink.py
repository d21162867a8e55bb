"""What a relay of an elastic job sends to the owners of shards besides, and what they answer."""

from collections.abc import Iterable
from typing import Any

from psum.aggregator.core.admissions import Admission
from psum.aggregator.core.key import Key
from psum.aggregator.relay.core.events import Admitted, CandidatesTold, Decided, LossesTold, UplinkReopened
from psum.aggregator.relay.core.uplink import Uplink
from psum.aggregator.relay.core.uplink_news import AdmissionNews, CandidateNews
from psum.client.core.gossip import Gossip
from psum.client.core.known_losses import KnownLosses
from psum.client.core.reach import Reach
from psum.client.core.send_window import SendWindow
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound


class ElasticUplink(Uplink):
    """See Uplink. It passes losses on in both directions, and says how many ranks each contribution counts.

    Args:
        addresses: The address of each uplink.
        uplink: What Uplink takes besides.
    """

    def __init__(self, addresses: Iterable[str], *uplink: Any, **others: Any) -> None:
        super().__init__(tuple(addresses), *uplink, **others)
        self.losses = KnownLosses(len(self.addresses))
        """The losses that are known, and which owners must be told of them."""
        self.wanted_values: dict[tuple[int, int], ShardRound] = {}
        """Values that owners asked for in place of those of lost roots, of the current round, by (key's id, shard)."""
        self.was_let_in = False
        """Whether every aggregator has let the group in before."""
        self._candidates = CandidateNews(len(self.addresses))
        self._admissions = AdmissionNews()
        self._reach = Reach(len(self.addresses))
        self._gossip = Gossip(self.losses, self._admissions, self._reach, self._clock, self._candidates)
        self._missing: set[int] = set()
        """The uplinks without a stream, of those that had one."""

    def _make_window(self, credit_bytes: int) -> SendWindow[Any]:
        return SendWindow(credit_bytes, self.counters, self._clock, lambda shard: shard.contributors, brief=True)

    @property
    def reaches_all(self) -> bool:
        """Whether there is a stream to each aggregator. True also before there was any."""
        return not self.was_let_in or not (self._awaited or self._missing)

    def let_in(self, aggregator: int) -> bool:
        """See Uplink."""
        everywhere = super().let_in(aggregator)
        self.notes.hello_arrived(aggregator)
        self._missing.discard(aggregator)
        self.was_let_in = self.was_let_in or everywhere
        return everywhere

    def tell_candidates(self, candidates: list[pb.Candidate]) -> bool:
        """Tells the owners which processes wait at this relay. Returns whether that is new."""
        return self._candidates.tell(candidates)

    def admit(self, admission: Admission) -> None:
        """Tells the owners of an admission that the whole group has said."""
        for uplink in range(len(self.addresses)):
            self._admissions.tell(uplink, self.admission_for(uplink, admission))

    def admission_for(self, uplink: int, admission: Admission) -> pb.Admission:
        """An admission as one owner is told of it: with the rounds of the keys that have shards there."""
        message = pb.Admission(rank=admission.rank, generation=admission.generation, incarnation=admission.incarnation)
        for key_id, round in admission.rounds.items():
            forwarded = self.keys.get(key_id)
            # Members that have joined name keys that they do not know.
            if forwarded is None or uplink in forwarded.uplinks:
                message.ids.append(key_id)
                message.rounds.append(round)
        return message

    def forget(self, key_ids: Iterable[int]) -> None:
        """Forgets keys that are at rest and that the group has forgotten."""
        for key_id in key_ids:
            forwarded = self.keys.pop(key_id)
            forwarded.failed = True
            for index, uplink in forwarded.route.items():
                self.wanted.forget(key_id, index)
                self.wanted_values.pop((key_id, index), None)
                self.windows[uplink].outstanding.pop((key_id, index), None)

    def forget_keys(self) -> None:
        """Forgets all keys, which the group declares again. The streams must be opened again."""
        self._release_all()

    def _release_all(self) -> None:
        super()._release_all()
        self.wanted_values.clear()

    def give_value(self, key_id: int, index: int, round: int, value: memoryview) -> None:
        """Takes the value of a broadcast from a rank of the group, in place of that of the root, which is lost."""
        forwarded, row = self.keys.get(key_id), self.wanted_values.get((key_id, index))
        if forwarded is None or forwarded.failed or row is None or row.round != round:
            return
        if len(value) != forwarded.key.sizes[index]:
            return
        del self.wanted_values[key_id, index]
        row = ShardRound(key_id, index, round, length=len(value))
        self.windows[forwarded.route[index]].restores.append((row, bytes(value)))

    def desert(self, key_id: int) -> None:
        """Ends a key that no rank of the group uses any more. No owner answers what is under way of it. None is told:
        ranks of other groups may go on with the key."""
        if (forwarded := self.keys.get(key_id)) is not None and not forwarded.failed:
            self._end(forwarded)
            # Nor is one that is started again.
            forwarded.declared = False
            for index in forwarded.route:
                self.wanted_values.pop((key_id, index), None)

    def fail_key(self, key: Key, abort: pb.Abort, *, known: bool) -> None:
        """See Uplink."""
        super().fail_key(key, abort, known=known)
        for index in key.sizes:
            self.wanted_values.pop((key.id, index), None)

    def has_messages(self, aggregator: int) -> bool:
        """See Uplink."""
        return self._gossip.waits(aggregator) or super().has_messages(aggregator)

    def next_message(self, aggregator: int) -> bytes | None:
        """See Uplink. Losses come before contributions without the lost ranks."""
        if self._awaited:
            return None
        if (news := self._gossip.next_message(aggregator)) is not None:
            return news
        return super().next_message(aggregator)

    def handle(
        self,
        aggregator: int,
        message: pb.ExchangeResponse,
        payload: memoryview,
        following: Iterable[memoryview],
        now: float,
    ) -> None:
        """See Uplink."""
        match message.WhichOneof("kind"):
            case "losses":
                self._note_losses(message.losses.losses, now, aggregator)
            case "candidates":
                self.events.append(CandidatesTold(aggregator, tuple(message.candidates.candidates)))
            case "decision":
                self.events.append(Decided(aggregator, message.decision))
            case _:
                super().handle(aggregator, message, payload, following, now)

    def welcomed(self, welcome: pb.Welcome) -> None:
        """See Uplink."""
        super().welcomed(welcome)
        self._note_losses(welcome.losses, self._clock())
        if welcome.HasField("admission"):
            self.events.append(Admitted(welcome.admission))

    def disconnected(self, aggregator: int) -> None:
        """See Uplink."""
        super().disconnected(aggregator)
        self._missing.add(aggregator)
        self._reach.lost(aggregator)

    def reconnected(self, aggregator: int) -> None:
        """See Uplink."""
        super().reconnected(aggregator)
        self._missing.discard(aggregator)
        self._reach.found(aggregator)
        self.events.append(UplinkReopened(aggregator))
        self._candidates.reopened(aggregator)
        for key_id, index in list(self.wanted_values):
            if self.keys[key_id].route[index] == aggregator:
                del self.wanted_values[key_id, index]

    def _note_losses(self, losses: Iterable[pb.Loss], now: float, told_by: int | None = None) -> None:
        if told := tuple(losses):
            self.losses.note(told, now, told_by)
            self.events.append(LossesTold(told))

    def _want(self, aggregator: int, row: ShardRound) -> None:
        forwarded = self.keys.get(row.id)
        if (
            forwarded is not None
            and not forwarded.failed
            and forwarded.key.broadcast
            and forwarded.route.get(row.shard) == aggregator
            and forwarded.rounds.get(row.shard) == row.round
        ):
            self.wanted_values[row.id, row.shard] = row
            return
        super()._want(aggregator, row)

    def _result(self, aggregator: int, row: ShardRound, payload: memoryview) -> None:
        self.wanted_values.pop((row.id, row.shard), None)
        super()._result(aggregator, row, payload)
