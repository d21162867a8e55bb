"""What one history is made of: its sizes, which faults happen in it and how often.

Drawn anew for each history, and unevenly on purpose: where every fault happens in every history, none lasts long enough
to get anywhere, and what takes three faults of one kind in a row never comes about ("swarm testing").
"""

import dataclasses
import enum
from random import Random

from psum.client import ElementType

#: What may be done in a history without any operation failing, and its weight where a plan has it.
WORK = {"use": 6, "use_all": 3, "reserve": 3, "start": 3, "moves": 12, "settle": 2, "time": 2}
FAULTS = {
    "cut": 4,
    "cut_rank": 2,
    "reconnect": 4,
    "take_over": 4,
    "restart": 4,
    "restarts": 2,
    "skew": 5,
    "return_in_turn": 4,
    "lose_a_holder": 3,
    "drain": 3,
}


class Ending(enum.Enum):
    """What a history comes to, besides the faults that nobody may notice."""

    ALL_LEAVE = "all ranks do the same and leave when they are done, while others are not yet"
    DEATH = "a worker is killed, and does not come back"
    REPLACEMENT = "a worker is killed, and another process takes its rank"
    TERMINATION = "a worker is told to end, and perhaps another process takes its rank"
    ABORT = "a worker cannot contribute to some round"
    DESERTION = "a worker leaves before the others are through"
    LATENESS = "a worker joins when others have joined and left"
    STALL = "a worker does not contribute to some round in time"
    FORGETFUL = "workers do not keep their sums"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The make-up of one history.

    Attributes:
        workers: The number of ranks.
        aggregators: The number of aggregators.
        weights: Their weights in placement, empty: all 1.
        partition_bytes: The size of a shard.
        credit_bytes: Bytes that may be under way to one aggregator.
        batch_bytes: How much small shards share a message.
        inline_bytes: Sums below this are made at once, others some time later.
        window: Messages that a stream takes before its reader has read some.
        echoes: How often a message that may come twice does.
        keys: Elements and type of each key.
        steps: The weight of each step that may be done.
        length: The number of steps.
        ending: What it comes to.
    """

    workers: int
    aggregators: int
    weights: tuple[int, ...]
    partition_bytes: int
    credit_bytes: int
    batch_bytes: int
    inline_bytes: int
    window: int
    echoes: float
    keys: tuple[tuple[int, ElementType], ...]
    steps: dict[str, int]
    length: int
    ending: Ending

    @classmethod
    def draw(cls, random: Random) -> "Plan":
        """A plan by chance."""
        aggregators = random.choice((1, 1, 2, 2, 3))
        faults = {name: weight * random.choice((1, 1, 4)) for name, weight in FAULTS.items() if random.random() < 0.4}
        if random.random() < 0.1:
            faults = {}
        if faults:
            faults["reconnect"] = max(4, sum(faults.values()) // 4)
        sizes = [random.choice((0, 1, 3, 5, 40, 100)) for _ in range(random.choice((1, 1, 2, 2, 4)))]
        if random.random() < 0.06:
            sizes[0] = random.choice((9_000, 20_000, 33_000))
        big = max(sizes) > 1000
        return cls(
            workers=random.choice((1, 2, 2, 2, 3, 3, 3, 4)),
            aggregators=aggregators,
            weights=tuple(random.randint(1, 3) for _ in range(aggregators)) if random.random() < 0.2 else (),
            partition_bytes=random.choice((1 << 14, 1 << 16, 1 << 20) if big else (4, 16, 16, 64, 64, 1 << 20)),
            credit_bytes=random.choice((1, 16, 32, 100, 1 << 24)),
            batch_bytes=random.choice((8, 64, 64 << 10)),
            inline_bytes=random.choice((0, 0, 32, 32 << 10)),
            window=random.choice((1, 3, 1000, 1000)),
            echoes=random.choice((0, 0, 0.05, 0.5)),
            keys=tuple((n, random.choice((ElementType.INT32, ElementType.FLOAT32))) for n in sizes),
            steps={name: weight * random.choice((1, 1, 3)) for name, weight in WORK.items()} | faults,
            length=random.choice((10, 20, 20, 40)),
            ending=random.choice((*[Ending.ALL_LEAVE] * 14, *Ending)),
        )
