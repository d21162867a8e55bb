"""Rounds of shards, which the protocol has column by column, as rows.

protobuf writes and reads a column of numbers at once; as a message of its own, each row would take it longer than all
else that becomes of a small shard.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate, pairwise, repeat
from typing import Any, Final, NamedTuple

from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ProtocolError

#: Shards in the payload of one message; honest senders put at most some hundreds into one.
MAX_SHARDS_PER_PAYLOAD: Final = 1 << 16


class ShardRound(NamedTuple):
    """One round of one shard: a row of psum.v1.ShardRounds, which says what each field means."""

    id: int
    shard: int = 0
    round: int = 0
    priority: int = 0
    length: int = 0
    place: int = 0
    placed: int = 0
    timed: bool = False


# In the order of the row's fields.
_COLUMNS: Final = ("ids", "shards", "rounds", "priorities", "lengths", "places", "placed", "timed")

# What NamedTuple's own _make does, without the interpreter.
_row = partial(tuple.__new__, ShardRound)


def to_columns(rows: Sequence[tuple[int, int, int, int, int, int, int, bool]]) -> pb.ShardRounds:
    """The rows for a message; a column that is the same in all rows has it once, or is empty where it is 0.

    Args:
        rows: Each a ShardRound, or a tuple with the same fields, which is made faster.
    """
    if not rows:
        return pb.ShardRounds()
    ids, *others = zip(*rows, strict=True)
    columns: dict[str, Any] = {"ids": ids}
    count = len(ids)
    for name, column in zip(_COLUMNS[1:], others, strict=True):
        first = column[0]
        if column.count(first) != count:
            columns[name] = column
        elif first:
            columns[name] = (first,)
    return pb.ShardRounds(**columns)


def to_rows(columns: pb.ShardRounds, most: int | None = None) -> list[ShardRound]:
    """The rows of a message.

    Args:
        columns: What came.
        most: How many there may be, None where that is not limited.

    Raises:
        ProtocolError: There are more, or a column is neither as long as the others nor the same for all.
    """
    count = len(columns.ids)
    if most is not None and count > most:
        raise ProtocolError(f"a message of {count} shards; expected at most {most}")
    values: list[Iterable[int]] = [columns.ids[:]]
    for name in _COLUMNS[1:]:
        column = getattr(columns, name)
        length = len(column)
        if length == count:
            values.append(column[:])
        elif length <= 1:
            values.append(repeat(column[0] if length else 0, count))
        else:
            raise ProtocolError(f"{length} {name} for {count} ids; expected as many, one for all, or none")
    return list(map(_row, zip(*values, strict=True)))


def sizes_beside(columns: pb.ShardRounds) -> list[int]:
    """The sizes of the payloads that follow a message on the data connection, in their order.

    Raises:
        ProtocolError: As `to_rows` does.
    """
    # Mostly there are none.
    return [row.placed for row in to_rows(columns, MAX_SHARDS_PER_PAYLOAD) if row.placed] if columns.placed else []


def split(payload: memoryview, rows: Sequence[ShardRound]) -> list[memoryview]:
    """The payload cut into the pieces that the shards' lengths give.

    Raises:
        ProtocolError: The lengths do not add up to the payload's.
    """
    ends = list(accumulate([row.length for row in rows], initial=0))
    if ends[-1] != len(payload):
        raise ProtocolError(f"a payload of {len(payload)} bytes for shards of {ends[-1]} bytes together")
    return [payload[start:end] for start, end in pairwise(ends)]
