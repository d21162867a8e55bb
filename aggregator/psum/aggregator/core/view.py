"""Whether an aggregator can tell that a member of an elastic job is gone, from being cut off from it."""

from collections.abc import Iterable

from psum.aggregator.core.worker import Worker


class View:
    """An aggregator has a view of its job while a member that is connected to it reaches all aggregators.

    If a network is cut in two, each half with an aggregator and some members, no member reaches all. Without this
    condition, each aggregator would lose the members of the other half, and nobody would be left when the network works
    again. Neither half could complete a step anyway.

    Attributes:
        since: Since when it has a view without interruption; None: it has none.
    """

    def __init__(self) -> None:
        self.since: float | None = None

    def update(self, members: Iterable[Worker], now: float) -> None:
        """Looks at all members. To be called when one has come, gone, or said something about its reach."""
        self.note(any(each.connected and each.reaches_all and not each.left for each in members), now)

    def note(self, has_view: bool, now: float) -> None:
        """Notes whether the aggregator has a view."""
        if not has_view:
            self.since = None
        elif self.since is None:
            self.since = now

    def leave_out(self, seconds: float, now: float) -> None:
        """Leaves out the last seconds, in which this process did not run."""
        if self.since is not None:
            self.since = min(now, self.since + seconds)

    def held_longer(self, seconds: float, now: float) -> bool:
        """Whether it has had a view for longer than this. A member had as much time to come back meanwhile."""
        return self.since is not None and now - self.since > seconds
