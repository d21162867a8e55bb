"""The actions of a job. The shell carries them out, and calls the job again with the outcome of sums.

service/action_runner.py is that shell. Each docstring names the message on the wire (a kind of ExchangeResponse).

The actions that occur in each round are not frozen: frozen ones take twice as long to create.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.key import Key
from psum.aggregator.core.layouts import Message
from psum.aggregator.core.roster import Roster
from psum.aggregator.core.round import ShardRounds
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError


@dataclasses.dataclass(slots=True)
class Sum:
    """Add up the contributions to a round, then call the job's `summed`. No message.

    Attributes:
        key: The key.
        shard: The shard's number within it.
        round: The round.
        priority: How urgent it is.
        contributions: One of each rank, in rank order.
        restored: The only contribution is a sum that a rank gave back: call `restored` instead.
        relayed: In the job of a relay's group, the only contribution is the result that came from the shard's owner. A
            sum of the group's own contributions is passed to `forward` instead.
        contributors: In an elastic job, of how many ranks the sum is; 0: of all.
    """

    key: Key
    shard: int
    round: int
    priority: int
    contributions: tuple[memoryview, ...]
    restored: bool = False
    relayed: bool = False
    contributors: int = 0


@dataclasses.dataclass(slots=True)
class SumTogether:
    """Add up the contributions to the current rounds of small shards, call the job's `summed_together`, and deliver.

    All members have contributed to all of them. The message on the wire is that of Deliver: `result`.

    Attributes:
        roster: The ranks that use them, which get the results.
        shards: Each shard with its key and its number within the key. A shard whose key has failed is left out.
        messages: The messages in which some members have sent their contributions to these shards, as far as known.
            They may have sent others since, or in another order.
    """

    roster: Roster
    shards: list[tuple[Key, int, ShardRounds[object]]]
    messages: dict[int, Message] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class Deliver:
    """Send a round's result to some ranks: `result`.

    Attributes:
        key: The key.
        shard: The shard's number within it.
        round: The round.
        priority: How urgent it is.
        result: What the shell passed to `summed`.
        ranks: The receivers.
        contributors: In an elastic job, of how many ranks the result is; 0: of all.
        sender: In a broadcast, the receiver that has the value and is only told that all have asked for it; -1: none.
    """

    key: Key
    shard: int
    round: int
    priority: int
    result: object
    ranks: tuple[int, ...]
    contributors: int = 0
    sender: int = -1


@dataclasses.dataclass(frozen=True, slots=True)
class ReturnCredit:
    """Tell a rank that its contributions to these rounds no longer count against its credit: `taken`.

    Attributes:
        rank: The rank.
        rounds: (key's id, shard, round) each.
    """

    rank: int
    rounds: tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """Ask a rank to give back the sums of these rounds: `want`.

    Attributes:
        rank: A rank that has them.
        rounds: (key's id, shard, round) each.
    """

    rank: int
    rounds: tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Sync:
    """Ask some ranks to confirm that they have received everything that was sent to them before: `sync`.

    Attributes:
        number: The number that they repeat in the answer.
        ranks: The ranks to ask.
        departures: The members that are about to leave.
    """

    number: int
    ranks: tuple[int, ...]
    departures: tuple[pb.Departure, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Release:
    """Tell a rank that has said goodbye that it may end: `farewell`. It is the last message to the rank.

    Attributes:
        rank: The rank.
    """

    rank: int


@dataclasses.dataclass(frozen=True, slots=True)
class EndStreams:
    """End the streams of some ranks. They open others, and send everything again that has no result. No message.

    Attributes:
        ranks: The ranks.
    """

    ranks: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """Tell some ranks about a failure: `fault`. If it fails the job, it is the last message to them.

    Attributes:
        fault: The failure of a key or, if it names no key, of the job.
        ranks: The ranks to tell.
    """

    fault: FaultError
    ranks: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Warn:
    """Log a warning, and send it to some ranks: `notice`.

    Attributes:
        text: The warning.
        ranks: The ranks to tell, mostly those that wait.
    """

    text: str
    ranks: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class TellLosses:
    """Tell some ranks which ranks of their elastic job are lost: `losses`. It goes ahead of results.

    Attributes:
        losses: The losses that they may not know.
        ranks: The ranks to tell.
    """

    losses: Sequence[pb.Loss]
    ranks: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class TellCandidates:
    """Tell some ranks which processes wait to join their elastic job: `candidates`.

    Attributes:
        candidates: All that wait.
        ranks: The ranks to tell.
    """

    candidates: Sequence[pb.Candidate]
    ranks: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Detach:
    """Forget the stream of a rank: its process is lost or has left, and another process was admitted. No message.

    Attributes:
        rank: The rank.
    """

    rank: int


@dataclasses.dataclass(frozen=True, slots=True)
class Admit:
    """Make a candidate the worker of its rank: `welcome`.

    Attributes:
        candidate: The candidate.
    """

    candidate: Candidate


@dataclasses.dataclass(frozen=True, slots=True)
class Refuse:
    """Tell a candidate that it waits in vain: `fault`. It is the last message to it.

    Attributes:
        candidate: The candidate.
        fault: The reason.
    """

    candidate: Candidate
    fault: FaultError


@dataclasses.dataclass(frozen=True, slots=True)
class Decide:
    """Tell a relay what becomes of a process that waits at it: `decision`.

    Attributes:
        rank: The relay.
        decision: Which process, and why it is refused, or its admission.
    """

    rank: int
    decision: pb.Decision


@dataclasses.dataclass(frozen=True, slots=True)
class TellTiming:
    """Tell the ranks that asked for timings how long the phases of a round took: `timings`.

    Attributes:
        key: The key.
        shard: The shard's number within it.
        round: The round.
        last_rank: The rank whose contribution came last.
        waiting: Seconds from a rank's contribution to the last one, by rank. At a relay, also what the group's sum then
            waited at the shard's owner.
        summing: Seconds from the last contribution to the sum. At a relay, also that at the owner.
        forwarding: Seconds that the group's sum and the result were on their way; 0 if this is the owner.
    """

    key: Key
    shard: int
    round: int
    last_rank: int
    waiting: Mapping[int, float]
    summing: float
    forwarding: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectUplinks:
    """Connect to the aggregators that this relay forwards to. Only from the job of a relay's group, and only once."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReopenUplinks:
    """Close the streams to the aggregators that this relay forwards to, and connect to them anew, as another member.

    Another process has taken the place of a worker of the group that had taken part in nothing.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class SendUplinks:
    """There may be something to send to the aggregators that this relay forwards to."""


@dataclasses.dataclass(frozen=True, slots=True)
class LeaveUplinks:
    """Say goodbye to the aggregators that this relay forwards to, after everything was sent: all its ranks leave."""


@dataclasses.dataclass(frozen=True, slots=True)
class PartUplinks:
    """Say goodbye to the aggregators that this relay forwards to at once, because the job has failed.

    Attributes:
        goodbye: The goodbye, with the reason.
    """

    goodbye: pb.Goodbye


UplinkAction = ConnectUplinks | ReopenUplinks | SendUplinks | LeaveUplinks | PartUplinks
Action = (
    Sum
    | SumTogether
    | Deliver
    | ReturnCredit
    | Ask
    | Sync
    | Release
    | EndStreams
    | Report
    | Warn
    | TellLosses
    | TellCandidates
    | Detach
    | Admit
    | Refuse
    | Decide
    | TellTiming
    | UplinkAction
)
