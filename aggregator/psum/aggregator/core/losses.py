"""The processes of an elastic job that are lost: a set that only grows.

Aggregators decide losses on their own, and hear of others' decisions from workers. Everybody adds what it hears. So the
order of messages does not matter, and aggregators that decide differently come to the same set. A loss is about one
generation of a rank, and the earlier ones are out anyway. So the last loss of each rank says everything.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Final

from psum.v1 import aggregator_pb2 as pb

#: The longest text of a loss that is kept, in characters.
_MAX_TEXT: Final = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Loss:
    """A process of a rank that is lost for good.

    Attributes:
        rank: The rank.
        text: Which process it was and why it is lost, for people.
        at: When it was lost.
        generation: How many processes of this rank were members before it.
        reason: The kind of the reason, for metrics: closed, silent, replaced, not come, not back, ended early, began
            anew, or told if another aggregator has decided it.
    """

    rank: int
    text: str
    at: float
    generation: int = 0
    reason: str = "told"

    def to_message(self, now: float) -> pb.Loss:
        """The loss as others are told of it."""
        return pb.Loss(rank=self.rank, text=self.text, seconds_ago=max(0.0, now - self.at), generation=self.generation)


class Losses:
    """The losses of one job that are known here: the last one of each rank."""

    def __init__(self) -> None:
        self._by_rank: dict[int, Loss] = {}

    def __len__(self) -> int:
        return len(self._by_rank)

    def __iter__(self) -> Iterator[Loss]:
        """The last loss of each rank."""
        return iter(self._by_rank.values())

    def of(self, rank: int) -> Loss | None:
        """The last loss of a rank; None if no process of it was lost."""
        return self._by_rank.get(rank)

    def add(self, loss: Loss) -> bool:
        """Adds a loss. Returns whether it is new: of a later generation than what is known of this rank."""
        known = self._by_rank.get(loss.rank)
        if known is not None and known.generation >= loss.generation:
            return False
        self._by_rank[loss.rank] = loss
        return True

    def messages(self, now: float) -> list[pb.Loss]:
        """The last loss of each rank, as others are told of it."""
        return [loss.to_message(now) for loss in self._by_rank.values()]


def reported(messages: Iterable[pb.Loss], now: float) -> list[Loss]:
    """Losses that a worker tells of."""
    return [
        Loss(each.rank, each.text[:_MAX_TEXT], now - max(0.0, each.seconds_ago), generation=each.generation)
        for each in messages
    ]
