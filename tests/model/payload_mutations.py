"""Bugs injected into how payloads follow their messages on the plane direct, which random histories must find.

Payloads follow in the order of the message's shards. Whoever passes over a shard must pass over its payload too.
Otherwise the next shard gets it: a wrong sum, or an error if the two have different sizes.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import pytest

from psum.aggregator.core.job import Job
from psum.aggregator.relay.core.uplink import Uplink
from psum.aggregator.service.receiver import Receiver
from psum.client.core.key_rounds import Part
from psum.client.core.send_window import SendWindow
from psum.client.core.small_results import SmallResults
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, to_columns, to_rows


def a_sum_that_nobody_waits_for_leaves_its_payload(patch: pytest.MonkeyPatch) -> None:
    take = SmallResults.take

    def mutant(
        self: SmallResults,
        window: SendWindow[Part],
        shards: pb.ShardRounds,
        payload: memoryview,
        now: float,
        others: Callable[[ShardRound, memoryview], None],
    ) -> None:
        def others_that_wait(row: ShardRound, piece: memoryview) -> None:
            if _waits(window, row):
                others(row, piece)

        take(self, window, shards, payload, now, others_that_wait)

    patch.setattr(SmallResults, "take", mutant)


def a_contribution_that_counts_already_leaves_its_payload(patch: pytest.MonkeyPatch) -> None:
    def counts(job: Job, rank: int, row: ShardRound) -> bool:
        key = job.keys.get(row.id)
        shard = None if key is None else key.shards.get(row.shard)
        return shard is not None and shard.round == row.round and rank in shard.contributions

    _leave_payloads(patch, counts)


def a_contribution_to_a_round_that_is_over_leaves_its_payload(patch: pytest.MonkeyPatch) -> None:
    def is_late(job: Job, _rank: int, row: ShardRound) -> bool:
        key = job.keys.get(row.id)
        shard = None if key is None else key.shards.get(row.shard)
        return shard is not None and row.round < shard.round

    _leave_payloads(patch, is_late)


def a_result_that_a_relay_has_leaves_its_payload(patch: pytest.MonkeyPatch) -> None:
    handle = Uplink.handle

    def mutant(
        self: Uplink,
        aggregator: int,
        message: pb.ExchangeResponse,
        payload: memoryview,
        following: Iterable[memoryview],
        now: float,
    ) -> None:
        if message.HasField("result"):
            window = self.windows[aggregator]
            rows = [row for row in to_rows(message.result.shards) if not row.outside_size or _waits(window, row)]
            message = pb.ExchangeResponse(result=pb.Result(shards=to_columns(rows)))
        handle(self, aggregator, message, payload, following, now)

    patch.setattr(Uplink, "handle", mutant)


def the_payloads_of_a_contribution_follow_the_news_too(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SendWindow, "take_following", lambda self: self._following)


def _waits(window: SendWindow[Any], row: ShardRound) -> bool:
    """Return whether the result of a shard is awaited."""
    part = window.outstanding.get((row.id, row.shard))
    return part is not None and part.round == row.round


def _leave_payloads(patch: pytest.MonkeyPatch, passed_over: Callable[[Job, int, ShardRound], bool]) -> None:
    """Let an aggregator leave the payloads of contributions that it passes over."""
    push = Receiver._push

    async def mutant(self: Receiver, shards: pb.ShardRounds, *others: Any) -> None:
        rows = to_rows(shards)
        if any(row.outside_size for row in rows):
            rows = [row for row in rows if not (row.outside_size and passed_over(self._job, self._rank, row))]
            shards = to_columns(rows)
        await push(self, shards, *others)

    patch.setattr(Receiver, "_push", mutant)


#: By mutation, which histories must find it.
ALL: Final[Mapping[Callable[[pytest.MonkeyPatch], None], Mapping[str, bool]]] = {
    a_sum_that_nobody_waits_for_leaves_its_payload: {"relayed": False},
    a_contribution_that_counts_already_leaves_its_payload: {"relayed": False},
    a_contribution_to_a_round_that_is_over_leaves_its_payload: {"relayed": False},
    a_result_that_a_relay_has_leaves_its_payload: {"relayed": True},
    the_payloads_of_a_contribution_follow_the_news_too: {"relayed": False, "elastic": True},
}

#: As in mutations.py.
SEEDS: Final[Mapping[Callable[[pytest.MonkeyPatch], None], int]] = {
    a_result_that_a_relay_has_leaves_its_payload: 160,
}
