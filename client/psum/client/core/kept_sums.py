"""What aggregators ask for: the last sum of each shard, and this worker's value of a broadcast that lost its root."""

from typing import Final

from psum.client.core.buffers import flat
from psum.client.core.key_rounds import KeyRounds, Part
from psum.client.core.operation import Operation
from psum.client.core.placement import Shard
from psum.client.core.send_window import SendWindow
from psum.client.core.ticket import Ticket
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import WorkerLostError

#: Sums from this size on are kept as views of their message, which is hardly more than twice as large.
KEPT_VIEW_BYTES: Final = 256 << 10


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
    return payload if len(payload) >= KEPT_VIEW_BYTES else bytes(payload)


def give_back(rank: int, rounds: KeyRounds | None, connection: int, row: ShardRound, window: SendWindow[Part]) -> bool:
    """Sends the sum that an aggregator asks for, or tells it that this worker keeps none.

    An aggregator that was started again asks for the sum of the last round. For the current round of a broadcast it
    asks if the root is lost: this rank's value takes the place of the root's.

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
    if rounds.next_rounds[row.shard] == row.round:
        return _stand_in(rank, rounds, row, window)
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


def _stand_in(rank: int, rounds: KeyRounds, row: ShardRound, window: SendWindow[Part]) -> bool:
    """Sends this rank's value of a broadcast whose root is lost, or tells the aggregator that it has none to send."""
    key, ticket, shard = rounds.key, rounds.running, rounds.key.shards[row.shard]
    if key.operation is not Operation.BROADCAST or ticket is None or ticket.round != row.round:
        return False
    if not ticket.stands_in or ticket.target is None:
        fault = WorkerLostError(
            f"rank {key.root} is gone, and had not sent the value that key {key.title} round {row.round} broadcasts."
            f" The array of rank {rank} may hold no value yet. Where each rank has a value that would do, call"
            " broadcast with elastic=True: then another rank's is sent",
            key=key.id,
            round=row.round,
            ranks=[key.root],
        )
        window.aborts.append(pb.Abort(id=key.id, round=row.round, text=str(fault), fault=fault.to_message()))
        return False
    # A copy: if the operation fails here before this is sent, the array is the caller's again.
    value = bytes(flat(ticket.target)[shard.start : shard.stop])
    window.restores.append((ShardRound(row.id, row.shard, row.round, length=len(value)), value))
    return True
