"""Which aggregators of an elastic job must be told that this worker does not reach all of them, or does again."""


class Reach:
    """What this worker reaches, and what it has told each aggregator of that. An aggregator takes it for granted that a
    worker reaches all, until it hears otherwise on the same stream.

    Args:
        aggregators: How many aggregators there are. They are named by their index.

    Attributes:
        news: The aggregators that are connected and must be told.
    """

    def __init__(self, aggregators: int) -> None:
        self.news: set[int] = set()
        self._told = [True] * aggregators
        self._missing: set[int] = set()

    def lost(self, aggregator: int) -> None:
        """Notes that the stream to an aggregator has broken."""
        self._missing.add(aggregator)
        self._compare()

    def found(self, aggregator: int) -> None:
        """Notes that there is another stream to an aggregator."""
        self._missing.discard(aggregator)
        self._told[aggregator] = True
        self._compare()

    def take_news(self, aggregator: int) -> bool:
        """Whether all are reached, as an aggregator is told now."""
        self.news.discard(aggregator)
        self._told[aggregator] = not self._missing
        return not self._missing

    def _compare(self) -> None:
        self.news = {
            aggregator
            for aggregator, told in enumerate(self._told)
            if told is bool(self._missing) and aggregator not in self._missing
        }
