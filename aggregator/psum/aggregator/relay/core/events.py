"""What has come on the uplinks of a relay, for the job of its group to take."""

import dataclasses

from psum.aggregator.core.key import Key
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError


@dataclasses.dataclass(slots=True)
class Arrived:
    """The result of a round is here.

    Attributes:
        key: The key.
        shard: The shard's number within it.
        round: The round.
        priority: How urgent it is.
        payload: The result, as it is sent to workers. It stays unchanged until the group contributes to the next round.
        timing: How long the round waited at the owner, None if nobody asked.
        contributors: In an elastic job, how many ranks it counts; 0: as many as the job began with.
    """

    key: Key
    shard: int
    round: int
    priority: int
    payload: memoryview
    timing: pb.Timing | None
    contributors: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Faulted:
    """An owner has reported a failure.

    Attributes:
        fault: The failure.
    """

    fault: FaultError


@dataclasses.dataclass(frozen=True, slots=True)
class Noticed:
    """An owner wants the workers' users to know something.

    Attributes:
        text: What.
        aggregator: The index of the uplink.
    """

    text: str
    aggregator: int


@dataclasses.dataclass(frozen=True, slots=True)
class LossesTold:
    """An owner has told which ranks of an elastic job are lost.

    Attributes:
        losses: The losses.
    """

    losses: tuple[pb.Loss, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class CandidatesTold:
    """An owner has told which processes wait to join an elastic job; all of them.

    Attributes:
        uplink: The uplink of the owner.
        candidates: The processes.
    """

    uplink: int
    candidates: tuple[pb.Candidate, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Decided:
    """An owner has decided about a process that waits at this relay.

    Attributes:
        uplink: The uplink of the owner.
        decision: What it has decided.
    """

    uplink: int
    decision: pb.Decision


@dataclasses.dataclass(frozen=True, slots=True)
class UplinkReopened:
    """An uplink has another stream. What its owner said of candidates on the one before, it says again.

    Attributes:
        uplink: The uplink.
    """

    uplink: int


@dataclasses.dataclass(frozen=True, slots=True)
class Admitted:
    """An owner has let the relay in with the only process of its group, which all members have admitted.

    Attributes:
        admission: The admission, with the rounds of keys that have shards there.
    """

    admission: pb.Admission


Event = Arrived | Faulted | Noticed | LossesTold | CandidatesTold | Decided | UplinkReopened | Admitted
