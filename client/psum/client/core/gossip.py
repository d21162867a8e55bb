"""The news that a worker of an elastic job passes on to each aggregator before anything else.

Aggregators do not know each other. Each of them hears of all losses and admissions from workers, in whatever order.
"""

from collections.abc import Callable

from psum.client.core.admissions import Admissions
from psum.client.core.known_losses import KnownLosses
from psum.client.core.reach import Reach
from psum.v1 import aggregator_pb2 as pb
from psum.wire import encode


class Gossip:
    """Makes the messages with news.

    Args:
        losses: The losses that are known, and who must be told of them.
        admissions: The same of admissions.
        reach: The same of the aggregators that this worker reaches.
        clock: The time now.
    """

    def __init__(self, losses: KnownLosses, admissions: Admissions, reach: Reach, clock: Callable[[], float]) -> None:
        self._losses = losses
        self._admissions = admissions
        self._reach = reach
        self._clock = clock

    def next_message(self, aggregator: int) -> bytes | None:
        """The next message with news to an aggregator, which it is sent now. None if there is nothing new.

        Losses come first: an admission may be that of a process in the place of a lost one.
        """
        if self._losses.news and (losses := self._losses.take_news(aggregator, self._clock())):
            return encode(pb.ExchangeRequest(losses=pb.Losses(losses=losses)))
        if self._admissions.news and (admission := self._admissions.take_news(aggregator)):
            return encode(pb.ExchangeRequest(admit=pb.Admit(admission=admission)))
        if aggregator in self._reach.news:
            return encode(pb.ExchangeRequest(reach=pb.Reach(all=self._reach.take_news(aggregator))))
        return None
