"""Payloads that follow their message, as on the plane direct."""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, split, to_columns, to_rows

Message = TypeVar("Message", pb.ExchangeRequest, pb.ExchangeResponse)


def moved_out(
    random: Random, message: Message, payload: bytes, passed_over: Sequence[ShardRound] = ()
) -> tuple[Message, bytes, list[bytes]]:
    """Move some pieces of a payload out of their message.

    Args:
        random: Generator of all decisions.
        message: A valid message.
        payload: Its payload.
        passed_over: Further shards for the message, at any place and with random pieces of their `length`.

    Returns:
        The message, the rest of its payload, and the payloads that must follow it. Only pushes and results change.
    """
    kind = message.WhichOneof("kind")
    if kind not in ("push", "result"):
        return message, payload, []
    rows = to_rows(getattr(message, kind).shards)
    entries = [(row, bytes(piece)) for row, piece in zip(rows, split(memoryview(payload), rows), strict=True)]
    for row in passed_over:
        entries.insert(random.randrange(len(entries) + 1), (row, random.randbytes(row.length)))
    rows, inside, following = [], b"", []
    for row, piece in entries:
        if piece and random.random() < 0.7:
            rows.append(row._replace(length=0, outside_size=len(piece)))
            following.append(piece)
        else:
            rows.append(row._replace(length=len(piece)))
            inside += piece
    changed = type(message)()
    changed.CopyFrom(message)
    getattr(changed, kind).shards.CopyFrom(to_columns(rows))
    return changed, inside, following
