"""Bugs injected into what makes jobs elastic, which random histories of elastic jobs must find."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import pytest

from psum.aggregator.core.actions import Action, Ask
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.elastic_membership import ElasticMembership
from psum.aggregator.core.elastic_roster import ElasticRoster
from psum.aggregator.core.elastic_rounds import ElasticRounds
from psum.aggregator.core.key import Key
from psum.aggregator.core.losses import Loss
from psum.aggregator.core.roster import Roster
from psum.aggregator.core.round import ShardRounds
from psum.aggregator.core.view import View
from psum.client.core import kept_sums
from psum.client.core.known_losses import KnownLosses
from psum.client.core.reach import Reach
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


def the_next_rank_is_not_asked_for_its_value(patch: pytest.MonkeyPatch) -> None:
    replace = ElasticRounds._replace_root

    def mutant(self: ElasticRounds, key: Key, index: int) -> list[Action]:
        actions = replace(self, key, index)
        shard = key.shards.get(index)
        if shard is None or not actions or key.ranks:
            return actions
        asked = self.__dict__.setdefault("asked", set())
        if (which := (key.id, index, shard.round)) in asked:
            return []
        asked.add(which)
        return actions

    patch.setattr(ElasticRounds, "_replace_root", mutant)


def a_value_is_asked_for_before_all_wait(patch: pytest.MonkeyPatch) -> None:
    def mutant(self: ElasticRounds, key: Key, index: int) -> list[Action]:
        shard = key.shards.get(index)
        if shard is None or not self._rootless(shard) or key.ranks:
            return replace(self, key, index)
        # Wrong: the lowest member may not have begun the broadcast, and then has no array for it.
        return [Ask(shard.roster.members[0], ((key.id, index, shard.round),))] if len(shard.contributions) == 1 else []

    replace = ElasticRounds._replace_root
    patch.setattr(ElasticRounds, "_replace_root", mutant)


def a_rank_sends_the_value_of_another_shard(patch: pytest.MonkeyPatch) -> None:
    stand_in = kept_sums._stand_in

    def mutant(rank: int, rounds: Any, row: ShardRound, window: Any) -> bool:
        sent = stand_in(rank, rounds, row, window)
        ticket = rounds.running
        if sent and ticket is not None:
            entry, value = window.restores.pop()
            window.restores.append((entry, bytes(memoryview(ticket.target).cast("B")[: len(value)])))
        return sent

    patch.setattr(kept_sums, "_stand_in", mutant)


def a_lost_root_of_some_ranks_is_waited_for(patch: pytest.MonkeyPatch) -> None:
    replace = ElasticRounds._replace_root
    patch.setattr(
        ElasticRounds, "_replace_root", lambda self, key, index: [] if key.ranks else replace(self, key, index)
    )


def a_key_of_some_ranks_waits_for_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ElasticRounds, "_part", lambda self, _rank, _declared: self._roster)


def a_key_of_some_ranks_does_not_hear_of_losses(patch: pytest.MonkeyPatch) -> None:
    settle = ElasticRoster._settle

    def mutant(self: ElasticRoster) -> None:
        parts, self._parts = self._parts, {}
        settle(self)
        self._parts = parts

    patch.setattr(ElasticRoster, "_settle", mutant)


def rank_0_is_the_root_of_a_key_of_some_ranks(patch: pytest.MonkeyPatch) -> None:
    init = ShardRounds.__init__

    def mutant(self: ShardRounds[object], roster: Roster, first_round: int = 0, *, root: int | None = None) -> None:
        init(self, roster, first_round, root=None if root is None else 0)

    patch.setattr(ShardRounds, "__init__", mutant)


def a_key_is_forgotten_that_is_not_at_rest(patch: pytest.MonkeyPatch) -> None:
    forget = ElasticRounds.forget_ranked_keys

    def mutant(self: ElasticRounds, rank: int, declared: pb.Key, now: float) -> Any:
        outcome = declare(self, rank, declared, now)
        if declared.ranks:
            # Wrong: a result may be on its way to a rank that was slow.
            forget(self)
        return outcome

    declare = ElasticRounds.declare
    patch.setattr(ElasticRounds, "declare", mutant)


def an_aggregator_without_a_view_loses_ranks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(View, "held_longer", lambda _self, _seconds, _now: True)


def a_new_view_counts_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(View, "held_longer", lambda self, _seconds, _now: self.since is not None)


def a_worker_does_not_say_what_it_reaches(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reach, "lost", lambda _self, _aggregator: None)


def a_worker_does_not_say_that_it_reaches_all_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reach, "found", lambda _self, _aggregator: None)


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
    the_next_rank_is_not_asked_for_its_value,
    a_value_is_asked_for_before_all_wait,
    a_rank_sends_the_value_of_another_shard,
    a_lost_root_of_some_ranks_is_waited_for,
    a_key_of_some_ranks_waits_for_all,
    a_key_of_some_ranks_does_not_hear_of_losses,
    rank_0_is_the_root_of_a_key_of_some_ranks,
    a_key_is_forgotten_that_is_not_at_rest,
    an_aggregator_without_a_view_loses_ranks,
    a_new_view_counts_at_once,
    a_worker_does_not_say_what_it_reaches,
    a_worker_does_not_say_that_it_reaches_all_again,
]

#: As in mutations.py.
SEEDS: Final[Mapping[Callable[[pytest.MonkeyPatch], None], int]] = {
    the_next_rank_is_not_asked_for_its_value: 147,
    a_key_of_some_ranks_waits_for_all: 145,
    what_a_lost_rank_contributed_is_dropped_and_counted: 3,
    a_repeated_result_has_no_count: 13,
    a_sum_is_given_back_with_an_old_count: 19,
    what_the_lost_had_declared_is_kept: 1,
    a_lost_process_is_let_in: 2,
    a_hello_has_no_losses: 2,
    forgotten_keys_come_without_new_streams: 1,
    a_lost_rank_s_contribution_is_not_counted: 3,
}
