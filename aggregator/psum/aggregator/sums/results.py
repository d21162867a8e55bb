"""Sums as they are sent: each message is made once for all workers that receive the same."""

from collections.abc import Iterable, Sequence
from itertools import chain

from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, encode, from_columns, to_columns


class Results:
    """Some sums that stay together on their way to workers.

    Args:
        rows: Which sums they are.
        payloads: The payloads in the message, in the rows' order.
        following: The payloads that follow the message on the data connection.
        priority: The priority of the most urgent sum.
        message: The message if it was made already; then no other sums may travel in it.
    """

    __slots__ = (
        "_message",
        "alone",
        "following",
        "payloads",
        "priority",
        "repeats",
        "rows",
        "shard_ids",
        "size",
        "size_following",
    )

    def __init__(
        self,
        rows: Sequence[ShardRound],
        payloads: Sequence[bytes | memoryview] = (),
        following: Sequence[memoryview] = (),
        *,
        priority: float,
        message: bytes | None = None,
    ) -> None:
        self.rows = rows
        self.payloads = payloads
        self.following = following
        self.priority = priority
        self.alone = message is not None
        """Whether no other sums may travel in the same message."""
        self.shard_ids: list[tuple[int, int]] = [(row.id, row.shard) for row in rows]
        """(key's id, shard) of each sum."""
        self.repeats = len(rows) > 1 and len(set(self.shard_ids)) < len(rows)
        """Whether two sums are of the same shard, as when a worker asks twice in one message."""
        self.size = sum(map(len, payloads))
        """Payload bytes in the message."""
        self.size_following = sum(map(len, following))
        """Payload bytes that follow the message."""
        self._message = message

    @property
    def columns(self) -> Iterable[Sequence[int]]:
        """Which sums they are, as columns: one for each field of ShardRound."""
        return zip(*self.rows, strict=True)

    @property
    def pieces(self) -> Sequence[bytes | memoryview]:
        """The payloads in the message, one after the other. They may be joined already."""
        return self.payloads

    def message(self) -> bytes:
        """The message with these sums and no others, made once."""
        if self._message is None:
            self._message = result_message(self.rows, self.payloads)
        return self._message

    def only(self, number: int) -> "Results":
        """One of several sums, all of which have their payloads in the message."""
        return Results(self.rows[number : number + 1], self.payloads[number : number + 1], priority=self.priority)

    def replaced(self, shard_id: tuple[int, int], other: "Results") -> "Results":
        """The same sums, with a single other one in place of that of this (key's id, shard)."""
        if len(self.shard_ids) == 1:
            return other
        number = self.shard_ids.index(shard_id)
        rows, payloads = list(self.rows), list(self.payloads)
        rows[number : number + 1], payloads[number : number + 1] = other.rows, other.payloads
        return Results(rows, payloads, priority=self.priority)


def result_message(rows: Sequence[ShardRound], payloads: Sequence[bytes | memoryview]) -> bytes:
    """The message with these sums."""
    return encode(pb.ExchangeResponse(result=pb.Result(shards=to_columns(rows))), *payloads)


def joined_message(batch: Sequence[Results]) -> bytes:
    """The message with the sums of several Results that may travel with others."""
    # Rows would take longer, of which there may be hundreds.
    columns = [list(chain(*parts)) for parts in zip(*[results.columns for results in batch], strict=True)]
    pieces = [piece for results in batch for piece in results.pieces]
    return encode(pb.ExchangeResponse(result=pb.Result(shards=from_columns(*columns))), *pieces)
