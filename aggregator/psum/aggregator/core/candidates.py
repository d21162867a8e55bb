"""Processes that wait to join an elastic job, before its members admit them."""

import dataclasses
from collections.abc import Iterator

from psum.v1 import aggregator_pb2 as pb


@dataclasses.dataclass(slots=True, eq=False)
class Candidate:
    """A process that waits.

    Attributes:
        hello: Its hello.
        peer: The address that it is connected from.
        since: When it came.
        warned: Whether the members were warned that it waits for long.
        via: The member at which it waits, if that is a relay; None: it waits here.
    """

    hello: pb.Hello
    peer: str
    since: float
    warned: bool = False
    via: int | None = None

    def to_message(self) -> pb.Candidate:
        """The candidate as members are told of it."""
        return pb.Candidate(rank=self.hello.rank, incarnation=self.hello.incarnation, worker=self.hello.worker)

    def __str__(self) -> str:
        return f"{self.hello.worker or 'an unnamed worker'} ({self.peer})"


def relayed(said: pb.Candidate, relay: pb.Hello, peer: str, member: int, now: float) -> Candidate:
    """A process that waits at a relay.

    Args:
        said: What the relay tells of it.
        relay: The relay's hello. The settings of all who wait there are the same.
        peer: The relay's address.
        member: The relay's number among the members.
        now: The time.
    """
    hello = pb.Hello()
    hello.CopyFrom(relay)
    del hello.ranks[:], hello.incarnations[:], hello.generations[:], hello.departures[:]
    hello.rank, hello.incarnation, hello.worker, hello.age_seconds = (
        said.rank,
        said.incarnation,
        said.worker,
        said.age_seconds,
    )
    hello.joining, hello.resuming = True, False
    return Candidate(hello, peer, now, via=member)


class Candidates:
    """The candidates of one job, at most one for each rank."""

    def __init__(self) -> None:
        self._by_rank: dict[int, Candidate] = {}

    def __iter__(self) -> Iterator[Candidate]:
        """The candidates, by rank."""
        return (self._by_rank[rank] for rank in sorted(self._by_rank))

    def __len__(self) -> int:
        return len(self._by_rank)

    def of(self, rank: int) -> Candidate | None:
        """The candidate for a rank, None if there is none."""
        return self._by_rank.get(rank)

    def add(self, candidate: Candidate) -> Candidate | None:
        """Adds a candidate. Returns the one that it replaces, if any."""
        replaced = self._by_rank.pop(candidate.hello.rank, None)
        self._by_rank[candidate.hello.rank] = candidate
        return replaced

    def remove(self, candidate: Candidate) -> bool:
        """Removes a candidate. Returns False if it is none, or another one has replaced it."""
        if self._by_rank.get(candidate.hello.rank) is not candidate:
            return False
        del self._by_rank[candidate.hello.rank]
        return True
