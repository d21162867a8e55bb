"""When a worker behind a relay tells an owner of shards, past the relay, that it lives."""

from typing import Final

from psum.v1 import aggregator_pb2 as pb

#: While the relay is missed. Less than a fifth of the time after which owners miss the worker too.
URGENT_SECONDS: Final = 1.0

#: While nothing is wrong. So an owner that was started again learns which workers can tell it.
REFRESH_SECONDS: Final = 60.0

#: The longest pause while an owner does not know the worker: its relay may wait for others of its group.
_UNKNOWN_SECONDS: Final = 10.0

#: The longest pause while an owner does not answer, as where the network forbids it.
_UNANSWERED_SECONDS: Final = REFRESH_SECONDS

_FIRST_SECONDS: Final = 1.0


class VouchPace:
    """The pauses between what one worker tells one owner.

    Attributes:
        counts: Whether this owner has heard the worker before, so that its silence would count.
    """

    def __init__(self) -> None:
        self.counts = False
        self._next = _FIRST_SECONDS

    def pause(self, standing: pb.Standing.ValueType | None, *, away: bool) -> float:
        """How many seconds to wait until the worker tells the owner again.

        Args:
            standing: What the owner has answered; None: it has not.
            away: Whether the worker has no connection to its relay.
        """
        if standing:
            self.counts = True
            self._next = _FIRST_SECONDS
        if standing == pb.STANDING_AWAITED or (away and self.counts):
            return URGENT_SECONDS
        if standing == pb.STANDING_PRESENT:
            return REFRESH_SECONDS
        pause = min(self._next, _UNANSWERED_SECONDS if standing is None else _UNKNOWN_SECONDS)
        self._next = 2 * pause
        return pause
