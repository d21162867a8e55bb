"""Keys of bytes with one shard, which are all that most tests of a job need."""

from collections.abc import Sequence
from typing import Final

from psum.aggregator.core.actions import Action
from psum.aggregator.core.job import Job
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound

#: A contribution to a key of four bytes.
FOUR: Final = memoryview(b"abcd")


def key(
    id: int = 7,
    *,
    name: str = "w",
    elements: int = 4,
    round: int = 0,
    broadcast: bool = False,
    ranks: Sequence[int] = (),
) -> pb.Key:
    """The declaration of a key by a member that is at this round."""
    return pb.Key(
        id=id,
        name=name,
        elements=elements,
        type=pb.ELEMENT_TYPE_UINT8,
        operation=pb.OPERATION_BROADCAST if broadcast else pb.OPERATION_SUM,
        shape=[elements],
        shards=[pb.Shard(index=0, elements=elements, round=round)],
        ranks=ranks,
    )


def entry(round: int = 0, *, id: int = 7, priority: int = 0, shard: int = 0, length: int = 4) -> ShardRound:
    """What a message says of a contribution."""
    return ShardRound(id=id, shard=shard, round=round, priority=priority, length=length)


def declare(
    job: Job, member: int, round: int = 0, *, broadcast: bool = False, ranks: Sequence[int] = (), id: int = 7
) -> list[Action]:
    """A member declares the round that it is at: the first one whose sum it lacks."""
    actions = job.declare(member, key(id, round=round, broadcast=broadcast, ranks=ranks), 1.0)
    job.check()
    return actions
