"""The members that have left a job, for an aggregator that is started again: only the others can tell it then.

An aggregator waits for all ranks of its job. If it did not know that some have left, it would wait for them until the
worker timeout, and then fail the job, although nobody needs them any more.

Members that have left have all results of what they took part in. They may come back once more, if they have not heard
that they may leave. So an aggregator is told of them only by those who lack none of these results.
"""

import itertools
from collections.abc import Iterable, Iterator

from psum.v1 import aggregator_pb2 as pb


class KnownDepartures:
    """What aggregators have told about members that have left.

    Args:
        aggregators: How many aggregators there are. They are named by their index.
    """

    def __init__(self, aggregators: int) -> None:
        self._incarnations: dict[tuple[int, tuple[int, ...]], int] = {}
        """The incarnation of each member, by its level and its ranks, in the order in which they were told."""
        self._done_with = [0] * aggregators
        """How many of them, from the first one, have nothing that is lacked here, for each aggregator."""

    def __iter__(self) -> Iterator[pb.Departure]:
        for (level, ranks), incarnation in self._incarnations.items():
            yield pb.Departure(ranks=ranks, incarnation=incarnation, level=level)

    def note(self, departures: Iterable[pb.Departure]) -> None:
        """Notes that members have left."""
        for each in departures:
            self._incarnations[each.level, tuple(each.ranks)] = each.incarnation

    def lacks_nothing(self, aggregator: int) -> None:
        """Notes that everything that was sent to an aggregator has its result by now."""
        self._done_with[aggregator] = len(self._incarnations)

    def may_lack(self, aggregator: int) -> bool:
        """Whether some members may have a result that is lacked from an aggregator."""
        return self._done_with[aggregator] < len(self._incarnations)

    def for_next_process(self, aggregator: int) -> list[pb.Departure]:
        """What an aggregator is told that may have been started again: the members that have nothing that is lacked."""
        return list(itertools.islice(self, self._done_with[aggregator]))


def further_up(departures: Iterable[pb.Departure]) -> Iterator[pb.Departure]:
    """Departures that a relay has heard of, as its workers see them: one level further up."""
    return (pb.Departure(ranks=each.ranks, incarnation=each.incarnation, level=each.level + 1) for each in departures)


def from_below(departures: Iterable[pb.Departure]) -> Iterator[pb.Departure]:
    """Departures that a relay's workers have told, as the relay sees them; those from its own group are left out."""
    for each in departures:
        if each.level:
            yield pb.Departure(ranks=each.ranks, incarnation=each.incarnation, level=each.level - 1)
