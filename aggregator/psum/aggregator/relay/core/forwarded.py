"""A key that a relay forwards, and its shards as they are sent to their owners."""

from collections.abc import Mapping
from typing import Final

from psum.aggregator.core.key import Key
from psum.client.core.counters import OperationCounters
from psum.planes import WorkerPlane
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ProtocolError

#: Sums from this size on are kept as views of their message, which is hardly more than twice as large.
_KEPT_VIEW_BYTES: Final = 256 << 10


class ForwardedKey:
    """How far one key is between a relay and the owners of its shards.

    Args:
        key: The key in the job of the relay's group.
        owners: The index of the aggregator that owns each shard, by the shard's number.
        first_owner: The owner that is told of the key if it has no shards.
        routes: Which uplink leads to each owner.
        counters: Where its shards are counted.
    """

    def __init__(
        self,
        key: Key,
        owners: Mapping[int, int],
        first_owner: int,
        routes: Mapping[int, int],
        counters: OperationCounters,
    ) -> None:
        self.key = key
        self.owners = owners
        self.first_owner = first_owner
        self.route = {index: routes[owner] for index, owner in owners.items()}
        """The uplink by which each shard is sent, by the shard's number."""
        self.uplinks = frozenset(self.route.values()) or frozenset({routes[first_owner]})
        """The uplinks on which the key is declared."""
        self.counters = counters
        self.declared_by: set[int] = set()
        """The members of the group that have declared it."""
        self.declared = False
        """Whether the owners are told of it. Only then are the rounds known."""
        self.rounds: dict[int, int] = {}
        """The first round of each shard whose result the group does not have, by the shard's number."""
        self.sums: dict[int, memoryview | bytes] = {}
        """The last result of each shard, for an owner that was started again."""
        self.contributors: dict[int, int] = {}
        """In an elastic job, how many ranks each of these results counts, unless it is the nominal number."""
        self.abort: pb.Abort | None = None
        """What the owners were told when the group could not contribute."""
        self.failed = False
        """Whether the key has failed. Then nothing of it is sent."""
        self.shards: dict[int, ForwardedShard] = {}
        """The shards as they are scheduled, made with the first round, by the shard's number."""

    def __repr__(self) -> str:
        return f"<ForwardedKey {self.key.title} declared={self.declared}>"

    def declaration(self, uplink: int, *, to_relay: bool) -> pb.Key:
        """What is declared on one uplink. Only a relay further up is told who owns the shards, as workers tell theirs.

        An owner compares declarations, also with those of workers that have no relay and name no owners.
        """
        first = self.key.declared
        elements = {shard.index: shard.elements for shard in first.shards}
        return pb.Key(
            id=first.id,
            name=first.name,
            elements=first.elements,
            type=first.type,
            operation=first.operation,
            shape=first.shape,
            shards=[
                pb.Shard(
                    index=index,
                    elements=elements[index],
                    round=self.rounds[index],
                    owner=self.owners[index] if to_relay else 0,
                )
                for index, route in self.route.items()
                if route == uplink
            ],
            label=self.key.label,
            ranks=first.ranks,
            owner=self.first_owner if to_relay else 0,
        )

    def count(self, index: int, contributors: int) -> None:
        """Notes how many ranks the last result of a shard counts; 0: the nominal number."""
        if contributors:
            self.contributors[index] = contributors
        else:
            self.contributors.pop(index, None)

    def keep(self, index: int, payload: memoryview | bytes) -> None:
        """Keeps the last result of a shard."""
        # A view keeps the whole message: little more than a large payload, but many times a small one.
        self.sums[index] = payload if len(payload) >= _KEPT_VIEW_BYTES else bytes(payload)


class ForwardedShard:
    """One shard of a running round, as it is sent to its owner. The rounds of a shard use the same object.

    Args:
        forwarded: Its key.
        index: Its number within the key.
    """

    __slots__ = (
        "contributors",
        "counters",
        "credited",
        "forwarded",
        "id",
        "index",
        "lease",
        "priority",
        "pulls",
        "queued",
        "record",
        "round",
        "sent",
        "size",
        "timing",
        "value",
    )

    def __init__(self, forwarded: ForwardedKey, index: int) -> None:
        self.id = forwarded.key.id, index
        """(key's id, shard)."""
        self.forwarded = forwarded
        self.index = index
        self.counters = forwarded.counters
        self.begin(0, 0, None, timed=False, now=0.0)

    def begin(
        self,
        round: int,
        priority: int,
        value: memoryview | None,
        *,
        timed: bool,
        now: float,
        contributors: int = 0,
    ) -> None:
        """Makes it the shard of this round.

        Args:
            round: The round.
            priority: How urgent it is.
            value: The group's sum, unchanged until the result is here; None: the group pulls.
            timed: Whether a rank of the group asked how long the round waited.
            now: The time, in seconds.
            contributors: In an elastic job, how many ranks the sum counts.
        """
        self.round = round
        self.contributors = contributors
        self.priority = priority
        self.value = value
        self.record = True if timed else None
        self.timing: pb.Timing | None = None
        """What the owner said of the time that the round took there."""
        self.pulls = value is None
        self.size = 0 if value is None else len(value)
        self.queued = self.sent = now
        self.lease: tuple[WorkerPlane, int, int] | None = None
        self.credited = False

    def whole_value(self) -> memoryview | None:
        """See Outgoing: what a relay forwards takes the way of `payload`."""
        return None

    @property
    def cancelled(self) -> bool:
        """Whether its key has failed, so that it is not to be sent any more."""
        return self.forwarded.failed

    def payload(self) -> memoryview:
        """What is sent."""
        assert self.value is not None
        codec = self.forwarded.key.codec
        return self.value if codec is None else codec.encode(self.value)

    def staged(self) -> None:
        """It never lies in staging memory."""

    def went(self, sent: float, copied: float) -> None:
        """Timings of a relay are those of its owner."""

    def free(self) -> None:
        """Gives back the place of its value: the owner has taken the value, or summed it."""
        if (lease := self.lease) is not None:
            self.lease = None
            plane, place, size = lease
            plane.free(place, size)


def owners_of(declared: pb.Key, aggregators: int, who: str) -> dict[int, int]:
    """The owner of each shard that a worker declares to its relay.

    Args:
        declared: The declaration.
        aggregators: How many aggregators own shards.
        who: Who declares, for the error.

    Raises:
        ProtocolError: There is no such owner.
    """
    owners = {shard.index: shard.owner for shard in declared.shards}
    worst = max((*owners.values(), declared.owner))
    if worst >= aggregators:
        raise ProtocolError(
            f"{who} declared key {declared.name[:80]!r} for aggregator {worst}, counted from 0, of a list of"
            f" {aggregators}"
        )
    return owners
