"""The lost processes of an elastic job, as this worker knows them, and which aggregators must be told of them.

Aggregators do not know each other. A process that is lost at one of them is lost at all because workers pass it on. Of
each rank only the last loss matters: those before it are known to all who know of a later process of the rank.
"""

from collections.abc import Iterable, Mapping

from psum.v1 import aggregator_pb2 as pb


class KnownLosses:
    """What aggregators have told about lost processes.

    Args:
        aggregators: How many aggregators there are. They are named by their index.
    """

    def __init__(self, aggregators: int) -> None:
        self.news: dict[int, set[int]] = {}
        """The ranks whose losses an aggregator may not know, for each aggregator that has any. Empty in other jobs."""
        self._losses: dict[int, tuple[int, str, float]] = {}
        """The generation of each rank's last loss, its text, and when it was."""
        self._in_group: set[int] = set()
        """The ranks of the group of this worker's relay of which some process was lost."""
        self._aggregators = range(aggregators)

    @property
    def generations(self) -> Mapping[int, int]:
        """The generation of the last process that was lost, of each rank that has lost any."""
        return {rank: loss[0] for rank, loss in self._losses.items()}

    def note(self, losses: Iterable[pb.Loss], now: float, told_by: int | None = None) -> list[pb.Loss]:
        """Notes losses. All other aggregators must be told of those that are new.

        Args:
            losses: The losses.
            now: The time.
            told_by: The aggregator that has told of them, None if it is not known which.

        Returns:
            Those that were new.
        """
        new: list[pb.Loss] = []
        for loss in losses:
            rank = loss.rank
            if loss.in_group:
                self._in_group.add(rank)
            known = self._losses[rank][0] if rank in self._losses else -1
            if loss.generation > known:
                new.append(loss)
                self._losses[rank] = loss.generation, loss.text, now - loss.seconds_ago
                for aggregator in self._aggregators:
                    self.news.setdefault(aggregator, set()).add(rank)
            if told_by is not None and loss.generation >= known:
                self._knows(told_by, [rank])
        return new

    def take_news(self, aggregator: int, now: float) -> list[pb.Loss]:
        """The losses that an aggregator may not know. It is told of them now."""
        return self._messages(sorted(self.news.pop(aggregator, ())), now)

    def all(self, now: float, admitted: Mapping[int, pb.Admission]) -> list[pb.Loss]:
        """All losses, for the hello to an aggregator, which may have been started again.

        They stay news, because not every hello arrives. A relay hears of all losses of its group: it need not wait for
        those processes, even if others of their ranks are elsewhere now.

        Args:
            now: The time.
            admitted: The last admission of each rank. Losses before it do not matter any more.
        """
        return self._messages(
            [
                rank
                for rank, (generation, _, _) in self._losses.items()
                if rank in self._in_group or rank not in admitted or admitted[rank].generation <= generation
            ],
            now,
        )

    def _knows(self, aggregator: int, ranks: Iterable[int]) -> None:
        if (news := self.news.get(aggregator)) is not None:
            news.difference_update(ranks)
            if not news:
                del self.news[aggregator]

    def _messages(self, ranks: Iterable[int], now: float) -> list[pb.Loss]:
        messages = []
        for rank in ranks:
            generation, text, at = self._losses[rank]
            messages.append(
                pb.Loss(
                    rank=rank,
                    text=text,
                    seconds_ago=max(0.0, now - at),
                    generation=generation,
                    in_group=rank in self._in_group,
                )
            )
        return messages
