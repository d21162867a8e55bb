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
    """

    hello: pb.Hello
    peer: str
    since: float
    warned: bool = False

    def to_message(self) -> pb.Candidate:
        """The candidate as members are told of it."""
        return pb.Candidate(rank=self.hello.rank, incarnation=self.hello.incarnation, worker=self.hello.worker)

    def __str__(self) -> str:
        return f"{self.hello.worker or 'an unnamed worker'} ({self.peer})"


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
