"""Bugs injected into what makes jobs elastic, which random histories of elastic jobs must find."""

from collections.abc import Iterable
from typing import Any

import pytest

from psum.aggregator.core.actions import Action
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.elastic_membership import ElasticMembership
from psum.aggregator.core.elastic_roster import ElasticRoster
from psum.aggregator.core.elastic_rounds import ElasticRounds
from psum.aggregator.core.key import Key
from psum.aggregator.core.losses import Loss
from psum.aggregator.core.round import ShardRounds
from psum.client.core import kept_sums
from psum.client.core.known_losses import KnownLosses
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import FaultError


def open_rounds_wait_for_the_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ElasticRounds, "settle", lambda _self, _last: [])


def later_rounds_wait_for_the_lost(patch: pytest.MonkeyPatch) -> None:
    lose = ElasticRoster.lose

    def mutant(self: ElasticRoster, rank: int) -> None:
        members, needed = self.members, self.needed
        lose(self, rank)
        self.members, self.needed = members, needed

    patch.setattr(ElasticRoster, "lose", mutant)


def what_a_lost_rank_contributed_is_dropped_and_counted(patch: pytest.MonkeyPatch) -> None:
    in_rank_order = ShardRounds.in_rank_order

    def mutant(self: ShardRounds[object]) -> tuple[memoryview, ...]:
        kept = {rank: given for rank, given in self.contributions.items() if rank not in self.roster.gone}
        given, self.contributions = self.contributions, kept
        ordered = in_rank_order(self)
        self.contributions = given
        return ordered

    patch.setattr(ShardRounds, "in_rank_order", mutant)


def a_repeated_result_has_no_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ElasticRounds, "_note_count", lambda _self, _which, _contributors: None)


def a_sum_is_given_back_without_its_count(patch: pytest.MonkeyPatch) -> None:
    def mutant(*fields: Any, **named: Any) -> ShardRound:
        return ShardRound(*fields, **(named | {"contributors": 0}))

    patch.setattr(kept_sums, "ShardRound", mutant)


def a_sum_is_given_back_with_an_old_count(patch: pytest.MonkeyPatch) -> None:
    restore = ElasticRounds.restore

    def mutant(self: ElasticRounds, rank: int, entry: ShardRound, payload: memoryview) -> list[Action]:
        return restore(self, rank, entry._replace(contributors=len(self._roster.members) % self._roster.size), payload)

    patch.setattr(ElasticRounds, "restore", mutant)


def what_the_lost_had_declared_is_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ElasticMembership, "have_resumed", lambda _self, _ranks: False)


def a_lost_process_is_let_in(patch: pytest.MonkeyPatch) -> None:
    join = ElasticMembership.join

    def mutant(
        self: ElasticMembership, hello: pb.Hello, peer: str, now: float
    ) -> tuple[FaultError | None, FaultError | None]:
        if hello.resuming and self.losses.of(hello.rank) is not None:
            self.losses._by_rank.pop(hello.rank)
            self.roster.lost.discard(hello.rank)
            self.roster._settle()
        return join(self, hello, peer, now)

    patch.setattr(ElasticMembership, "join", mutant)


def a_hello_has_no_losses(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KnownLosses, "all", lambda *_: [])


def ranks_that_do_not_come_back_are_waited_for(patch: pytest.MonkeyPatch) -> None:
    due = ElasticMembership.due

    def mutant(self: ElasticMembership, now: float) -> list[Loss]:
        return [loss for loss in due(self, now) if loss.rank in self.workers]

    patch.setattr(ElasticMembership, "due", mutant)


def forgotten_keys_come_without_new_streams(patch: pytest.MonkeyPatch) -> None:
    lose = ElasticJob._lose

    def mutant(self: ElasticJob, losses: Iterable[Loss], now: float, **others: object) -> list[Action]:
        return [a for a in lose(self, losses, now, **others) if type(a).__name__ != "EndStreams"]  # type: ignore[arg-type]

    patch.setattr(ElasticJob, "_lose", mutant)


def a_lost_rank_s_contribution_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    count = ElasticRounds._count

    def mutant(self: ElasticRounds, key: Key | None, index: int) -> int:
        # Wrong: ranks that were lost later have contributed too.
        return min(count(self, key, index), len(self._roster.members)) or count(self, key, index)

    patch.setattr(ElasticRounds, "_count", mutant)


ALL = [
    open_rounds_wait_for_the_lost,
    later_rounds_wait_for_the_lost,
    what_a_lost_rank_contributed_is_dropped_and_counted,
    a_repeated_result_has_no_count,
    a_sum_is_given_back_without_its_count,
    a_sum_is_given_back_with_an_old_count,
    what_the_lost_had_declared_is_kept,
    a_lost_process_is_let_in,
    a_hello_has_no_losses,
    ranks_that_do_not_come_back_are_waited_for,
    forgotten_keys_come_without_new_streams,
    a_lost_rank_s_contribution_is_not_counted,
]
