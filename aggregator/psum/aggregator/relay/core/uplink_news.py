"""What a relay of an elastic job tells the owners of joins: who waits at it, and whom its whole group has admitted."""

from collections import deque

from psum.v1 import aggregator_pb2 as pb


class CandidateNews:
    """Which owners must be told of the processes that wait at this relay.

    Args:
        uplinks: How many owners there are. They are named by the index of their uplink.

    Attributes:
        news: The owners that must be told.
    """

    def __init__(self, uplinks: int) -> None:
        self.news: set[int] = set()
        self._uplinks = uplinks
        self._candidates: list[pb.Candidate] = []
        self._told = False
        """Whether the owners were ever told of any."""

    def tell(self, candidates: list[pb.Candidate]) -> bool:
        """Notes who waits here. Returns whether that is new."""
        known = [(each.rank, each.incarnation) for each in self._candidates]
        self._candidates = candidates
        if known == [(each.rank, each.incarnation) for each in candidates]:
            return False
        self.news = set(range(self._uplinks))
        self._told = True
        return True

    def reopened(self, uplink: int) -> None:
        """Notes that an owner has another stream. It has withdrawn those that waited when the last one ended."""
        if self._told:
            self.news.add(uplink)

    def take_news(self, uplink: int) -> list[pb.Candidate]:
        """All that wait here, of whom an owner is told now."""
        self.news.discard(uplink)
        return self._candidates


class AdmissionNews:
    """The admissions that each owner must be told of before anything that the group contributes after them.

    Attributes:
        news: For each owner that must be told of any, those.
    """

    def __init__(self) -> None:
        self.news: dict[int, deque[pb.Admission]] = {}

    def tell(self, uplink: int, admission: pb.Admission) -> None:
        """Notes an admission of which an owner must be told."""
        self.news.setdefault(uplink, deque()).append(admission)

    def take_news(self, uplink: int) -> pb.Admission | None:
        """The first admission that an owner was not told of. It is told now. None if there is none."""
        if (news := self.news.get(uplink)) is None:
            return None
        admission = news.popleft()
        if not news:
            del self.news[uplink]
        return admission
