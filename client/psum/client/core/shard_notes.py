"""What aggregators say of shards besides their sums: how many ranks a sum counts, and where its time went."""

from collections.abc import Iterable, Mapping

from psum.client.core.key_rounds import Part
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound

_Outstanding = Mapping[tuple[int, int], Part]
"""The shards that have no result yet, by (key's id, shard)."""


def note_contributors(outstanding: _Outstanding, rows: Iterable[ShardRound]) -> None:
    """Notes how many ranks the results of an elastic job count, before the results are handled.

    The caller of the operation needs it, and so does an aggregator that is started again.
    """
    for row in rows:
        part = outstanding.get((row.id, row.shard))
        if row.contributors and part is not None and (ticket := part.ticket).round == row.round:
            ticket.note_count(row.shard, row.contributors)
            part.rounds.contributors[row.shard] = row.round, row.contributors


def note_timings(outstanding: _Outstanding, timings: Iterable[pb.Timing]) -> None:
    """Notes the timings of shards that are recorded."""
    for timing in timings:
        part = outstanding.get((timing.id, timing.shard))
        if part is not None and part.record is not None and part.ticket.round == timing.round:
            part.record.last_rank = timing.last_rank
            part.record.waiting, part.record.summing = timing.waiting_seconds, timing.summing_seconds
            part.record.forwarding = timing.forwarding_seconds
