"""The last sum of each shard, kept for an aggregator that was started again."""

from typing import Final

from psum.client.core.buffers import flat
from psum.client.core.key_rounds import KeyRounds, Part
from psum.client.core.placement import Shard
from psum.client.core.send_window import SendWindow
from psum.client.core.ticket import Ticket
from psum.v1 import aggregator_pb2 as pb
from psum.wire import BATCH_BYTES, ShardRound

#: Sums from this size on are kept as views of their message, which is at most twice as large.
_KEPT_VIEW_BYTES: Final = BATCH_BYTES // 2


def kept(ticket: Ticket, shard: Shard, payload: memoryview) -> memoryview | bytes:
    """A result in a form that can be kept until the next one comes.

    Args:
        ticket: The operation.
        shard: Which shard of its key.
        payload: The result, empty on the root of a broadcast.
    """
    if not payload and ticket.source is not None:
        # The root of a broadcast has the only copy, and its owner may change that from now on.
        return bytes(flat(ticket.source)[shard.start : shard.stop])
    # A view keeps the whole message: little more than a large payload, but many times a small one.
    return payload if len(payload) >= _KEPT_VIEW_BYTES else bytes(payload)


def give_back(rank: int, rounds: KeyRounds | None, connection: int, row: ShardRound, window: SendWindow[Part]) -> bool:
    """Sends the sum that an aggregator asks for, or tells it that this worker keeps none.

    Args:
        rank: This worker's rank.
        rounds: The key that the aggregator asks for, None if this worker does not know it.
        connection: On which connection it asks.
        row: Which shard, and which round of it.
        window: What is sent to this aggregator.

    Returns:
        Whether a sum is given back.
    """
    if rounds is None or rounds.key.failure is not None or not row.shard < len(rounds.key.shards):
        return False
    if rounds.key.shards[row.shard].connection != connection:
        # Another aggregator owns it.
        return False
    if rounds.next_rounds[row.shard] != row.round + 1:
        # All ranks have contributed to a later round since it asked.
        return False
    total = rounds.sums.get(row.shard)
    if total is None:
        reason = f"rank {rank} was asked for the sum of round {row.round} and keeps none (PSUM_KEEP_SUMS=0)"
        window.aborts.append(pb.Abort(id=rounds.key.id, round=row.round, text=reason))
        return False
    round, count = rounds.contributors.get(row.shard, (-1, 0))
    contributors = count if round == row.round else 0
    window.restores.append(
        (ShardRound(row.id, row.shard, row.round, length=len(total), contributors=contributors), total)
    )
    return True
