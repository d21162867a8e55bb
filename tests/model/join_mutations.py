"""Bugs injected into joins of elastic jobs, which random histories of elastic jobs must find."""

from collections.abc import Callable, Iterable, Mapping

import pytest

from psum.aggregator.core.actions import Action
from psum.aggregator.core.admissions import Admission
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.elastic_membership import ElasticMembership
from psum.aggregator.core.elastic_rounds import ElasticRounds
from psum.aggregator.core.joins import Joins
from psum.aggregator.core.key import Key
from psum.aggregator.core.losses import Loss
from psum.client.core.admissions import Admissions
from psum.client.core.joins import Joins as ClientJoins
from psum.v1 import aggregator_pb2 as pb


def a_hello_has_no_admissions(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Admissions, "for_hello", lambda _self, _aggregator: [])


def rounds_before_the_admission_wait_for_the_newcomer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ElasticRounds, "_set_rosters", lambda _self, _key: None)


def a_newcomer_is_welcomed_after_the_first_admission(patch: pytest.MonkeyPatch) -> None:
    welcome = Joins.welcome

    def mutant(self: Joins, now: float) -> list[Action]:
        for admission in self._members.admissions.values():
            admission.said.update(self._members.roster.known)
        return welcome(self, now)

    patch.setattr(Joins, "welcome", mutant)


def who_waits_is_not_told_after_the_welcome(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ElasticJob, "candidates", lambda _self: [])


def a_newcomer_that_does_not_come_is_waited_for(patch: pytest.MonkeyPatch) -> None:
    due = ElasticMembership.due

    def mutant(self: ElasticMembership, now: float) -> list[Loss]:
        return [loss for loss in due(self, now) if loss.rank in self.workers or loss.rank not in self.admissions]

    patch.setattr(ElasticMembership, "due", mutant)


def a_candidate_that_is_gone_stays_in_the_list(patch: pytest.MonkeyPatch) -> None:
    def mutant(_self: Joins, _candidate: Candidate, _now: float) -> list[Action]:
        return []

    patch.setattr(Joins, "withdraw", mutant)


def a_newcomer_counts_as_one_that_began_anew(patch: pytest.MonkeyPatch) -> None:
    def mutant(self: ElasticMembership, rank: int) -> bool:
        return self.workers[rank].hello.resuming

    patch.setattr(ElasticMembership, "goes_on", mutant)


def a_count_above_the_nominal_size_is_left_out(patch: pytest.MonkeyPatch) -> None:
    count = ElasticRounds._count

    def mutant(self: ElasticRounds, key: Key | None, index: int) -> int:
        number = count(self, key, index)
        return number if number < self._roster.size else 0

    patch.setattr(ElasticRounds, "_count", mutant)


def members_do_not_wait_for_a_newcomer(patch: pytest.MonkeyPatch) -> None:
    lose = ElasticJob._lose

    def mutant(self: ElasticJob, losses: Iterable[Loss], now: float, **others: object) -> list[Action]:
        actions = lose(self, losses, now, **others)  # type: ignore[arg-type]
        admission = others.get("admission")
        if isinstance(admission, Admission) and self.members.roster.member(admission.rank) is None:
            # Only its hello makes it a member.
            self.members.roster._enrolled.discard(admission.rank)
            self.members.roster._settle()
        return actions

    patch.setattr(ElasticJob, "_lose", mutant)


def a_member_takes_admissions_from_a_welcome(patch: pytest.MonkeyPatch) -> None:
    welcomed = ClientJoins.welcomed

    def mutant(self: ClientJoins, welcome: pb.Welcome) -> None:
        welcomed(self, welcome)
        self.admissions.learn(welcome.admissions)

    patch.setattr(ClientJoins, "welcomed", mutant)


ALL = [
    a_hello_has_no_admissions,
    rounds_before_the_admission_wait_for_the_newcomer,
    a_newcomer_is_welcomed_after_the_first_admission,
    who_waits_is_not_told_after_the_welcome,
    a_newcomer_that_does_not_come_is_waited_for,
    a_candidate_that_is_gone_stays_in_the_list,
    a_newcomer_counts_as_one_that_began_anew,
    a_count_above_the_nominal_size_is_left_out,
    members_do_not_wait_for_a_newcomer,
    a_member_takes_admissions_from_a_welcome,
]

#: As in mutations.py.
SEEDS: Mapping[Callable[[pytest.MonkeyPatch], None], int] = {
    rounds_before_the_admission_wait_for_the_newcomer: 35,
    a_newcomer_is_welcomed_after_the_first_admission: 35,
    a_newcomer_counts_as_one_that_began_anew: 1,
    a_member_takes_admissions_from_a_welcome: 34,
}
