"""The members that have left a job, for an aggregator that is started again: only the others can tell it then.

An aggregator waits for all ranks of its job. If it did not know that some have left, it would wait for them until the
worker timeout, and then fail the job, although nobody needs them any more.
"""

from collections.abc import Iterable, Iterator

from psum.v1 import aggregator_pb2 as pb


class KnownDepartures:
    """What aggregators have told about members that have left."""

    def __init__(self) -> None:
        self._incarnations: dict[tuple[int, tuple[int, ...]], int] = {}
        """The incarnation of each member, by its level and its ranks."""

    def __len__(self) -> int:
        return len(self._incarnations)

    def __iter__(self) -> Iterator[pb.Departure]:
        for (level, ranks), incarnation in self._incarnations.items():
            yield pb.Departure(ranks=ranks, incarnation=incarnation, level=level)

    def note(self, departures: Iterable[pb.Departure]) -> None:
        """Notes that members have left."""
        for each in departures:
            self._incarnations[each.level, tuple(each.ranks)] = each.incarnation


def further_up(departures: Iterable[pb.Departure]) -> Iterator[pb.Departure]:
    """Departures that a relay has heard of, as its workers see them: one level further up."""
    return (pb.Departure(ranks=each.ranks, incarnation=each.incarnation, level=each.level + 1) for each in departures)


def from_below(departures: Iterable[pb.Departure]) -> Iterator[pb.Departure]:
    """Departures that a relay's workers have told, as the relay sees them; those from its own group are left out."""
    for each in departures:
        if each.level:
            yield pb.Departure(ranks=each.ranks, incarnation=each.incarnation, level=each.level - 1)
