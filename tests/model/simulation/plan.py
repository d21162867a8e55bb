"""The plan of one history: its sizes, and which faults happen in it and how often.

Each history gets its own plan, with a random subset of the faults ("swarm testing"). If every history had every fault,
no state would last, and situations that need several faults of one kind in a row would not occur.
"""

import dataclasses
import enum
from random import Random

from psum.client import ElementType
from psum.client.relay_levels import Level
from psum.client.route import Route
from simulation.groups import Relay, address, draw_relays

#: Steps and their weights. No step may make an operation fail.
WORK = {"use": 6, "use_all": 3, "reserve": 3, "start": 3, "moves": 12, "settle": 2, "time": 2}
FAULTS = {
    "cut": 4,
    "cut_client": 2,
    "reconnect": 4,
    "take_over": 4,
    "restart": 4,
    "restarts": 2,
    "skew": 5,
    "reconnect_one_by_one": 4,
    "cut_during_restore": 3,
    "drain": 3,
}
#: Further faults of histories with relays.
RELAY_FAULTS = {"restart_several": 4, "lose_result": 3}


#: Further faults of histories with an elastic job. They do not make operations of the survivors fail.
ELASTIC_FAULTS = {
    "kill": 4,
    "stop": 3,
    "resume": 3,
    "lose": 5,
    "lose_at_one": 3,
    "lose_unseen": 2,
    "come_back_first": 3,
    "leave": 2,
    "join": 10,
    "part": 3,
    "share": 4,
    "forget": 2,
}


class Ending(enum.Enum):
    """The ending of a history. Unlike faults, most endings make operations fail."""

    ALL_LEAVE = "all ranks catch up, and leave as soon as they are done"
    DEATH = "a worker is killed and not replaced"
    HOST_DEATH = "several workers are killed at once, with their relay if they have one"
    RELAY_DEATH = "a relay is killed and never comes back, or loses an owner for good"
    REPLACEMENT = "a worker is killed, and another process takes its rank"
    TERMINATION = "a worker is told to end, and perhaps another process takes its rank"
    ABORT = "a worker cannot contribute to some round"
    EARLY_LEAVE = "a worker leaves before the others are done"
    LATE_JOIN = "a worker joins after others have joined and left"
    STALL = "a worker does not contribute to some round in time"
    NO_KEPT_SUMS = "workers do not keep their sums"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of one history.

    Attributes:
        workers: Number of ranks.
        aggregators: Number of aggregators that own shards.
        relays: The relays, each after those that forward to it.
        weights: The aggregators' weights for placement. Empty means all 1.
        by_roles: Whether the ranks agree on the weights instead, by what runs on their hosts.
        partition_bytes: Size of a shard.
        credit_bytes: Maximum number of bytes in flight to one aggregator.
        batch_bytes: Maximum size of a message that carries several small shards.
        inline_bytes: Smaller sums are computed at once, larger ones later.
        window: Maximum number of unread messages in one direction of a stream.
        duplicate_rate: Probability that a message which may arrive twice does.
        keys: Number of elements and element type of each key.
        steps: Weight of each possible step.
        length: Number of steps.
        ending: How the history ends.
        elastic: Whether the job is elastic.
        spares: Number of further ranks that may join an elastic job.
        relay_patience: How many times as long as that of a worker the place of a relay is kept.
        direct: Probability that a stream has a data connection, where large payloads follow their message.
    """

    workers: int
    aggregators: int
    relays: tuple[Relay, ...]
    weights: tuple[int, ...]
    by_roles: bool
    partition_bytes: int
    credit_bytes: int
    batch_bytes: int
    inline_bytes: int
    window: int
    duplicate_rate: float
    keys: tuple[tuple[int, ElementType], ...]
    steps: dict[str, int]
    length: int
    ending: Ending
    elastic: bool = False
    spares: int = 0
    relay_patience: int = 1
    direct: float = 0.0

    @property
    def ranks(self) -> int:
        """The number of ranks that the job may have."""
        return self.workers + self.spares

    def as_elastic(self, random: Random) -> "Plan":
        """Return the same plan for an elastic job, in which workers are lost.

        With relays all keys are of integers: the order of addition changes with the groups.
        """
        faults = {name: weight * random.choice((1, 2)) for name, weight in ELASTIC_FAULTS.items()}
        return dataclasses.replace(
            self,
            workers=self.workers if self.relays else random.choice((1, 2, 2, 3, 3, 4)),
            keys=tuple((n, ElementType.INT32 if self.relays else kind) for n, kind in self.keys),
            spares=random.choice((0, 0, 1, 2)),
            relay_patience=random.choice((1, 3)) if self.relays else 1,
            steps=self.steps | faults,
            ending=Ending.ALL_LEAVE,
            elastic=True,
        )

    def as_direct(self, random: Random) -> "Plan":
        """Return the same plan with data connections. Most payloads follow their message, and several at a time."""
        return dataclasses.replace(
            self,
            direct=random.choice((0.5, 0.9, 1.0, 1.0)),
            partition_bytes=16 if self.partition_bytes == 64 else self.partition_bytes,
            inline_bytes=random.choice((0, 8, 16)),
            credit_bytes=random.choice((32, 100, 1 << 24)),
            window=random.choice((1, 1, 3, 1000)),
        )

    @property
    def small_bytes(self) -> int:
        """Smaller contributions are sent together."""
        return min(self.batch_bytes, self.inline_bytes) if self.direct else self.batch_bytes

    @classmethod
    def draw(cls, random: Random, *, relayed: bool) -> "Plan":
        """Draw a random plan, with or without relays."""
        aggregators = random.choice((1, 1, 2, 2, 3))
        possible = FAULTS | RELAY_FAULTS if relayed else FAULTS
        faults = {name: weight * random.choice((1, 1, 4)) for name, weight in possible.items() if random.random() < 0.4}
        if random.random() < 0.1:
            faults = {}
        if faults:
            faults["reconnect"] = max(4, sum(faults.values()) // 4)
        sizes = [random.choice((0, 1, 3, 5, 40, 100)) for _ in range(random.choice((1, 1, 2, 2, 4)))]
        if random.random() < 0.06:
            sizes[0] = random.choice((9_000, 20_000, 33_000))
        big = max(sizes) > 1000
        by_roles = aggregators > 1 and random.random() < 0.25
        workers = random.choice((1, 2, 2, 2, 3, 3, 3, 4))
        relays: tuple[Relay, ...] = ()
        if relayed:
            workers, relays = draw_relays(random, aggregators)
        return cls(
            workers=workers,
            aggregators=aggregators,
            relays=relays,
            weights=(
                tuple(random.randint(1, 3) for _ in range(aggregators))
                if random.random() < 0.2 and not by_roles
                else ()
            ),
            by_roles=by_roles,
            partition_bytes=random.choice((1 << 14, 1 << 16, 1 << 20) if big else (4, 16, 16, 64, 64, 1 << 20)),
            credit_bytes=random.choice((1, 16, 32, 100, 1 << 24)),
            batch_bytes=random.choice((8, 64, 64 << 10)),
            inline_bytes=random.choice((0, 0, 32, 32 << 10)),
            window=random.choice((1, 3, 1000, 1000)),
            duplicate_rate=random.choice((0, 0, 0.05, 0.5)),
            keys=tuple((n, random.choice((ElementType.INT32, ElementType.FLOAT32))) for n in sizes),
            steps={name: weight * random.choice((1, 1, 3)) for name, weight in WORK.items()} | faults,
            length=random.choice((10, 20, 20, 40)),
            ending=random.choice((*[Ending.ALL_LEAVE] * 14, *Ending)),
        )

    @property
    def levels(self) -> int:
        """The number of levels of relays."""
        return 0 if not self.relays else 1 + any(relay.above is not None for relay in self.relays)

    @property
    def processes(self) -> int:
        """The number of aggregator processes: the owners of shards, and those that are only relays."""
        return max([self.aggregators, *(relay.process + 1 for relay in self.relays)])

    @property
    def addresses(self) -> list[str]:
        """The addresses of the owners of shards."""
        return [address(process) for process in range(self.aggregators)]

    def relay_of(self, rank: int) -> Relay | None:
        """Return the relay of a rank's first worker, None if that connects to the owners."""
        return next((relay for relay in self.relays if rank in relay.ranks), None)

    def route_by(self, relay: Relay | None) -> Route:
        """Return where a worker with this relay connects to, and the relays behind that."""
        if relay is None:
            return Route(tuple(self.addresses))
        levels = []
        above = self.above(relay)
        while above is not None:
            levels.append(Level(address(above.process), len(above.ranks)))
            above = self.above(above)
        return Route((address(relay.process),), len(relay.ranks), tuple(levels))

    def processes_by(self, relay: Relay | None) -> list[int]:
        """Return the processes that a worker with this relay connects to."""
        return list(range(self.aggregators)) if relay is None else [relay.process]

    def above(self, relay: Relay) -> Relay | None:
        """Return the relay that another one forwards to, None if it forwards to the owners."""
        return None if relay.above is None else self.relays[relay.above]
