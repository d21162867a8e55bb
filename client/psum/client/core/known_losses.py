"""The lost ranks of an elastic job, as this worker knows them, and which aggregators must be told of them.

Aggregators do not know each other. A rank that is lost at one of them is lost at all because workers pass it on.
"""

from collections.abc import Iterable

from psum.v1 import aggregator_pb2 as pb


class KnownLosses:
    """What aggregators have told about lost ranks.

    Args:
        aggregators: How many aggregators there are. They are named by their index.
    """

    def __init__(self, aggregators: int) -> None:
        self.news: dict[int, set[int]] = {}
        """The losses that an aggregator may not know, for each aggregator that has any. Empty in other jobs."""
        self._losses: dict[int, tuple[str, float]] = {}
        """The text of each loss, and when the rank was lost."""
        self._aggregators = range(aggregators)

    def note(self, losses: Iterable[pb.Loss], now: float, told_by: int | None = None) -> None:
        """Notes losses. All other aggregators must be told of those that are new.

        Args:
            losses: The losses.
            now: The time.
            told_by: The aggregator that has told of them, None if it is not known which.
        """
        for loss in losses:
            rank = loss.rank
            if rank not in self._losses:
                self._losses[rank] = loss.text, now - loss.seconds_ago
                for aggregator in self._aggregators:
                    self.news.setdefault(aggregator, set()).add(rank)
            if told_by is not None:
                self._knows(told_by, [rank])

    def take_news(self, aggregator: int, now: float) -> list[pb.Loss]:
        """The losses that an aggregator may not know. It is told of them now."""
        return self._messages(sorted(self.news.pop(aggregator, ())), now)

    def all(self, now: float) -> list[pb.Loss]:
        """All losses, for the hello to an aggregator, which may have been started again.

        It is told of the news all the same: not every hello arrives.
        """
        return self._messages(self._losses, now)

    def _knows(self, aggregator: int, ranks: Iterable[int]) -> None:
        if (news := self.news.get(aggregator)) is not None:
            news.difference_update(ranks)
            if not news:
                del self.news[aggregator]

    def _messages(self, ranks: Iterable[int], now: float) -> list[pb.Loss]:
        return [
            pb.Loss(rank=rank, text=self._losses[rank][0], seconds_ago=max(0.0, now - self._losses[rank][1]))
            for rank in ranks
        ]
