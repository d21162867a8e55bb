"""Mutation tests: bugs injected into the product that random histories must find.

Each mutation is small and plausible, and does not affect a run without faults.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pytest

from psum.aggregator.core.actions import Action, Release
from psum.aggregator.core.credit import CreditReturns
from psum.aggregator.core.departures import Departures
from psum.aggregator.core.ended_jobs import EndedJobs
from psum.aggregator.core.job import Job
from psum.aggregator.core.job_rounds import JobRounds
from psum.aggregator.core.key import Key as JobKey
from psum.aggregator.core.recovery import Recovery
from psum.aggregator.core.round import RULES, Phase, ShardRounds, Timing, Verdict
from psum.client.core import running_operations
from psum.client.core.buffers import flat
from psum.client.core.key_rounds import KeyRounds, Part
from psum.client.core.placement import Shard
from psum.client.core.scheduler import Scheduler
from psum.client.core.send_window import SendWindow
from psum.client.core.session import Session
from psum.client.core.small_results import SmallResults
from psum.client.core.ticket import Ticket
from psum.v1 import aggregator_pb2 as pb
from psum.wire import to_columns, to_rows
from psum.wire.errors import FaultError


def waiters_are_forgotten_when_a_round_is_adopted(patch: pytest.MonkeyPatch) -> None:
    adopt = ShardRounds.adopt

    def mutant(self: ShardRounds[object], holder: int, now: float) -> None:
        adopt(self, holder, now)
        self.ranks_lacking_result.clear()
        self.since = None

    patch.setattr(ShardRounds, "adopt", mutant)


def a_holder_that_comes_back_is_not_asked_again(patch: pytest.MonkeyPatch) -> None:
    reconcile = Recovery._reconcile

    def mutant(self: Recovery, key: JobKey, declared: pb.Shard, rank: int, now: float) -> bool:
        before = key.shards[declared.index].round
        asked = reconcile(self, key, declared, rank, now)
        return asked and key.shards[declared.index].round != before

    patch.setattr(Recovery, "_reconcile", mutant)


def a_late_copy_of_the_round_before_is_refused(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(RULES, (Phase.GATHERING, Timing.LAST, False), Verdict.IGNORE)


def a_duplicate_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(RULES, (Phase.GATHERING, Timing.CURRENT, True), Verdict.TAKE)


def a_contribution_replaces_the_one_before(patch: pytest.MonkeyPatch) -> None:
    contribute = ShardRounds.contribute

    def mutant(
        self: ShardRounds[object], rank: int, round: int, payload: memoryview, priority: int, now: float
    ) -> Verdict:
        # Ignores the contribution's round.
        return contribute(self, rank, max(round, self.round), payload, priority, now)

    patch.setattr(ShardRounds, "contribute", mutant)


def credit_is_never_returned(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CreditReturns, "_rounds_due", lambda _self, worker, *_: worker.uncredited.clear() or ())


def a_leaving_worker_does_not_wait_for_others(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Departures, "_who_may_need", lambda _self, _worker: set())


def memory_of_a_failed_key_is_kept(patch: pytest.MonkeyPatch) -> None:
    def mutant(self: JobRounds, key: JobKey, failure: FaultError) -> Sequence[Action]:
        if key.failure is None:
            key.fail(failure)
            return self.key_failed(key, failure)
        return ()

    patch.setattr(JobRounds, "_let_go", mutant)


def ranks_are_declared_at_the_key_s_round(patch: pytest.MonkeyPatch) -> None:
    declaration = KeyRounds.declaration

    def mutant(self: KeyRounds, aggregator: int) -> pb.Key:
        declared = declaration(self, aggregator)
        for shard in declared.shards:
            # Wrong: some shards of the current round may have their sums already.
            shard.round = self.round
        return declared

    patch.setattr(KeyRounds, "declaration", mutant)


def the_kept_sum_is_the_program_s_memory(patch: pytest.MonkeyPatch) -> None:
    def mutant(ticket: Ticket, shard: Shard, payload: memoryview) -> memoryview | bytes:
        if payload or ticket.source is None:
            return bytes(payload)
        return flat(ticket.source)[shard.start : shard.stop]

    patch.setattr(running_operations, "kept", mutant)


def what_was_postponed_is_not_sent_to_the_next_process(patch: pytest.MonkeyPatch) -> None:
    reconnected = Session.reconnected

    def mutant(self: Session, aggregator: int) -> None:
        self._windows[aggregator].postponed.clear()
        reconnected(self, aggregator)

    patch.setattr(Session, "reconnected", mutant)


def credit_is_not_forgotten_with_the_connection(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "forget_credit", lambda _self: None)


def an_item_larger_than_the_credit_never_passes(patch: pytest.MonkeyPatch) -> None:
    take = Scheduler.take

    def mutant(self: Scheduler[Part]) -> list[Part]:
        if self._queue and self._queue[0].size > self.credit_bytes:
            return []
        return take(self)

    patch.setattr(Scheduler, "take", mutant)


def a_result_is_taken_for_any_round(patch: pytest.MonkeyPatch) -> None:
    take = SmallResults.take

    def mutant(self: SmallResults, window: SendWindow[Part], shards: pb.ShardRounds, *others: Any) -> None:
        rows = to_rows(shards)
        parts = [window.outstanding.get((row.id, row.shard)) for row in rows]
        rows = [
            row if part is None else row._replace(round=part.ticket.round)
            for row, part in zip(rows, parts, strict=True)
        ]
        take(self, window, to_columns(rows), *others)

    patch.setattr(SmallResults, "take", mutant)


def a_job_that_a_rank_never_joined_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EndedJobs, "of", lambda _self, _hello, _now: None)


def nobody_hears_of_a_worker_that_was_told_to_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Job, "leave_early", lambda _self, rank, _goodbye, _now: [Release(rank)])


def a_process_is_let_in_for_one_that_took_part(patch: pytest.MonkeyPatch) -> None:
    join = Job.join

    def mutant(self: Job, hello: pb.Hello, peer: str, now: float) -> tuple[list[Action], FaultError | None]:
        holder = self.workers.get(hello.rank)
        if holder is not None and not holder.connected:
            holder.contributed = False
        return join(self, hello, peer, now)

    patch.setattr(Job, "join", mutant)


ALL = [
    waiters_are_forgotten_when_a_round_is_adopted,
    a_holder_that_comes_back_is_not_asked_again,
    a_late_copy_of_the_round_before_is_refused,
    a_duplicate_counts,
    a_contribution_replaces_the_one_before,
    credit_is_never_returned,
    a_leaving_worker_does_not_wait_for_others,
    memory_of_a_failed_key_is_kept,
    ranks_are_declared_at_the_key_s_round,
    the_kept_sum_is_the_program_s_memory,
    what_was_postponed_is_not_sent_to_the_next_process,
    credit_is_not_forgotten_with_the_connection,
    an_item_larger_than_the_credit_never_passes,
    a_result_is_taken_for_any_round,
    a_job_that_a_rank_never_joined_is_forgotten,
    nobody_hears_of_a_worker_that_was_told_to_end,
    a_process_is_let_in_for_one_that_took_part,
]

#: For bugs that few histories find: the seed of one of these histories. The test tries it first. If histories have
#: changed since, the test searches all of them, which takes longer, and prints another seed.
SEEDS: Final[Mapping[Callable[[pytest.MonkeyPatch], None], int]] = {
    a_leaving_worker_does_not_wait_for_others: 49,
    waiters_are_forgotten_when_a_round_is_adopted: 18,
    a_result_is_taken_for_any_round: 86,
    a_job_that_a_rank_never_joined_is_forgotten: 123,
    a_process_is_let_in_for_one_that_took_part: 189,
}
