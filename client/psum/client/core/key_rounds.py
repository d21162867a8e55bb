"""The rounds of one key on this worker: what waits, what runs, and how far each shard is."""

from psum.client.core.buffers import Memory, flat
from psum.client.core.counters import OperationCounters
from psum.client.core.key import Key
from psum.client.core.key_loans import KeyLoans
from psum.client.core.placement import Shard
from psum.client.core.recorder import ShardRecord
from psum.client.core.ticket import Ticket
from psum.planes import WorkerPlane
from psum.v1 import aggregator_pb2 as pb
from psum.wire import LARGE_PAYLOAD_BYTES


class KeyRounds:
    """How far one key is. Used from the client's thread only.

    Args:
        key: The key.
    """

    def __init__(self, key: Key) -> None:
        self.key = key
        self.round = key.start
        """The round that is running, or is to run next."""
        self.waiting: dict[int, Ticket] = {}
        """Started or aborted operations whose turn has not come, by round."""
        self.running: Ticket | None = None
        self.parts: list[Part] = []
        """The shards as they are scheduled, made with the first operation."""
        self.next_rounds = [key.start] * len(key.shards)
        """The first round of each shard whose result this worker does not have."""
        self.sums: dict[int, memoryview | bytes] = {}
        """The last result of each shard, for an aggregator that was started again."""
        self.loans: KeyLoans | None = None
        """What it lends, None if nobody has borrowed anything."""
        self.contributors: dict[int, tuple[int, int]] = {}
        """The last round of each shard to which not all ranks contributed, and how many did. Only in elastic jobs."""
        self.abort: pb.Abort | None = None
        """What the aggregators were told when this worker could not contribute."""
        self.declared = False
        """Whether the aggregators have been told of the key."""

    def __repr__(self) -> str:
        return f"<KeyRounds {self.key.title} round={self.round} waiting={len(self.waiting)}>"

    def declaration(self, connection: int) -> pb.Key:
        """What is told of the key on one connection. A relay is told which aggregator owns each shard."""
        key = self.key
        itemsize = key.element_type.itemsize
        return pb.Key(
            id=key.id,
            name=key.name,
            elements=key.elements,
            type=key.element_type.wire,
            operation=pb.Operation.ValueType(key.operation),
            shape=key.shape,
            shards=[
                pb.Shard(
                    index=shard.index,
                    elements=shard.size // itemsize,
                    round=self.next_rounds[shard.index],
                    owner=shard.aggregator if key.relayed else 0,
                )
                for shard in key.shards
                if shard.connection == connection
            ],
            label=key.label,
            owner=key.first if key.relayed else 0,
            ranks=key.ranks,
        )


class Part:
    """One shard of a key's running operation: what the scheduler schedules.

    The operations of a key run one after another and use the same parts, because the garbage collector looks at new
    objects again and again and at old ones hardly ever. Only a key that fails leaves parts in a queue, and it has no
    further operation.

    Args:
        rounds: The rounds of its key.
        shard: Which shard it is.
        ticket: The operation.
        now: The time, in seconds.
    """

    __slots__ = (
        "cancelled",
        "counters",
        "credited",
        "id",
        "lease",
        "plain",
        "priority",
        "pulls",
        "queued",
        "record",
        "round",
        "rounds",
        "sent",
        "shard",
        "size",
        "ticket",
    )

    def __init__(self, rounds: KeyRounds, shard: Shard, ticket: Ticket, now: float = 0.0) -> None:
        self.id = rounds.key.id, shard.index
        """(key's id, shard)."""
        self.rounds = rounds
        self.shard = shard
        self.counters: OperationCounters = rounds.key.counters
        self.cancelled = False
        """Whether its key has failed, so that it is not to be sent any more."""
        self.plain = rounds.key.plain and len(rounds.key.shards) == 1 and shard.size < LARGE_PAYLOAD_BYTES
        """Whether it is all of a small key, and crosses as it is: its result is the sum."""
        self.begin(ticket, now)

    def begin(self, ticket: Ticket, now: float) -> None:
        """Makes it a part of this operation."""
        self.queued = self.sent = now
        """When it began to wait, and when it was sent last."""
        self.ticket = ticket
        self.round = ticket.round
        self.priority = ticket.priority
        self.pulls = ticket.source is None
        self.size = 0 if self.pulls else self.shard.size
        """Bytes that count against the credit while it is under way."""
        self.lease: tuple[WorkerPlane, int, int] | None = None
        """The plane that holds a place for its value, the place, and the bytes there; None if none is held."""
        self.credited = False
        """Whether its bytes no longer count against the credit, though its result has not come."""
        self.record: ShardRecord | None = None
        """What is recorded of it, None if nothing is."""

    def payload(self) -> memoryview:
        """What is sent of an operation that does not pull."""
        ticket, shard = self.ticket, self.shard
        value = flat(ticket.source)  # type: ignore[arg-type]
        if len(value) != shard.size:
            value = value[shard.start : shard.stop]
        codec = ticket.key.codec
        return value if codec is None else codec.encode(value)

    def whole_value(self) -> Memory | None:
        """What is sent, if that is the operation's source as it is and nothing is recorded. Otherwise see `payload`."""
        source = self.ticket.source
        if not self.plain or source is None or self.record is not None or source.nbytes != self.size:
            return None
        return source

    def receive(self, result: memoryview, *, own: bool = False, stays: bool = False) -> None:
        """Writes the shard's result to its place in the target, or keeps it to be lent.

        Args:
            result: The result.
            own: Whether it is this rank's own value, which `result` does not have.
            stays: Whether it lies in memory that the aggregator shares.
        """
        ticket, shard = self.ticket, self.shard
        source, target = ticket.source, ticket.target
        if target is None:
            return
        if own:
            if source is not None and target is not source:
                flat(target)[shard.start : shard.stop] = flat(source)[shard.start : shard.stop]
        elif stays and ticket.borrows and (loans := self.rounds.loans) is not None and loans.lends:
            loans.collect(shard.index, result)
        else:
            self.write(result)

    def write(self, result: memoryview) -> None:
        """Writes the shard's result to its place in the target."""
        if (target := self.ticket.target) is not None:
            flat(target)[self.shard.start : self.shard.stop] = result

    def staged(self) -> int | None:
        """The payload's offset in the staging memory, None if it does not lie there."""
        ticket = self.ticket
        return None if ticket.staged is None or ticket.key.codec is not None else ticket.staged + self.shard.start

    def went(self, sent: float, copied: float) -> None:
        """Records that its turn came at a time, and when its message was made."""
        if self.record is not None:
            self.record.sent, self.record.copied = sent, copied

    def free(self) -> None:
        """Gives back the place of its value: the aggregator has taken the value, or summed it.

        Not to be called after the operation failed on this side only: the aggregator may still sum it for other ranks.
        """
        if (lease := self.lease) is not None:
            self.lease = None
            plane, place, size = lease
            plane.free(place, size)
