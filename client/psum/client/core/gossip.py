"""The news that a member of an elastic job, a worker or a relay, passes on to each aggregator before anything else.

Aggregators do not know each other. Each of them hears of all losses and admissions from members, in whatever order.
"""

from collections.abc import Callable, Container
from typing import Protocol

from psum.client.core.known_losses import KnownLosses
from psum.client.core.reach import Reach
from psum.v1 import aggregator_pb2 as pb
from psum.wire import encode


class AdmissionNews(Protocol):
    """The admissions of which aggregators must be told."""

    @property
    def news(self) -> Container[int]:
        """The aggregators that must be told of some. False if there are none."""

    def take_news(self, aggregator: int, /) -> pb.Admission | None:
        """The next admission of which an aggregator must be told. It is told now."""


class CandidateNews(Protocol):
    """The processes that wait at a relay, of which aggregators must be told."""

    @property
    def news(self) -> Container[int]:
        """The aggregators that must be told. False if there are none."""

    def take_news(self, aggregator: int, /) -> list[pb.Candidate]:
        """All that wait, of whom an aggregator is told now."""


class Gossip:
    """Makes the messages with news.

    Args:
        losses: The losses that are known, and who must be told of them.
        admissions: The same of admissions.
        reach: The same of the aggregators that this member reaches.
        clock: The time now.
        candidates: The same of those that wait here; None if nobody can.
    """

    def __init__(
        self,
        losses: KnownLosses,
        admissions: AdmissionNews,
        reach: Reach,
        clock: Callable[[], float],
        candidates: CandidateNews | None = None,
    ) -> None:
        self._losses = losses
        self._admissions = admissions
        self._reach = reach
        self._clock = clock
        self._candidates = candidates

    def waits(self, aggregator: int) -> bool:
        """Whether there is news for an aggregator."""
        waiting = self._candidates is not None and aggregator in self._candidates.news
        return (
            waiting
            or bool(self._losses.news.get(aggregator))
            or aggregator in self._admissions.news
            or aggregator in self._reach.news
        )

    def next_message(self, aggregator: int) -> bytes | None:
        """The next message with news to an aggregator, which it is sent now. None if there is nothing new.

        Losses come first: an admission may be that of a process in the place of a lost one. Who waits no more comes
        before admissions: when all have said one, the aggregator decides about the process.
        """
        if self._losses.news and (losses := self._losses.take_news(aggregator, self._clock())):
            return encode(pb.ExchangeRequest(losses=pb.Losses(losses=losses)))
        if self._candidates is not None and aggregator in self._candidates.news:
            candidates = self._candidates.take_news(aggregator)
            return encode(pb.ExchangeRequest(candidates=pb.Candidates(candidates=candidates)))
        if self._admissions.news and (admission := self._admissions.take_news(aggregator)):
            return encode(pb.ExchangeRequest(admit=pb.Admit(admission=admission)))
        if aggregator in self._reach.news:
            return encode(pb.ExchangeRequest(reach=pb.Reach(all=self._reach.take_news(aggregator))))
        return None
