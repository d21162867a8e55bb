"""Decides which shard goes to an aggregator next: the most urgent, within the credit."""

import heapq
import itertools
from typing import Final, Generic, Protocol, TypeVar

from psum.wire import BATCH_BYTES


class Sendable(Protocol):
    """What can be scheduled."""

    @property
    def priority(self) -> int:
        """The more, the sooner."""

    @property
    def size(self) -> int:
        """Bytes that it brings under way."""

    @property
    def pulls(self) -> bool:
        """Whether it only asks, which takes a message of another kind."""

    @property
    def cancelled(self) -> bool:
        """Whether it is not to be sent any more."""


Item = TypeVar("Item", bound=Sendable)

#: Most items in one message, which bounds how long an urgent one waits for a message to be put together.
_MAX_BATCH: Final = 512


class Scheduler(Generic[Item]):
    """The queue to one aggregator.

    The highest priority comes first and, of equals, who came first. The credit bounds the bytes that are under way:
    sent, and neither answered nor said to be taken. What waits here can be overtaken, what is under way cannot; so the
    credit is what an urgent shard has to wait for at most. An item larger than the credit passes when nothing else is
    under way.

    Args:
        credit_bytes: Bytes that may be under way.
    """

    def __init__(self, credit_bytes: int) -> None:
        self.credit_bytes = credit_bytes
        self.batch_bytes = BATCH_BYTES
        """Several items travel in one message up to this many bytes together."""
        self.under_way_bytes = 0
        """Bytes that count against the credit now."""
        self._queue: list[tuple[int, int, Item]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._queue)

    def __repr__(self) -> str:
        return f"<Scheduler waiting={len(self)} under_way={self.under_way_bytes}/{self.credit_bytes}>"

    def add(self, item: Item) -> None:
        """Queues an item."""
        heapq.heappush(self._queue, (-item.priority, next(self._order), item))

    def take(self) -> list[Item]:
        """The items of the next message, most urgent first; none where nothing waits or the credit is used up.

        Either one item, or several of one kind, up to batch_bytes together. They are under way from now on.
        """
        queue, before = self._queue, self.under_way_bytes
        batch: list[Item] = []
        size = 0
        while queue and len(batch) < _MAX_BATCH:
            item = queue[0][2]
            if item.cancelled:
                heapq.heappop(queue)
                continue
            larger = size + item.size
            if batch and (larger > self.batch_bytes or item.pulls is not batch[0].pulls):
                break
            if (before or size) and before + larger > self.credit_bytes:
                break
            heapq.heappop(queue)
            batch.append(item)
            size = larger
        self.under_way_bytes = before + size
        return batch

    def clear(self) -> list[Item]:
        """Takes out all that waits, the most urgent first."""
        items = [item for _, _, item in sorted(self._queue, key=lambda entry: entry[:2])]
        self._queue.clear()
        return items

    def forget_credit(self) -> None:
        """Nothing is under way any more: the connection broke."""
        self.under_way_bytes = 0

    def release(self, size: int) -> None:
        """Bytes are no longer under way."""
        assert size <= self.under_way_bytes
        self.under_way_bytes -= size
