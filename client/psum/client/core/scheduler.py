"""Decides which shard is sent to an aggregator next: the most urgent one within the credit."""

from operator import attrgetter
from typing import Final, Generic, Protocol, TypeVar

from psum.wire import BATCH_BYTES


class Sendable(Protocol):
    """An item that can be scheduled."""

    @property
    def priority(self) -> int:
        """Higher values are sent first. It does not change while the item waits."""

    @property
    def size(self) -> int:
        """Bytes that count against the credit while it is under way."""

    @property
    def pulls(self) -> bool:
        """Whether it asks for a value and sends none. Such items travel in messages of their own."""

    @property
    def cancelled(self) -> bool:
        """Whether it must not be sent any more."""

    def staged(self) -> int | None:
        """The payload's offset in the staging memory, None if it does not lie there."""


Item = TypeVar("Item", bound=Sendable)

_priority: Final = attrgetter("priority")

#: The most items in one message. It bounds how long an urgent item waits while a message is made.
_MAX_BATCH: Final = 512


class Scheduler(Generic[Item]):
    """The queue to one aggregator.

    The highest priority goes first, and equal priorities go in order of arrival. The credit bounds the bytes that are
    under way: sent, and neither answered nor reported as taken. An urgent item can overtake what waits here, but not
    what is under way, so it waits for at most the credit. An item larger than the credit passes when nothing else is
    under way.

    Args:
        credit_bytes: Bytes that may be under way.
    """

    def __init__(self, credit_bytes: int) -> None:
        self.credit_bytes = credit_bytes
        self.batch_bytes = BATCH_BYTES
        """The most bytes that several items in one message have together."""
        self.staged_divisor = 1
        """Only this part, one of so many, of a staged item's bytes counts against the credit."""
        self.under_way_bytes = 0
        """Bytes that count against the credit now."""
        # The items themselves: the garbage collector would visit a tuple for each again and again.
        self._queue: list[Item] = []
        """What waits, the most urgent first."""
        self._arrived: list[Item] = []
        """What has come since something was taken last, in this order."""

    def __len__(self) -> int:
        return len(self._queue) + len(self._arrived)

    def __repr__(self) -> str:
        return f"<Scheduler waiting={len(self)} under_way={self.under_way_bytes}/{self.credit_bytes}>"

    @property
    def first(self) -> Item | None:
        """What waits and is the most urgent, None if nothing waits."""
        queue = self._in_order()
        return queue[0] if queue else None

    def add(self, item: Item) -> None:
        """Queues an item."""
        self._arrived.append(item)

    def take(self) -> list[Item]:
        """The items of the next message, the most urgent first; none if nothing waits or the credit is used up.

        There is one item, or several of one kind with at most batch_bytes together. They are under way from now on.
        """
        queue, before = self._in_order(), self.under_way_bytes
        batch: list[Item] = []
        size = charged = looked_at = 0
        for item in queue:
            if len(batch) == _MAX_BATCH:
                break
            if item.cancelled:
                looked_at += 1
                continue
            larger = size + item.size
            if batch and (larger > self.batch_bytes or item.pulls is not batch[0].pulls):
                break
            charge = item.size if self.staged_divisor == 1 else self._charge(item)
            if (before or size) and before + charged + charge > self.credit_bytes:
                break
            looked_at += 1
            batch.append(item)
            size = larger
            charged += charge
        del queue[:looked_at]
        self.under_way_bytes = before + charged
        return batch

    def clear(self) -> list[Item]:
        """Removes and returns all waiting items, the most urgent first."""
        items, self._queue = self._in_order(), []
        return items

    def forget_credit(self) -> None:
        """Notes that nothing is under way any more, because the connection broke."""
        self.under_way_bytes = 0

    def release(self, item: Item) -> None:
        """Notes that an item is no longer under way."""
        charge = item.size if self.staged_divisor == 1 else self._charge(item)
        assert charge <= self.under_way_bytes
        self.under_way_bytes -= charge

    def _in_order(self) -> list[Item]:
        """What waits, the most urgent first. A training's items mostly come in this order already."""
        queue, arrived = self._queue, self._arrived
        if arrived:
            # Equally urgent ones stay in order of arrival: sorting is stable, also in reverse.
            arrived.sort(key=_priority, reverse=True)
            in_order = not queue or queue[-1].priority >= arrived[0].priority
            queue += arrived
            if not in_order:
                # Merges two sorted runs.
                queue.sort(key=_priority, reverse=True)
            arrived.clear()
        return queue

    def _charge(self, item: Item) -> int:
        """The bytes of an item that count against the credit."""
        return item.size if item.staged() is None else item.size // self.staged_divisor
