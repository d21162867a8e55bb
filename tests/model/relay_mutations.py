"""Bugs injected into relays that random histories must find. See mutations.py."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import pytest

from psum.aggregator.core.actions import Action, PartUplinks
from psum.aggregator.core.key import Key
from psum.aggregator.core.membership import Membership
from psum.aggregator.core.roster import Roster
from psum.aggregator.core.worker import Worker
from psum.aggregator.relay.core import introduction
from psum.aggregator.relay.core.asked_ranks import AskedRanks
from psum.aggregator.relay.core.forwarded import ForwardedKey
from psum.aggregator.relay.core.host_job import HostJob
from psum.aggregator.relay.core.introduction import Identity
from psum.aggregator.relay.core.uplink import Uplink
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError


def a_sum_is_forwarded_before_all_ranks_have_contributed(patch: pytest.MonkeyPatch) -> None:
    add = Roster.add

    def mutant(self: Roster, ranks: Sequence[int]) -> None:
        add(self, ranks)
        if self.complete and not self.fleet:
            self.needed = max(1, len(self.members) - 1)

    patch.setattr(Roster, "add", mutant)


def a_key_is_declared_upward_before_all_ranks_have_declared_it(patch: pytest.MonkeyPatch) -> None:
    class Everyone(set[int]):
        def issuperset(self, _other: Iterable[Any]) -> bool:
            return True

    learn = Uplink.learn

    def mutant(self: Uplink, key: Key, owners: dict[int, int], first_owner: int, member: int) -> ForwardedKey:
        forwarded = learn(self, key, owners, first_owner, member)
        forwarded.declared_by = Everyone(forwarded.declared_by)
        return forwarded

    patch.setattr(Uplink, "learn", mutant)


def the_group_s_sum_is_kept_instead_of_the_result(patch: pytest.MonkeyPatch) -> None:
    keep = ForwardedKey.keep

    def mutant(self: ForwardedKey, index: int, payload: memoryview | bytes) -> None:
        partial = self.shards[index].value
        keep(self, index, payload if partial is None else partial)

    patch.setattr(ForwardedKey, "keep", mutant)
    # The result is kept a second time when it is where workers read it.
    patch.setattr(Uplink, "keep", lambda *_: None)


def a_relay_that_was_started_again_is_another_member(patch: pytest.MonkeyPatch) -> None:
    introduce = introduction.introduction

    def mutant(identity: Identity, workers: Sequence[Worker], uplink: int, now: float, **said: Any) -> pb.Hello:
        hello = introduce(identity, workers, uplink, now, **said)
        hello.incarnation = identity.incarnation
        return hello

    patch.setattr(introduction, "introduction", mutant)


def an_owner_that_was_started_again_is_sent_nothing_again(patch: pytest.MonkeyPatch) -> None:
    reconnected = Uplink.reconnected

    def mutant(self: Uplink, aggregator: int) -> None:
        self.windows[aggregator].outstanding.clear()
        reconnected(self, aggregator)

    patch.setattr(Uplink, "reconnected", mutant)


def no_rank_is_asked_for_a_sum_that_an_owner_wants(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AskedRanks, "ask", lambda _self: [])


def other_groups_do_not_hear_of_a_failure(patch: pytest.MonkeyPatch) -> None:
    fail = HostJob.fail

    def mutant(self: HostJob, failure: FaultError, now: float, ranks: tuple[int, ...] | None = None) -> list[Action]:
        return [action for action in fail(self, failure, now, ranks) if not isinstance(action, PartUplinks)]

    patch.setattr(HostJob, "fail", mutant)


def a_relay_waits_for_ranks_that_left_before_it_was_started_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Membership, "learn_departures", lambda *_: None)


ALL = [
    a_sum_is_forwarded_before_all_ranks_have_contributed,
    a_key_is_declared_upward_before_all_ranks_have_declared_it,
    the_group_s_sum_is_kept_instead_of_the_result,
    a_relay_that_was_started_again_is_another_member,
    an_owner_that_was_started_again_is_sent_nothing_again,
    no_rank_is_asked_for_a_sum_that_an_owner_wants,
    other_groups_do_not_hear_of_a_failure,
    a_relay_waits_for_ranks_that_left_before_it_was_started_again,
]

#: As in mutations.py.
SEEDS: Final[Mapping[Callable[[pytest.MonkeyPatch], None], int]] = {
    a_key_is_declared_upward_before_all_ranks_have_declared_it: 60,
    the_group_s_sum_is_kept_instead_of_the_result: 57,
    no_rank_is_asked_for_a_sum_that_an_owner_wants: 42,
    a_relay_waits_for_ranks_that_left_before_it_was_started_again: 171,
}
