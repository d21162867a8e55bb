"""What a job wants done: the shell carries these out and feeds what comes of them back as events.

Those that come once a round are not frozen, which would make them twice as slow to create.
"""

import dataclasses
from collections.abc import Mapping

from psum.aggregator.core.key import Key
from psum.wire.errors import FaultError


@dataclasses.dataclass(slots=True)
class Sum:
    """Add up the contributions to a round, then tell the job `summed`.

    Attributes:
        key: The key.
        shard: The shard's number within it.
        round: The round.
        priority: How urgent it is.
        contributions: One of each rank, in rank order.
        restored: Whether this is no sum, but one that a rank gave back: tell the job `restored` instead.
    """

    key: Key
    shard: int
    round: int
    priority: int
    contributions: tuple[memoryview, ...]
    restored: bool = False


@dataclasses.dataclass(slots=True)
class Deliver:
    """Send a round's result to some ranks.

    Attributes:
        key: The key.
        shard: The shard's number within it.
        round: The round.
        priority: How urgent it is.
        result: What the job was told when it was `summed`.
        ranks: Who is to receive it.
    """

    key: Key
    shard: int
    round: int
    priority: int
    result: object
    ranks: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class ReturnCredit:
    """Tell a rank that its contributions to these rounds no longer count against its credit.

    Attributes:
        rank: The rank.
        rounds: (key's id, shard, round) each.
    """

    rank: int
    rounds: tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """Ask a rank to give back the sums of these rounds.

    Attributes:
        rank: A rank that has them.
        rounds: (key's id, shard, round) each.
    """

    rank: int
    rounds: tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Sync:
    """Ask some ranks to say when they have received all that was sent to them until now.

    Attributes:
        number: What they are to repeat.
        ranks: Who is asked.
    """

    number: int
    ranks: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Release:
    """Let a rank go that has said goodbye.

    Attributes:
        rank: The rank.
    """

    rank: int


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """Tell some ranks about a failure.

    Attributes:
        fault: The failure; with a key, that key failed, without one the job.
        ranks: Who is to hear of it.
    """

    fault: FaultError
    ranks: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Warn:
    """Tell an operator, and those who wait, whom a round waits for.

    Attributes:
        text: What to tell.
        ranks: Those who wait.
    """

    text: str
    ranks: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class TellTiming:
    """Tell ranks that asked where the time of a round went.

    Attributes:
        key: The key.
        shard: The shard's number within it.
        round: The round.
        last_rank: The rank whose contribution came last.
        waiting: From when a rank's contribution came until the last one did, in seconds, by rank.
        summing: From then until the sum was made, in seconds.
    """

    key: Key
    shard: int
    round: int
    last_rank: int
    waiting: Mapping[int, float]
    summing: float


Action = Sum | Deliver | ReturnCredit | Ask | Sync | Release | Report | Warn | TellTiming
