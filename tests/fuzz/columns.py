"""The columns of a message read as the protocol says, and not as psum does it."""

from psum.v1 import aggregator_pb2 as pb


def value(column: list[int], number: int) -> int:
    """What a column has for one shard."""
    if not column:
        return 0
    return column[0] if len(column) == 1 else column[number]


def well_formed(shards: pb.ShardRounds) -> bool:
    """Whether every column is as long as the ids are, has one value for all, or none."""
    columns: list[list[int]] = [list(column) for _, column in shards.ListFields()]
    return all(len(column) in (0, 1, len(shards.ids)) for column in columns)


def lengths_of(shards: pb.ShardRounds) -> list[int]:
    """The bytes of each shard in the payload."""
    return [value(list(shards.lengths), number) for number in range(len(shards.ids))]


def pieces_of(shards: pb.ShardRounds, payload: bytes) -> list[tuple[tuple[int, int, int], bytes]]:
    """What each shard of a well-formed message has in the payload, by (key's id, shard, round); else none."""
    if not well_formed(shards) or sum(lengths_of(shards)) != len(payload):
        return []
    pieces, place = [], 0
    for number, length in enumerate(lengths_of(shards)):
        where = shards.ids[number], value(list(shards.shards), number), value(list(shards.rounds), number)
        pieces.append((where, payload[place : place + length]))
        place += length
    return pieces
