"""Admissions to an elastic job: which process joins as which generation of its rank, and from which rounds on."""

import dataclasses
from typing import Final

from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ProtocolError

#: The most keys that an admission may list.
_MAX_KEYS: Final = 1_000_000


@dataclasses.dataclass(slots=True, eq=False)
class Admission:
    """The members have admitted a process.

    Attributes:
        rank: Its rank.
        generation: How many processes of the rank were members before it.
        incarnation: The number of the process.
        rounds: The first round of each key to which it contributes, by the key's id. Empty if no round before is open
            any more, or this aggregator process has not heard of them.
        said: The members that have said that they admitted it. Each of them has the results of all rounds before.
        in_group: At a relay: the process has waited at an earlier process of this relay, as one of the group.
    """

    rank: int
    generation: int
    incarnation: int
    rounds: dict[int, int] = dataclasses.field(default_factory=dict)
    said: set[int] = dataclasses.field(default_factory=set)
    in_group: bool = False

    def to_message(self, *, rounds: bool = True) -> pb.Admission:
        """The admission as its process is told of it; without rounds, as others are."""
        told = self.rounds if rounds else {}
        return pb.Admission(
            rank=self.rank,
            generation=self.generation,
            incarnation=self.incarnation,
            ids=told.keys(),
            rounds=told.values(),
        )


def admission_of(message: pb.Admission, most: int) -> Admission:
    """The admission that a message tells of.

    Args:
        message: The message.
        most: The most ranks that the job may have.

    Raises:
        ProtocolError: It makes no sense.
    """
    if message.rank >= most or not message.incarnation or not len(message.ids) == len(message.rounds) <= _MAX_KEYS:
        raise ProtocolError(
            f"an admission of rank {message.rank} of at most {most}, process {message.incarnation:#x}, with"
            f" {len(message.ids)} keys and {len(message.rounds)} rounds; expected a rank below {most}, a process, and a"
            " round for each key"
        )
    rounds = dict(zip(message.ids, message.rounds, strict=True))
    return Admission(message.rank, message.generation, message.incarnation, rounds, in_group=message.in_group)
