"""Convert rounds of shards between rows and the protocol's columns.

protobuf writes and reads a column of numbers in one operation. If each row were a message of its own, protobuf would
take longer than all other work on a small shard.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate, chain, pairwise, repeat
from typing import Any, Final, NamedTuple

from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ProtocolError

#: The most shards in the payload of one message. Honest senders use at most some hundreds.
MAX_SHARDS_PER_PAYLOAD: Final = 1 << 16


class ShardRound(NamedTuple):
    """One round of one shard: a row of psum.v1.ShardRounds, which documents the fields.

    Attributes:
        id: The key's id.
        shard: The shard's number within the key.
        round: The round.
        priority: How urgent it is; higher values go first.
        length: Bytes of the payload in the message.
        offset: Where the payload lies in the sender's shared memory, in bytes (`places` on the wire).
        outside_size: Bytes of the payload outside of the message (`placed` on the wire).
        timed: Whether the worker asks for the round's timing.
        contributors: In a sum of an elastic job, how many ranks contributed; 0: all.
    """

    id: int
    shard: int = 0
    round: int = 0
    priority: int = 0
    length: int = 0
    offset: int = 0
    outside_size: int = 0
    timed: bool = False
    contributors: int = 0


# The names on the wire, in the order of the row's fields.
_COLUMNS: Final = ("ids", "shards", "rounds", "priorities", "lengths", "places", "placed", "timed", "contributors")
_LENGTHS: Final = _COLUMNS.index("lengths")
_PLACED: Final = _COLUMNS.index("placed")

# Does the same as NamedTuple's _make, but runs in C.
_row = partial(tuple.__new__, ShardRound)


def to_columns(rows: Sequence[tuple[int, ...]], *, brief: bool = False) -> pb.ShardRounds:
    """Return rows as columns. A column with the same value in all rows has it once, or is empty if the value is 0.

    Args:
        rows: ShardRounds, or tuples with their first fields, which are faster to create. The others are 0.
        brief: Whether a column that has the same value in all rows but the first has two entries. For elastic jobs: the
            roll call is the first row of its message, and mostly the only one with another round and length.
    """
    if not rows:
        return pb.ShardRounds()
    # Tuples without the last fields have fewer columns.
    return from_columns(*zip(*rows, strict=True), brief=brief)


def from_columns(ids: Sequence[int], *others: Sequence[int], brief: bool = False) -> pb.ShardRounds:
    """Return columns for a message: what `to_columns` returns for the rows that they are of.

    Args:
        ids: The keys' ids, at least one.
        others: The other columns, in the order of ShardRound's fields. The last ones may be missing: they are 0.
        brief: As for `to_columns`.
    """
    columns: dict[str, Any] = {"ids": ids}
    count = len(ids)
    for name, column in zip(_COLUMNS[1:], others, strict=False):
        first = column[0]
        if column.count(first) != count:
            second = column[1]
            # Comparing two is enough for most columns.
            alike = brief and count > 2 and first != second == column[-1] and column.count(second) == count - 1
            columns[name] = (first, second) if alike else column
        elif first:
            columns[name] = (first,)
    return pb.ShardRounds(**columns)


def read_columns(columns: pb.ShardRounds, most: int | None = None) -> tuple[list[int], ...]:
    """Return received columns, in the order of ShardRound's fields: each with as many entries as ids, two, one or none.

    Args:
        columns: The received columns.
        most: The most rows that are allowed, None for no limit.

    Raises:
        ProtocolError: There are too many rows, a column's length is neither that of the ids nor 0, 1 or 2, or the
            payload of a shard is said to be both in the message and outside of it.
    """
    count = len(columns.ids)
    if most is not None and count > most:
        raise ProtocolError(f"a message with {count} shards; expected at most {most}")
    values: list[list[int]] = [columns.ids[:]]
    for name in _COLUMNS[1:]:
        column = getattr(columns, name)[:]
        if (length := len(column)) > 1 and length != count and not length == 2 < count:
            raise ProtocolError(f"{length} {name} for {count} ids; expected the same number, two, one, or none")
        values.append(column)
    # Most messages have no payload outside.
    if values[_PLACED] and values[_LENGTHS]:
        _check_places(values)
    return tuple(values)


def _check_places(values: Sequence[Sequence[int]]) -> None:
    """Check that the payload of each shard is in one place. Otherwise each side might take another one of the two, and
    a payload that nobody takes would be taken for that of the next shard.

    Raises:
        ProtocolError: It is not.
    """
    count = len(values[0])
    both = list(map(min, spread(values[_LENGTHS], count), spread(values[_PLACED], count)))
    if not any(both):
        return
    number = next(number for number, size in enumerate(both) if size)
    row = _row([list(spread(column, count))[number] for column in values])
    raise ProtocolError(
        f"shard {row.shard} of key {row.id:#x}, round {row.round}, has {row.length} bytes in the message and"
        f" {row.outside_size} outside of it; expected all of them in one place"
    )


def spread(column: Sequence[int], count: int) -> Iterable[int]:
    """Return a received column with an entry for each of so many rows."""
    if len(column) == count:
        return column
    if len(column) == 2:
        return chain(column[:1], repeat(column[1], count - 1))
    return repeat(column[0] if column else 0, count)


def to_rows(columns: pb.ShardRounds, most: int | None = None) -> list[ShardRound]:
    """Return the rows of received columns.

    Args:
        columns: The received columns.
        most: The most rows that are allowed, None for no limit.

    Raises:
        ProtocolError: As for `read_columns`.
    """
    values = read_columns(columns, most)
    count = len(values[0])
    return list(map(_row, zip(*[spread(column, count) for column in values], strict=True)))


def following_sizes(columns: pb.ShardRounds) -> list[int]:
    """Return the sizes of the payloads that follow a message on the data connection, in their order.

    Raises:
        ProtocolError: As for `read_columns`.
    """
    # Most messages have none.
    if not columns.placed:
        return []
    return [row.outside_size for row in to_rows(columns, MAX_SHARDS_PER_PAYLOAD) if row.outside_size]


def split(payload: memoryview, rows: Sequence[ShardRound]) -> list[memoryview]:
    """Split a payload into the shards' pieces, by their lengths.

    Raises:
        ProtocolError: The sum of the lengths is not the payload's length.
    """
    ends = list(accumulate([row.length for row in rows], initial=0))
    if ends[-1] != len(payload):
        raise ProtocolError(f"a payload of {len(payload)} bytes for shards with a total of {ends[-1]} bytes")
    return [payload[start:end] for start, end in pairwise(ends)]
