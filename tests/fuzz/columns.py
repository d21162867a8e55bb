"""An independent reader of a message's columns, written from the protocol and not from psum's code."""

from collections.abc import Iterable

from psum.v1 import aggregator_pb2 as pb


def value(column: list[int], number: int) -> int:
    """Return a column's value for one shard."""
    if not column:
        return 0
    # One entry is for all, and two are for the first and the others; if there are two, this says the same.
    return column[min(number, len(column) - 1)] if len(column) < 3 else column[number]


def well_formed(shards: pb.ShardRounds) -> bool:
    """Return whether every column has as many values as there are ids, or one, or none, or two for more ids, and no
    shard has bytes both in the payload and elsewhere."""
    columns: list[list[int]] = [list(column) for _, column in shards.ListFields()]
    count = len(shards.ids)
    if not all(len(column) in (0, 1, count) or len(column) == 2 < count for column in columns):
        return False
    lengths, placed = list(shards.lengths), list(shards.placed)
    return not any(value(lengths, number) and value(placed, number) for number in range(count))


def lengths_of(shards: pb.ShardRounds) -> list[int]:
    """Return the number of payload bytes of each shard."""
    return [value(list(shards.lengths), number) for number in range(len(shards.ids))]


def pieces_of(
    shards: pb.ShardRounds, payload: bytes, following: Iterable[bytes] = ()
) -> list[tuple[tuple[int, int, int], bytes]]:
    """Split a payload by shard. Each piece comes with (key id, shard, round). A malformed message gives no pieces.

    Args:
        shards: The message's columns.
        payload: The payload in the message.
        following: The payloads that followed it, if any may.
    """
    if not well_formed(shards) or sum(lengths_of(shards)) != len(payload):
        return []
    pieces, place, outside = [], 0, iter(following)
    for number, length in enumerate(lengths_of(shards)):
        where = shards.ids[number], value(list(shards.shards), number), value(list(shards.rounds), number)
        follows = value(list(shards.placed), number) > 0
        pieces.append((where, next(outside, b"") if follows else payload[place : place + length]))
        place += length
    return pieces
