"""Sums as they are sent: put together once, for all workers that receive them alike."""

from collections.abc import Sequence
from typing import Self

from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, encode, to_columns


class Results:
    """Some sums that stay together on their way to workers.

    Args:
        rows: Which they are.
        payloads: Those that go in the message, in the rows' order.
        beside: Those that go on the data connection after it.
        priority: How urgent the most urgent is.
        message: The message where it is there already; then nothing else may be in it.
    """

    __slots__ = (
        "_message",
        "alone",
        "beside",
        "payloads",
        "places",
        "priority",
        "repeats",
        "rows",
        "size",
        "size_beside",
    )

    def __init__(
        self,
        rows: Sequence[ShardRound],
        payloads: Sequence[memoryview] = (),
        beside: Sequence[memoryview] = (),
        *,
        priority: float,
        message: bytes | None = None,
    ) -> None:
        self.rows = rows
        self.payloads = payloads
        self.beside = beside
        self.priority = priority
        self.alone = message is not None
        """Whether no other sums may travel in the same message."""
        self.places: list[tuple[int, int]] = [(row.id, row.shard) for row in rows]
        """(key's id, shard) of each."""
        self.repeats = len(rows) > 1 and len(set(self.places)) < len(rows)
        """Whether some are of one place, as where a worker asks twice in one message."""
        self.size = sum(map(len, payloads))
        """Bytes in the message."""
        self.size_beside = sum(map(len, beside))
        """Bytes that follow it."""
        self._message = message

    def message(self) -> bytes:
        """The message with these and no others, made once."""
        if self._message is None:
            self._message = result_message(self.rows, self.payloads)
        return self._message

    def only(self, number: int) -> Self:
        """One of several that all have their payloads in the message."""
        return type(self)(self.rows[number : number + 1], self.payloads[number : number + 1], priority=self.priority)

    def replaced(self, place: tuple[int, int], other: "Results") -> "Results":
        """The same with another sum, the only one there, in place of that of this (key's id, shard)."""
        if len(self.rows) == 1:
            return other
        number = self.places.index(place)
        rows = [*self.rows[:number], *other.rows, *self.rows[number + 1 :]]
        payloads = [*self.payloads[:number], *other.payloads, *self.payloads[number + 1 :]]
        return Results(rows, payloads, priority=self.priority)


def result_message(rows: Sequence[ShardRound], payloads: Sequence[memoryview]) -> bytes:
    """The message with these sums."""
    return encode(pb.ExchangeResponse(result=pb.Result(shards=to_columns(rows))), *payloads)
