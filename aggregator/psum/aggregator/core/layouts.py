"""What the messages of a training name, which is mostly the same in each step: found once, and kept.

A message names its shards by the keys' ids. A training sends the same shards in the same order in each step, and so do
all its ranks. Looking up each shard again would take as long as all else that is done for it.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

from psum.aggregator.core.key import Key
from psum.aggregator.core.round import ShardRounds
from psum.wire import LARGE_PAYLOAD_BYTES, spread
from psum.wire.errors import ProtocolError

#: Layouts are kept for at most so many shards at once: for all of most jobs, several times. Each takes about 0.4 KiB.
_MOST_ROWS: Final = 1 << 17


Row = tuple[Key, int, ShardRounds[object]]
"""A shard with its key and its number within the key."""


class Message(NamedTuple):
    """The contributions of one message, as they came.

    Attributes:
        since: When it came.
        pieces: The contributions one by one, as the shards' rounds hold them.
        payload: The same bytes in one piece, as they follow each other in the message.
    """

    since: float
    pieces: list[memoryview]
    payload: memoryview


class Layout:
    """Which shards a message names, and where in the payload the contribution to each lies.

    Args:
        keys: The declared keys by id.
        ids: The keys' ids.
        indices: The shards' numbers within their keys, as a received column.
        lengths: The contributions' bytes, as a received column.
    """

    __slots__ = ("any_usual", "bounds", "known", "messages", "pairs", "rows", "shards", "size", "sizes")

    def __init__(self, keys: Mapping[int, Key], ids: Sequence[int], indices: Sequence[int], lengths: Sequence[int]):
        count = len(ids)
        self.sizes = list(spread(lengths, count))
        """The contributions' bytes."""
        ends = list(accumulate(self.sizes, initial=0))
        self.size = ends[-1]
        """The payload's bytes."""
        self.bounds = list(pairwise(ends))
        """Where the contributions begin and end in the payload."""
        self.pairs = list(zip(ids, spread(indices, count), strict=True))
        """The shards by (key's id, shard)."""
        self.rows: list[Row | None] = []
        """Each shard with its key and its number within the key; None for one that is unknown, large or of a broadcast,
        or whose contribution has not the right size."""
        for (key_id, index), size in zip(self.pairs, self.sizes, strict=True):
            key = keys.get(key_id)
            shard = None if key is None else key.shards.get(index)
            usual = key is not None and key.plain and size < LARGE_PAYLOAD_BYTES and size == key.sizes.get(index)
            self.rows.append((key, index, shard) if usual and key is not None and shard is not None else None)
        self.shards = [None if row is None else row[2] for row in self.rows]
        """The shards of these rows."""
        self.any_usual = any(self.rows)
        """Whether there is such a row: a message of others is not kept, because nothing of it is summed together."""
        self.known = [key for key_id in dict.fromkeys(ids) if (key := keys.get(key_id)) is not None]
        """The keys."""
        self.messages: dict[int, Message] = {}
        """The last message with this layout from each member, until its contributions are summed."""

    @property
    def holds(self) -> bool:
        """Whether all its keys are still those of the job. Keys that have failed or were forgotten have no shards."""
        return all([key.shards for key in self.known])

    def split(self, payload: memoryview) -> list[memoryview]:
        """The contributions in a payload.

        Raises:
            ProtocolError: The payload has another size.
        """
        if len(payload) != self.size:
            raise ProtocolError(f"a payload of {len(payload)} bytes for shards with a total of {self.size} bytes")
        return [payload[start:end] for start, end in self.bounds]


class Layouts:
    """The layouts of a job's messages.

    Args:
        keys: The declared keys by id.
    """

    def __init__(self, keys: Mapping[int, Key]) -> None:
        self._keys = keys
        self._layouts: dict[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], Layout] = {}
        """By what their messages name, the oldest first."""
        self._rows = 0
        """The rows of all of them."""

    def find(self, ids: Sequence[int], indices: Sequence[int], lengths: Sequence[int]) -> Layout:
        """The layout of a message with these columns, as they were received."""
        names = tuple(ids), tuple(indices), tuple(lengths)
        layout = self._layouts.get(names)
        if layout is None or not layout.holds:
            layout = Layout(self._keys, *names)
            # A key that is unknown may be declared later.
            if len(layout.known) == len(set(ids)) and len(ids) <= _MOST_ROWS:
                self._keep(names, layout)
        return layout

    def _keep(self, names: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], layout: Layout) -> None:
        if names not in self._layouts:
            self._rows += len(layout.rows)
            while self._rows > _MOST_ROWS:
                # The oldest. Forgetting all at once would stop the aggregator for some hundredths of a second.
                self._rows -= len(self._layouts.pop(next(iter(self._layouts))).rows)
        self._layouts[names] = layout
