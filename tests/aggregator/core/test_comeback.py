"""An aggregator that was started again learns the rounds from its workers, and gives each the sums that it lacks."""

import pytest

from psum.aggregator.core.actions import (
    Action,
    Ask,
    Deliver,
    EndStreams,
    Release,
    Report,
    Sum,
    Sync,
)
from psum.aggregator.core.credit import CREDIT_HOLD_SECONDS
from psum.aggregator.core.departures import RELEASE_SECONDS
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.membership import REPLACED_SECONDS
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import DisagreementError, ProtocolError, TakenError, WorkerLostError

FOUR = memoryview(b"abcd")


def hello(rank: int, *, num_workers: int = 3, incarnation: int | None = None, resuming: bool = True) -> pb.Hello:
    return pb.Hello(
        job="night",
        rank=rank,
        num_workers=num_workers,
        incarnation=100 + rank if incarnation is None else incarnation,
        resuming=resuming,
    )


@pytest.fixture
def job() -> Job:
    """A job on an aggregator that was just started again, to which three workers have come back."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    for rank in range(3):
        assert job.join(hello(rank), "peer", 0.0) == ([], None)
    return job


def sync(leaving: int, *others: int) -> Sync:
    """What the others are asked when a rank leaves."""
    return Sync(leaving, others, (pb.Departure(ranks=[leaving], incarnation=100 + leaving),))


def declare(job: Job, rank: int, round: int) -> list[Action]:
    """A rank declares the round that it is at: the first one whose sum it lacks."""
    key = pb.Key(id=7, name="w", elements=4, type=pb.ELEMENT_TYPE_UINT8, operation=pb.OPERATION_SUM, shape=[4])
    key.shards.append(pb.Shard(index=0, elements=4, round=round))
    actions = job.declare(rank, key, 1.0)
    job.check()
    return actions


def push(job: Job, rank: int, round: int) -> list[Action]:
    actions = job.contribute(rank, ShardRound(id=7, round=round, length=4), FOUR, 1.0)
    job.check()
    return actions


def give_back(job: Job, rank: int, round: int) -> list[Action]:
    """A rank gives back a sum, and the shell makes a message of it."""
    [action] = job.restore(rank, ShardRound(id=7, round=round, length=4), FOUR)
    assert isinstance(action, Sum)
    assert action.restored
    actions = job.restored(action.key, 0, round, "sum")
    job.check()
    return actions


def test_the_round_goes_on_where_all_ranks_are(job: Job) -> None:
    """Workers that all wait for round 5 push it again, and it is summed."""
    for rank in range(3):
        assert declare(job, rank, 5) == []
    assert push(job, 2, 5) == []
    assert push(job, 0, 5) == []
    [action] = push(job, 1, 5)
    assert isinstance(action, Sum)


def test_a_rank_that_has_the_sum_gives_it_to_those_who_wait_for_it(job: Job) -> None:
    """Two ranks push round 5 again; the third has its sum already, and is asked for it."""
    for rank in range(2):
        assert declare(job, rank, 5) == []
        assert push(job, rank, 5) == []
    assert declare(job, 2, 6) == [Ask(2, ((7, 0, 5),))]
    assert job.held_bytes == 0
    [action] = give_back(job, 2, 5)
    assert isinstance(action, Deliver)
    assert (action.round, action.result, action.ranks) == (5, "sum", (0, 1))


def test_a_rank_that_comes_late_gets_the_sum_from_one_that_came_first(job: Job) -> None:
    """The holder declares first. A rank that lacks its sum pushes, and only then the holder is asked."""
    assert declare(job, 2, 6) == []
    assert declare(job, 0, 5) == []
    assert push(job, 0, 5) == [Ask(2, ((7, 0, 5),))]
    [action] = give_back(job, 2, 5)
    assert isinstance(action, Deliver)
    assert action.ranks == (0,)
    # A rank that comes even later is answered with it.
    assert declare(job, 1, 5) == []
    [action] = push(job, 1, 5)
    assert isinstance(action, Deliver)
    assert (action.result, action.ranks) == ("sum", (1,))


def test_a_holder_that_vanishes_before_it_answers_is_asked_again(job: Job) -> None:
    """When it is back and declares its round, it is asked once more."""
    declare(job, 2, 6)
    declare(job, 0, 5)
    push(job, 0, 5)
    job.lost(2, 2.0)
    assert job.join(hello(2), "peer", 3.0) == ([], None)
    assert declare(job, 2, 6) == [Ask(2, ((7, 0, 5),))]


def test_a_sum_that_nobody_has_any_more_is_made_again(job: Job) -> None:
    """A relay said that it has the sum, and was then killed before it gave the sum to its workers or back."""
    assert declare(job, 0, 5) == []
    assert push(job, 0, 5) == []
    assert declare(job, 2, 6) == [Ask(2, ((7, 0, 5),))]
    # This one sends when it comes back anyway.
    job.lost(2, 2.0)
    assert job.join(hello(2), "peer", 3.0) == ([], None)
    assert declare(job, 2, 5) == [EndStreams((0,))]
    assert job.held_bytes == 0
    assert declare(job, 1, 5) == []
    assert push(job, 2, 5) == []
    assert push(job, 1, 5) == []
    job.lost(0, 3.0)
    assert job.join(hello(0), "peer", 3.0) == ([], None)
    assert declare(job, 0, 5) == []
    [action] = push(job, 0, 5)
    assert isinstance(action, Sum)
    assert (action.round, action.restored) == (5, False)


def test_a_sum_that_one_rank_has_lost_comes_from_another(job: Job) -> None:
    """If other ranks have it, one of them is asked, and no round is made again."""
    assert declare(job, 0, 6) == []
    assert declare(job, 2, 6) == []
    assert declare(job, 1, 5) == []
    assert push(job, 1, 5) == [Ask(2, ((7, 0, 5),))]
    job.lost(2, 2.0)
    assert job.join(hello(2), "peer", 3.0) == ([], None)
    assert declare(job, 2, 5) == [Ask(0, ((7, 0, 5),))]
    assert push(job, 2, 5) == []
    [action] = give_back(job, 0, 5)
    assert isinstance(action, Deliver)
    assert action.ranks == (1, 2)


def test_the_next_round_may_begin_before_the_sum_is_back(job: Job) -> None:
    """Ranks that have the sum push round 6 while another still waits for that of round 5."""
    declare(job, 0, 6)
    declare(job, 1, 6)
    declare(job, 2, 5)
    push(job, 0, 6)
    [ask] = push(job, 2, 5)
    assert isinstance(ask, Ask)
    push(job, 1, 6)
    [action] = give_back(job, ask.rank, 5)
    assert isinstance(action, Deliver)
    assert action.ranks == (2,)
    [action] = push(job, 2, 6)
    assert isinstance(action, Sum)
    assert (action.round, action.restored) == (6, False)


def test_nobody_is_ahead_of_a_round_whose_last_sum_is_missed(job: Job) -> None:
    """A rank waits for the sum of round 4, so no other can have that of round 5: who says so is told, and the rank that
    waits hears of it instead of being forgotten."""
    declare(job, 0, 5)
    declare(job, 1, 4)
    push(job, 1, 4)
    [action] = declare(job, 2, 6)
    assert isinstance(action, Report)
    assert isinstance(action.fault, DisagreementError)
    assert action.ranks == (0, 1, 2)


def test_a_rank_that_begins_a_round_waits_for_the_last_sum_no_more(job: Job) -> None:
    """A rank that asks for the last sum, and then contributes to the next round, has contradicted itself: it is no
    waiter any more when that round is summed."""
    for rank in range(3):
        declare(job, rank, 5)
    push(job, 0, 4)
    for rank in range(3):
        actions = push(job, rank, 5)
    [action] = actions
    assert isinstance(action, Sum)
    job.summed(action.key, 0, "sum")
    job.check()


def test_a_sum_that_is_given_back_twice_or_unasked_changes_nothing(job: Job) -> None:
    """Only the first counts, and only if the sum is missing."""
    declare(job, 2, 6)
    declare(job, 0, 5)
    push(job, 0, 5)
    give_back(job, 2, 5)
    entry = ShardRound(id=7, round=5, length=4)
    assert job.restore(1, entry, FOUR) == []
    assert job.restore(1, ShardRound(id=7, round=4, length=4), FOUR) == []
    assert job.restore(1, ShardRound(id=99, round=5, length=4), FOUR) == []
    assert job.held_bytes == 4


def test_a_sum_that_nobody_waits_for_is_not_written(job: Job) -> None:
    """Where it would be written, the sum of the next round may be written meanwhile, or be read already."""
    for rank in range(3):
        declare(job, rank, 6)
    entry = ShardRound(id=7, round=5, length=4)
    assert job.restore(2, entry, FOUR) == []
    for rank in range(3):
        push(job, rank, 6)
    assert job.restore(2, entry, FOUR) == []


def test_a_sum_that_two_ranks_give_back_is_written_once(job: Job) -> None:
    """The second one could otherwise be written after the next round's sum, in its place."""
    declare(job, 2, 6)
    declare(job, 1, 6)
    declare(job, 0, 5)
    push(job, 0, 5)
    entry = ShardRound(id=7, round=5, length=4)
    [action] = job.restore(2, entry, FOUR)
    assert isinstance(action, Sum)
    assert job.restore(1, entry, FOUR) == []
    [delivery] = job.restored(action.key, 0, 5, "sum")
    assert isinstance(delivery, Deliver)
    assert delivery.ranks == (0,)


def test_a_sum_of_the_wrong_size_breaks_the_protocol(job: Job) -> None:
    """The sum must have the size of the shard."""
    declare(job, 2, 6)
    with pytest.raises(ProtocolError, match="gave back 3 bytes"):
        job.restore(2, ShardRound(id=7, round=5, length=3), memoryview(b"abc"))


@pytest.mark.parametrize("rounds", [(5, 7), (7, 5), (57, 0), (0, 57)])
def test_ranks_that_are_further_apart_than_a_round_cannot_go_on(job: Job, rounds: tuple[int, int]) -> None:
    """A worker that was started again in the middle of the job begins at round 0: all ranks are told."""
    assert declare(job, 0, rounds[0]) == []
    [action] = declare(job, 1, rounds[1])
    assert isinstance(action, Report)
    assert isinstance(action.fault, DisagreementError)
    assert action.ranks == (0, 1, 2)
    assert f"rank 1 is at round {rounds[1]} of key 'w'" in str(action.fault)


def begun(now: float) -> Job:
    """A job on an aggregator that was started again: only rank 0 has come back, and it has a sum."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    assert job.join(hello(0), "peer", now) == ([], None)
    declare(job, 0, 1)
    return job


def replacement(age: float = 60.0) -> pb.Hello:
    """The hello of a new process of rank 2, which was started so many seconds ago."""
    message = hello(2, incarnation=9, resuming=False)
    message.worker, message.age_seconds = "host pid 9", age
    return message


@pytest.mark.parametrize(
    ("age", "now"), [(0.5, 11.0), (60.0, 10.0 + REPLACED_SECONDS)], ids=["started since", "nobody has come back"]
)
def test_a_worker_that_vanished_while_the_aggregator_was_away_is_not_waited_for(age: float, now: float) -> None:
    """Where another process has its rank, the peers hear of it at once. The new process waits for the next run."""
    job = begun(10.0)
    [report], refusal = job.join(replacement(age), "peer:9", now)
    assert isinstance(refusal, TakenError)
    assert isinstance(report, Report)
    assert isinstance(report.fault, WorkerLostError)
    assert (report.fault.key, report.fault.ranks, report.ranks) == (None, (2,), (0,))
    assert "rank 2 of job 'night' has not come back to this aggregator, which was started again" in str(report.fault)
    assert "Another process, host pid 9 (peer:9), has come in its place" in str(report.fault)
    actions, refusal = job.join(replacement(age + 1), "peer:9", now + 1)
    assert actions == []
    assert isinstance(refusal, TakenError)
    assert "in which rank 2 was another process, has failed and is still ending; still connected" in str(refusal)
    # The one before, which could not reach the aggregator, is told what has become of the job.
    assert job.join(hello(2), "peer:2", now + 1)[1] is report.fault


def test_a_worker_that_is_slow_to_come_back_does_so_while_another_process_has_its_rank() -> None:
    """A process that was started before the aggregator may have the rank by mistake."""
    job = begun(10.0)
    actions, refusal = job.join(replacement(), "peer:9", 10.0 + REPLACED_SECONDS - 0.1)
    assert actions == []
    assert isinstance(refusal, TakenError)
    assert "rank 2 of job 'night' has taken part in it as another process" in str(refusal)
    assert job.join(hello(2), "peer:2", 11.0) == ([], None)
    assert isinstance(job.join(replacement(), "peer:9", 60.0)[1], TakenError)
    assert job.failure is None


def test_a_worker_that_vanished_after_it_came_back_is_not_waited_for() -> None:
    """It has pushed nothing to this aggregator, but has taken part in the job."""
    job = begun(0.0)
    assert job.join(hello(2), "peer:2", 1.0) == ([], None)
    job.lost(2, 5.0)
    assert job.join(replacement(), "peer:9", 5.1)[0] == []
    [report], refusal = job.join(replacement(0.5), "peer:9", 6.0)
    assert isinstance(refusal, TakenError)
    assert isinstance(report, Report)
    assert isinstance(report.fault, WorkerLostError)
    assert "vanished 1.0 s ago, and another process" in str(report.fault)


def test_a_worker_that_was_started_again_and_came_first_is_not_mixed_into_old_rounds() -> None:
    """One round of the others is enough proof, because all ranks have contributed to it."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    job.join(hello(2, resuming=False), "peer", 0.0)
    declare(job, 2, 0)
    push(job, 2, 0)
    job.join(hello(0), "peer", 1.0)
    [action] = declare(job, 0, 1)
    assert isinstance(action, Report)
    assert isinstance(action.fault, DisagreementError)
    assert (action.fault.key, action.fault.ranks, action.ranks) == (None, (2,), (2, 0))


def test_a_worker_that_is_late_may_join_an_aggregator_that_was_started_again() -> None:
    """No round can have ended without it, so no rank declares one."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    job.join(hello(0), "peer", 0.0)
    job.join(hello(1), "peer", 0.0)
    declare(job, 0, 0)
    assert job.join(hello(2, resuming=False), "peer", 1.0) == ([], None)
    assert declare(job, 2, 0) == []
    assert declare(job, 1, 0) == []


def test_a_worker_that_does_not_come_back_fails_the_job(job: Job) -> None:
    """After a restart the missing rank is not known from before; it has worker_timeout to return."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    job.join(hello(0), "peer", 0.0)
    job.join(hello(2), "peer", 1.0)
    assert job.tick(29.0) == []
    [action] = job.tick(31.0)
    assert isinstance(action, Report)
    assert isinstance(action.fault, WorkerLostError)
    assert action.fault.ranks == (1,)


def test_ranks_that_have_not_joined_yet_are_not_missed() -> None:
    """When a job begins, its workers may join late."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    job.join(hello(0, resuming=False), "peer", 0.0)
    assert job.tick(1000.0) == []


def test_the_same_process_may_come_back_before_its_old_connection_is_known_to_be_broken(job: Job) -> None:
    """One side may notice a broken connection first; the worker keeps its rank."""
    declare(job, 0, 0)
    push(job, 0, 0)
    assert job.join(hello(0), "new peer", 5.0) == ([], None)
    assert job.workers[0].peer == "new peer"
    assert push(job, 0, 0) == []
    assert job.workers[0].connected


def test_credit_comes_back_for_contributions_that_were_sent_again(job: Job) -> None:
    """A duplicate and a wait for a lost sum count against their sender's credit, which is returned."""
    for rank in range(2):
        declare(job, rank, 0)
    push(job, 0, 0)
    job.tick(1.0 + 2 * CREDIT_HOLD_SECONDS)
    push(job, 0, 0)
    [action] = job.tick(1.0 + 4 * CREDIT_HOLD_SECONDS)
    assert getattr(action, "rounds", None) == ((7, 0, 0),)
    declare(job, 2, 1)
    push(job, 0, 0)
    [action] = job.tick(1.0 + 6 * CREDIT_HOLD_SECONDS)
    assert getattr(action, "rounds", None) == ((7, 0, 0),)


def summed_once(job: Job) -> None:
    for rank in range(3):
        declare(job, rank, 0)
        actions = push(job, rank, 0)
    [action] = actions
    assert isinstance(action, Sum)
    job.summed(action.key, 0, "sum")


def test_a_worker_is_released_when_the_others_have_received_their_sums(job: Job) -> None:
    """Its goodbye is answered when each connected rank has confirmed; a rank that leaves too needs nothing more."""
    summed_once(job)
    assert job.leave(2, 5.0) == [sync(2, 0, 1)]
    assert job.synced(0, 2, 5.0) == []
    assert job.leave(1, 5.0) == [sync(1, 0), Release(2)]
    assert job.synced(0, 1, 5.0) == [Release(1)]
    assert job.leave(0, 6.0) == [Release(0)]
    # Its memory is kept as long as one of them may still answer.
    for rank in range(3):
        assert not job.over
        job.lost(rank, 6.0)
    assert job.over


def test_a_worker_is_released_after_a_while_in_any_case(job: Job) -> None:
    """A rank that does not answer delays another one's end only for a while."""
    summed_once(job)
    job.lost(0, 4.0)
    assert job.leave(2, 5.0) == [sync(2, 0, 1)]
    assert job.synced(1, 2, 5.0) == []
    assert job.tick(5.0 + RELEASE_SECONDS / 2) == []
    assert job.tick(5.0 + RELEASE_SECONDS) == [Release(2)]
    assert job.tick(6.0 + RELEASE_SECONDS) == []


def test_a_worker_whose_connection_breaks_after_its_goodbye_says_it_again(job: Job) -> None:
    """If it were refused, it would end, although other aggregators may still need its sums."""
    summed_once(job)
    assert job.leave(2, 5.0) == [sync(2, 0, 1)]
    job.lost(2, 5.5)
    assert job.join(hello(2), "peer", 6.0) == ([], None)
    assert job.leave(2, 6.0) == [sync(2, 0, 1)]
    assert job.synced(0, 2, 6.0) == []
    assert job.synced(1, 2, 6.0) == [Release(2)]
    _, refusal = job.join(hello(2, incarnation=7), "peer", 7.0)
    assert isinstance(refusal, TakenError)


def test_a_worker_that_took_part_in_nothing_is_released_when_all_know() -> None:
    """No rank can need a sum of it. But the next process of this aggregator would wait for it."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    for rank in range(3):
        job.join(hello(rank, resuming=False), "peer", 0.0)
    assert job.leave(1, 5.0) == [sync(1, 0, 2)]
    assert job.synced(0, 1, 5.0) == []
    assert job.synced(2, 1, 5.0) == [Release(1)]


def test_a_worker_that_leaves_after_a_restart_stays_for_ranks_that_are_not_back(job: Job) -> None:
    """It has contributed to nothing since, but it may have sums that ranks lack that have not come back yet."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    job.join(hello(2), "peer", 0.0)
    declare(job, 2, 6)
    assert job.leave(2, 1.0) == [sync(2, 0, 1)]
    job.join(hello(0), "peer", 1.0)
    declare(job, 0, 5)
    assert push(job, 0, 5) == [Ask(2, ((7, 0, 5),))]
    [action] = give_back(job, 2, 5)
    assert isinstance(action, Deliver)
    assert action.ranks == (0,)


def test_a_worker_that_leaves_does_not_fail_those_who_wait_for_a_sum_that_it_has(job: Job) -> None:
    """They wait for the round before, to which it has contributed, not for the next one."""
    declare(job, 2, 6)
    declare(job, 0, 5)
    assert push(job, 0, 5) == [Ask(2, ((7, 0, 5),))]
    assert job.leave(2, 2.0) == [sync(2, 0, 1)]
    job.check()
    [action] = give_back(job, 2, 5)
    assert isinstance(action, Deliver)
    assert action.ranks == (0,)


def test_open_rounds_are_those_that_somebody_contributed_to(job: Job) -> None:
    """A draining aggregator finishes these and no others."""
    for rank in range(3):
        declare(job, rank, 0)
    assert job.open_rounds() == []
    push(job, 1, 0)
    assert job.open_rounds() == [(7, 0, 0)]
    push(job, 0, 0)
    [action] = push(job, 2, 0)
    assert job.open_rounds() == [(7, 0, 0)]
    assert isinstance(action, Sum)
    job.summed(action.key, 0, "sum")
    assert job.open_rounds() == []


def test_a_rank_may_be_new_where_no_round_has_ended() -> None:
    """An aggregator that was started again while the workers joined: some come back, others come for the first time."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    for rank in range(3):
        job.join(hello(rank, resuming=rank == 0), "peer", 0.0)
        assert declare(job, rank, 0) == []


def test_a_round_that_waits_for_a_rank_that_is_gone_is_not_to_be_finished(job: Job) -> None:
    """A draining aggregator accepts no streams, so a missing rank could not contribute."""
    for rank in range(3):
        declare(job, rank, 0)
    push(job, 0, 0)
    job.lost(0, 1.0)
    assert job.open_rounds() == [(7, 0, 0)]
    job.lost(1, 1.0)
    assert job.open_rounds() == []


def test_a_round_that_waits_for_a_rank_that_never_came_is_not_to_be_finished() -> None:
    """A draining aggregator accepts no streams, so a rank that has not joined could not contribute."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    job.join(hello(0), "peer", 0.0)
    declare(job, 0, 0)
    push(job, 0, 0)
    assert job.open_rounds() == []


def test_what_a_rank_repeats_makes_no_work_for_others(job: Job) -> None:
    """A repeated push leads to one want, and a repeated goodbye to no more syncs."""
    declare(job, 2, 6)
    declare(job, 0, 5)
    assert push(job, 0, 5) == [Ask(2, ((7, 0, 5),))]
    assert push(job, 0, 5) == []
    assert push(job, 0, 5) == []
    # The holder comes back without having answered, and is asked again once.
    assert declare(job, 2, 6) == [Ask(2, ((7, 0, 5),))]
    give_back(job, 2, 5)
    job.leave(2, 2.0)
    assert job.leave(2, 2.0) == []


def test_a_rank_that_begins_a_round_without_the_sum_before_leaves_no_trace(job: Job) -> None:
    """Such a rank breaks the protocol and harms only itself: once the round is complete, the older sum is dropped."""
    declare(job, 2, 6)
    declare(job, 0, 5)
    push(job, 0, 5)
    push(job, 0, 6)
    push(job, 1, 6)
    [action] = job.contribute(2, ShardRound(id=7, round=6, length=4), FOUR, 1.0)
    assert isinstance(action, Sum)
    job.summed(action.key, action.shard, "sum")
    job.check()
