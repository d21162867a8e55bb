"""Bugs injected into relays of elastic jobs, which random histories of elastic jobs with relays must find."""

from collections.abc import Callable, Collection, Mapping
from typing import Final

import pytest

from psum.aggregator.core import elastic_texts
from psum.aggregator.core.admissions import Admission
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.elastic_membership import ElasticMembership
from psum.aggregator.core.elastic_rounds import ElasticRounds
from psum.aggregator.core.key import Key
from psum.aggregator.core.losses import Loss
from psum.aggregator.core.relay_members import RelayMembers
from psum.aggregator.core.relayed_membership import RelayedMembership
from psum.aggregator.core.round import ShardRounds
from psum.aggregator.core.waiting_room import WaitingRoom
from psum.aggregator.relay.core.group_membership import GroupMembership
from psum.aggregator.relay.core.group_roster import GroupRoster
from psum.aggregator.relay.core.wanted_values import WantedValues
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import FaultError


def the_sum_of_a_relay_counts_as_one_rank(patch: pytest.MonkeyPatch) -> None:
    def mutant(_self: ElasticRounds, _member: int, _key: Key | None, _entry: ShardRound) -> None:
        pass

    patch.setattr(ElasticRounds, "_note_contributors", mutant)


def a_relay_is_known_by_its_first_rank(patch: pytest.MonkeyPatch) -> None:
    find = RelayMembers.find

    def mutant(self: RelayMembers, hello: pb.Hello) -> int | None:
        member = find(self, hello)
        return member if member is None or self._roster.ranks(member)[0] == hello.ranks[0] else None

    patch.setattr(RelayMembers, "find", mutant)


def a_relay_is_lost_with_its_first_rank(patch: pytest.MonkeyPatch) -> None:
    lose_rank = ElasticMembership.lose_rank

    def mutant(self: ElasticMembership, loss: Loss) -> bool:
        member = self.roster.member(loss.rank)
        new = lose_rank(self, loss)
        if new and member is not None and self.roster.ranks(member)[0] == loss.rank:
            for rank in self.roster.living(member):
                lose_rank(self, Loss(rank, loss.text, loss.at, self.generation(rank)))
        return new

    patch.setattr(ElasticMembership, "lose_rank", mutant)


def ranks_that_a_relay_does_not_name_any_more_are_waited_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RelayedMembership, "_go_without", lambda *_: set())


def a_relay_that_has_no_value_receives_none(patch: pytest.MonkeyPatch) -> None:
    def mutant(self: ElasticRounds, key: Key, _shard: ShardRounds[object]) -> int:
        return self._member_of_root(key)

    patch.setattr(ElasticRounds, "_sender", mutant)


def a_rank_is_not_asked_again_for_its_value(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WantedValues, "forget", lambda _self, _member: None)


def those_who_wait_at_a_relay_are_refused_with_its_last_member(patch: pytest.MonkeyPatch) -> None:
    add = WaitingRoom.add

    def mutant(self: WaitingRoom, candidate: Candidate, *, deserted: bool = False) -> FaultError | None:
        if not deserted:
            return add(self, candidate)
        self.refuse(candidate, elastic_texts.ended(candidate.hello.job, candidate))
        return None

    patch.setattr(WaitingRoom, "add", mutant)


def a_relay_has_a_view_before_it_has_reached_the_owners(patch: pytest.MonkeyPatch) -> None:
    look = GroupMembership.reaches_all_owners

    def mutant(self: GroupMembership, now: float, *, all_of_them: bool | None) -> None:
        look(self, now, all_of_them=all_of_them is not False)

    patch.setattr(GroupMembership, "reaches_all_owners", mutant)


def an_admission_is_told_before_the_group_is_back(patch: pytest.MonkeyPatch) -> None:
    said_by_all = GroupMembership.said_by_all

    def mutant(self: GroupMembership, admission: Admission, waiting: Collection[int]) -> bool:
        with patch.context() as some:
            some.setattr(GroupRoster, "unknown", 0)
            return said_by_all(self, admission, waiting)

    patch.setattr(GroupMembership, "said_by_all", mutant)


ALL = [
    the_sum_of_a_relay_counts_as_one_rank,
    a_relay_is_known_by_its_first_rank,
    a_relay_is_lost_with_its_first_rank,
    ranks_that_a_relay_does_not_name_any_more_are_waited_for,
    a_relay_that_has_no_value_receives_none,
    a_rank_is_not_asked_again_for_its_value,
    those_who_wait_at_a_relay_are_refused_with_its_last_member,
    a_relay_has_a_view_before_it_has_reached_the_owners,
    an_admission_is_told_before_the_group_is_back,
]

#: As in mutations.py.
SEEDS: Final[Mapping[Callable[[pytest.MonkeyPatch], None], int]] = {
    a_relay_is_lost_with_its_first_rank: 27,
    a_relay_is_known_by_its_first_rank: 25,
    ranks_that_a_relay_does_not_name_any_more_are_waited_for: 22,
    a_relay_that_has_no_value_receives_none: 7,
    a_rank_is_not_asked_again_for_its_value: 78,
    those_who_wait_at_a_relay_are_refused_with_its_last_member: 2310,
    a_relay_has_a_view_before_it_has_reached_the_owners: 2340,
    an_admission_is_told_before_the_group_is_back: 7224,
}
