"""An elastic job goes on without lost ranks, and counts who has contributed to each result."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from psum.aggregator.core.actions import (
    Action,
    Ask,
    Deliver,
    EndStreams,
    Release,
    Report,
    ReturnCredit,
    Sum,
    TellLosses,
    Warn,
)
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.registry import Registry
from psum.v1 import aggregator_pb2 as pb
from psum.wire import PROTOCOL_VERSION, ShardRound
from psum.wire.errors import (
    DisagreementError,
    ExcludedError,
    FaultError,
    InvalidError,
    ProtocolError,
    RoundTimeoutError,
    TakenError,
    WorkerLostError,
)

LIMITS = Limits(round_timeout=600, warn_after=30, elastic_timeout=5, elastic_closed_timeout=1)


def hello(rank: int, **change: Any) -> pb.Hello:
    fields: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "job": "night",
        "rank": rank,
        "num_workers": 3,
        "incarnation": 100 + rank,
        "partition_bytes": 1024,
        "aggregators": ["a:1", "b:1"],
        "worker": f"h{rank} pid 7",
        "elastic": pb.Elastic(min=1, max=3),
    }
    return pb.Hello(**fields | change)


def started(ranks: Iterable[int] = range(3), limits: Limits = LIMITS, **change: Any) -> ElasticJob:
    """A job with these ranks, on an aggregator that was just started."""
    hellos = [hello(rank, **change) for rank in ranks]
    job = ElasticJob(hellos[0], limits)
    for each in hellos:
        assert job.join(each, f"peer {each.rank}", 0.0) == ([], None)
    return job


def declare(job: Job, rank: int, round: int = 0, *, broadcast: bool = False) -> list[Action]:
    operation = pb.OPERATION_BROADCAST if broadcast else pb.OPERATION_SUM
    key = pb.Key(id=7, name="w", elements=4, type=pb.ELEMENT_TYPE_UINT8, operation=operation, shape=[4])
    key.shards.append(pb.Shard(index=0, elements=4, round=round))
    actions = job.declare(rank, key, 1.0)
    job.check()
    return actions


def push(job: Job, rank: int, round: int = 0, now: float = 1.0) -> list[Action]:
    actions = job.contribute(rank, ShardRound(id=7, round=round, length=4), memoryview(bytes([1 << rank] * 4)), now)
    job.check()
    return actions


def pull(job: Job, rank: int, round: int = 0) -> list[Action]:
    actions = job.contribute(rank, ShardRound(id=7, round=round), None, 1.0)
    job.check()
    return actions


def add_up(job: Job, action: Action) -> Deliver:
    """Makes the sum that an action asks for. Returns the result that follows."""
    assert isinstance(action, Sum)
    result = bytes(map(sum, zip(*action.contributions, strict=True)))
    [deliver] = job.summed(action.key, action.shard, result)
    job.check()
    assert isinstance(deliver, Deliver)
    return deliver


def tick(job: Job, now: float) -> list[Action]:
    """What follows from the time, but for credit."""
    actions: list[Action] = [action for action in job.tick(now) if not isinstance(action, ReturnCredit)]
    job.check()
    return actions


def silence(job: Job, rank: int, now: float = 10.0) -> list[Action]:
    """A rank's stream is given up as silent, and the time passes after which the rank is lost."""
    assert job.lost(rank, now) == []
    assert tick(job, now + 4.9) == []
    return tick(job, now + 5.1)


def told(actions: Sequence[Action]) -> list[tuple[list[int], tuple[int, ...]]]:
    """The lost ranks that are told of, with those who are told."""
    return [([loss.rank for loss in a.losses], a.ranks) for a in actions if isinstance(a, TellLosses)]


def loss(rank: int) -> pb.Loss:
    return pb.Loss(rank=rank, text="it vanished elsewhere", seconds_ago=2.0)


def sums(actions: Sequence[Action]) -> list[Sum]:
    return [action for action in actions if isinstance(action, Sum)]


def faults(actions: Sequence[Action]) -> list[FaultError]:
    return [action.fault for action in actions if isinstance(action, Report)]


def begun(**change: Any) -> ElasticJob:
    """A job whose ranks have declared the key."""
    job = started(**change)
    for rank in range(3):
        assert declare(job, rank) == []
    return job


def test_a_round_that_misses_only_a_lost_rank_is_summed_without_it() -> None:
    """The others have contributed and wait; the loss completes the round, and the result counts two ranks."""
    job = begun()
    assert push(job, 2) == []
    assert push(job, 0) == []
    actions = silence(job, 1)
    assert told(actions) == [([1], (0, 2))]
    [warning] = [action for action in actions if isinstance(action, Warn)]
    assert warning.ranks == (0, 2)
    assert "rank 1 of job 'night' is lost" in warning.text
    assert "goes on with 2 of 3 ranks" in warning.text
    [action] = sums(actions)
    assert action.contributors == 2
    result = add_up(job, action)
    assert (result.result, result.contributors, result.ranks) == (bytes([5] * 4), 2, (0, 2))
    # Who is told first can tell others before the result that needs it.
    assert actions.index(action) > actions.index(next(a for a in actions if isinstance(a, TellLosses)))


def test_later_rounds_do_not_wait_for_a_lost_rank() -> None:
    """The last contribution of those who are left completes the round."""
    job = begun()
    assert sums(silence(job, 0)) == []
    assert push(job, 1) == []
    [action] = push(job, 2)
    assert add_up(job, action).contributors == 2


def test_what_a_rank_contributed_before_it_was_lost_counts() -> None:
    """It is in the sum, in rank order, and does not replace the contribution of another rank."""
    job = begun()
    assert push(job, 1) == []
    assert sums(silence(job, 1)) == []
    assert push(job, 2) == []
    [action] = push(job, 0)
    assert isinstance(action, Sum)
    assert [bytes(each)[0] for each in action.contributions] == [1, 2, 4]
    result = add_up(job, action)
    assert (result.result, result.contributors) == (bytes([7] * 4), 0)
    assert push(job, 0, 1) == []
    [action] = push(job, 2, 1)
    assert add_up(job, action).contributors == 2


def test_a_result_is_repeated_with_its_count() -> None:
    """A rank that did not receive a result gets the same bytes and the same count, also after a later loss."""
    job = begun()
    assert sums(silence(job, 1)) == []
    push(job, 0)
    [action] = push(job, 2)
    add_up(job, action)
    assert push(job, 0, 1) == []
    [again] = push(job, 2)
    assert isinstance(again, Deliver)
    assert (again.round, again.result, again.contributors, again.ranks) == (0, bytes([5] * 4), 2, (2,))


def test_nothing_more_counts_of_a_lost_rank() -> None:
    """What arrives late from a lost process is ignored, and its process is told why."""
    job = begun()
    push(job, 0)
    actions = job.learn_losses(0, [loss(1)], 3.0)
    [fault] = faults(actions)
    assert isinstance(fault, ExcludedError)
    assert fault.ranks == (1,)
    assert fault.key is None
    assert "excluded 2.0 s ago: it vanished elsewhere" in str(fault)
    assert push(job, 1) == []
    assert declare(job, 1) == []
    assert job.leave(1, 4.0) == []
    [action] = push(job, 2)
    assert add_up(job, action).result == bytes([5] * 4)


def test_a_closed_connection_is_noticed_sooner() -> None:
    """A worker that took part, and whose process has ended, is lost after the shorter time."""
    job = begun()
    push(job, 1)
    job.lost(1, 10.0, closed=True)
    assert tick(job, 10.9) == []
    assert told(tick(job, 11.1)) == [([1], (0, 2))]


def test_a_process_that_comes_back_in_time_goes_on() -> None:
    """A broken connection alone loses nobody."""
    job = begun()
    push(job, 1)
    job.lost(1, 10.0, closed=True)
    assert job.join(hello(1, resuming=True), "peer", 10.8) == ([], None)
    assert tick(job, 20.0) == []
    assert not job.members.losses


def test_a_lost_process_that_comes_back_is_refused() -> None:
    """It learns since when it is excluded, and why; the others notice nothing."""
    job = begun()
    silence(job, 1)
    actions, refusal = job.join(hello(1, resuming=True), "peer 1", 20.0)
    assert actions == []
    assert isinstance(refusal, ExcludedError)
    assert "rank 1 of elastic job 'night' was excluded 4.9 s ago: h1 pid 7 (peer 1) vanished" in str(refusal)
    assert "start a new process in its place" in str(refusal)
    assert job.failure is None


def test_a_new_process_for_a_lost_rank_that_does_not_ask_to_join_is_refused() -> None:
    """It is told that it is excluded, from which a client sees that it must ask to join."""
    job = begun()
    silence(job, 1)
    actions, refusal = job.join(hello(1, incarnation=9), "peer", 20.0)
    assert actions == []
    assert isinstance(refusal, ExcludedError)
    assert "was lost 4.9 s ago (h1 pid 7 (peer 1) vanished" in str(refusal)
    assert "It can join the job (PSUM_JOIN=1)" in str(refusal)


def test_a_process_that_comes_in_the_place_of_another_makes_it_lost() -> None:
    """Nobody waits for the old process any more, so the rank is lost at once, and the job does not fail."""
    job = begun()
    push(job, 1)
    job.lost(1, 10.0)
    actions, refusal = job.join(hello(1, incarnation=9, age_seconds=0.1), "peer", 11.0)
    assert isinstance(refusal, TakenError)
    assert actions == []
    assert told(tick(job, 11.1)) == [([1], (0, 2))]
    assert job.failure is None


def test_workers_tell_of_losses() -> None:
    """A loss that another aggregator has decided counts here at once, is passed on to those who may not know it, and
    only once."""
    job = begun()
    push(job, 0)
    push(job, 2)
    actions = job.learn_losses(0, [loss(1)], 3.0)
    assert told(actions) == [([1], (2,))]
    [action] = sums(actions)
    assert add_up(job, action).contributors == 2
    assert job.learn_losses(2, [loss(1)], 3.0) == []
    assert [(each.rank, each.text, each.seconds_ago) for each in job.losses(5.0)] == [(1, "it vanished elsewhere", 4.0)]


def test_aggregators_that_decide_differently_come_to_the_same() -> None:
    """Each has lost another rank; when each hears of the other's decision, both have lost both."""
    one, other = begun(), begun()
    one.learn_losses(0, [loss(1)], 3.0)
    other.learn_losses(0, [loss(2)], 3.0)
    one.learn_losses(0, [loss(2)], 4.0)
    other.learn_losses(0, [loss(1)], 4.0)
    assert one.members.roster.members == other.members.roster.members == (0,)
    assert one.failure is other.failure is None


def test_a_loss_that_makes_no_sense_is_refused() -> None:
    """Ranks outside of the job are none of its losses, and a job that is not elastic has none."""
    job = begun()
    with pytest.raises(ProtocolError, match="not in the job"):
        job.learn_losses(0, [loss(3)], 3.0)
    plain = Job(hello(0), LIMITS)
    with pytest.raises(ProtocolError, match="not elastic"):
        plain.learn_losses(0, [loss(1)], 3.0)


def test_below_the_minimum_rounds_wait_and_then_say_so() -> None:
    """With too few ranks no round is summed, and it fails after the round timeout with the numbers."""
    job = begun(elastic=pb.Elastic(min=2, max=3))
    actions = job.learn_losses(0, [loss(1), loss(2)], 3.0)
    assert "1 of 3 ranks are left, and rounds need 2" in str([a for a in actions if isinstance(a, Warn)][-1].text)
    assert push(job, 0, now=4.0) == []
    assert faults(tick(job, 600.0)) == []
    [fault] = faults(tick(job, 605.0))
    assert isinstance(fault, RoundTimeoutError)
    assert "1 of 3 ranks are left, and an elastic job that needs 2 (PSUM_ELASTIC) goes on with no fewer" in str(fault)
    assert "Ranks 1-2 are lost" in str(fault)
    assert fault.ranks == (1, 2)
    assert job.failure is None


def test_a_round_that_is_being_summed_ends_below_the_minimum() -> None:
    """Its contributions were all there. Only the next round waits."""
    job = begun(elastic=pb.Elastic(min=3, max=3))
    push(job, 0)
    push(job, 1)
    [action] = push(job, 2)
    job.learn_losses(0, [loss(1)], 3.0)
    job.check()
    assert add_up(job, action).contributors == 0
    push(job, 0, 1)
    assert push(job, 2, 1) == []


def test_when_all_are_lost_the_job_ends() -> None:
    """Nobody is left who could go on."""
    job = begun()
    actions = job.learn_losses(0, [loss(rank) for rank in range(3)], 3.0)
    fault = faults(actions)[-1]
    assert isinstance(fault, WorkerLostError)
    assert fault.ranks == (0, 1, 2)
    for rank in range(3):
        job.lost(rank, 3.0)
    assert job.over


def test_a_worker_that_ends_for_a_reason_of_its_own_is_lost_at_once() -> None:
    """It may go, and the others go on without waiting for a time-out. They learn its reason."""
    job = begun()
    push(job, 0)
    push(job, 1)
    fault = WorkerLostError("rank 2 was told to end", ranks=[2])
    actions = job.leave_early(2, pb.Goodbye(fault=fault.to_message()), 3.0)
    job.check()
    assert faults(actions) == []
    assert actions[-1] == Release(2)
    assert [action.contributors for action in sums(actions)] == [2]
    assert any("rank 2 was told to end" in a.text for a in actions if isinstance(a, Warn))


def test_a_failure_of_the_job_elsewhere_ends_it_here() -> None:
    """A goodbye with a fault that is not about its sender ends the job, as in any job."""
    job = begun()
    fault = DisagreementError("ranks disagree", ranks=[0, 2])
    job.leave_early(1, pb.Goodbye(fault=fault.to_message()), 3.0)
    assert isinstance(job.failure, DisagreementError)


def test_rounds_do_not_wait_for_ranks_that_have_left() -> None:
    """A rank that leaves in order completes the rounds that wait only for it, and later ones count one rank less."""
    job = begun()
    push(job, 0)
    push(job, 1)
    [last] = sums(job.leave(2, 3.0))
    assert add_up(job, last).contributors == 2
    push(job, 0, 1)
    [action] = push(job, 1, 1)
    assert add_up(job, action).contributors == 2


def test_too_few_ranks_because_others_have_left_is_an_error_at_once() -> None:
    """Nobody replaces those who have left in good order."""
    job = begun(elastic=pb.Elastic(min=3, max=3))
    push(job, 0)
    [fault] = faults(job.leave(2, 3.0))
    assert isinstance(fault, WorkerLostError)
    assert fault.ranks == (2,)


def test_a_job_is_over_when_the_others_have_left() -> None:
    """A lost rank keeps no job alive, and nobody who leaves waits for it."""
    job = begun()
    silence(job, 1)
    released: list[Action] = [*job.leave(0, 20.0), *job.synced(2, 0, 20.0), *tick(job, 20.1)]
    released += [*job.leave(2, 20.2), *tick(job, 20.3)]
    assert {action.rank for action in released if isinstance(action, Release)} == {0, 2}
    for rank in (0, 2):
        job.lost(rank, 21.0)
    assert job.over
    assert job.failure is None


def test_a_rank_that_never_joined_here_may_be_lost_elsewhere() -> None:
    """The job is complete without it."""
    job = started(range(2))
    declare(job, 0)
    declare(job, 1)
    push(job, 0)
    assert push(job, 1) == []
    [action] = sums(job.learn_losses(0, [loss(2)], 3.0))
    assert add_up(job, action).contributors == 2


# An aggregator that was started again.


def test_a_restarted_aggregator_learns_losses_from_a_hello() -> None:
    """The rounds go on where the ranks are, without the lost one."""
    job = started([0], resuming=True)
    actions, refusal = job.join(hello(2, resuming=True, losses=[loss(1)]), "peer", 0.0)
    assert refusal is None
    assert told(actions) == [([1], (0, 2))]
    declare(job, 0, 5)
    declare(job, 2, 5)
    push(job, 0, 5)
    [action] = push(job, 2, 5)
    assert add_up(job, action).contributors == 2


def test_a_rank_that_does_not_come_back_to_a_restarted_aggregator_is_lost() -> None:
    """Nobody had noticed its loss before the restart."""
    job = started(range(2), resuming=True)
    declare(job, 0, 5)
    declare(job, 1, 5)
    push(job, 0, 5)
    push(job, 1, 5)
    assert tick(job, 4.9) == []
    actions = tick(job, 5.1)
    assert told(actions) == [([2], (0, 1))]
    [action] = sums(actions)
    assert add_up(job, action).contributors == 2


def test_a_sum_is_given_back_with_its_count() -> None:
    """A rank that lacks the last result gets it with the count that the process before had made it with."""
    job = started(range(2), resuming=True)
    job.learn_losses(0, [loss(2)], 1.0)
    declare(job, 0, 6)
    declare(job, 1, 5)
    assert push(job, 1, 5) == [Ask(0, ((7, 0, 5),))]
    [action] = job.restore(0, ShardRound(id=7, round=5, length=4, contributors=2), memoryview(b"abcd"))
    assert isinstance(action, Sum)
    assert action.contributors == 2
    [result] = job.restored(action.key, 0, 5, b"abcd")
    job.check()
    assert isinstance(result, Deliver)
    assert (result.round, result.contributors, result.ranks) == (5, 2, (1,))


def test_a_result_that_only_a_lost_rank_had_is_made_again() -> None:
    """Everybody declares again, and the round is summed from those who are left."""
    job = started(resuming=True)
    declare(job, 0, 6)
    push(job, 0, 6)
    declare(job, 1, 5)
    declare(job, 2, 5)
    assert push(job, 1, 5) == [Ask(0, ((7, 0, 5),))]
    actions = silence(job, 0)
    assert actions[-1] == EndStreams((1, 2))
    assert job.held_bytes == 0
    for rank in (1, 2):
        assert job.join(hello(rank, resuming=True, losses=[loss(0)]), "peer", 20.0) == ([], None)
        declare(job, rank, 5)
    push(job, 1, 5)
    [action] = push(job, 2, 5)
    result = add_up(job, action)
    assert (result.round, result.result, result.contributors) == (5, bytes([6] * 4), 2)


@pytest.mark.parametrize(("old", "pushes"), [(2, True), (2, False), (0, True), (0, False)])
def test_a_stopped_process_that_is_the_first_to_come_back_spoils_nothing(old: int, pushes: bool) -> None:
    """It declares an old round to a process that does not know of its loss. The others begin at their own round."""
    job = started([1], resuming=True)
    declare(job, 1, old)
    if pushes:
        push(job, 1, old)
    actions, refusal = job.join(hello(0, resuming=True, losses=[loss(1)]), "peer", 1.0)
    assert refusal is None
    assert isinstance(faults(actions)[0], ExcludedError)
    job.join(hello(2, resuming=True, losses=[loss(1)]), "peer", 1.0)
    assert declare(job, 0, 8) == []
    assert declare(job, 2, 8) == []
    push(job, 0, 8)
    [action] = push(job, 2, 8)
    result = add_up(job, action)
    assert (result.result, result.contributors) == (bytes([5] * 4), 2)


def test_what_is_under_way_for_forgotten_keys_is_ignored() -> None:
    """A stream that is about to end may still bring contributions, and a sum may be in the making."""
    job = started(resuming=True)
    for rank in range(3):
        declare(job, rank, 5)
    push(job, 0, 5)
    push(job, 1, 5)
    [action] = push(job, 2, 5)
    assert isinstance(action, Sum)
    actions = job.learn_losses(0, [loss(1)], 2.0)
    assert actions[-1] == EndStreams((0, 2))
    assert job.summed(action.key, 0, b"abcd") == []
    assert push(job, 0, 6) == []


def test_a_new_process_that_is_the_first_at_a_restarted_aggregator_is_no_member() -> None:
    """The process that had its rank before has ended unnoticed. The rank is lost as soon as another one says how far
    the job is."""
    job = started([1], incarnation=9)
    declare(job, 1)
    for rank in (0, 2):
        assert job.join(hello(rank, resuming=True), "peer", 1.0) == ([], None)
    actions = declare(job, 0, 8)
    assert [type(fault) for fault in faults(actions)] == [ExcludedError]
    assert told(actions) == [([1], (0, 2))]
    assert job.failure is None
    for rank in (0, 2):
        assert declare(job, rank, 8) == []
        push(job, rank, 8)
    assert job.rounds.keys[7].shards[0].round == 8


def test_members_that_have_left_are_not_waited_for() -> None:
    """Workers that come back tell of a departure. Rounds count those who are left."""
    job = started([0], resuming=True)
    gone = [pb.Departure(ranks=[2], incarnation=102)]
    job.join(hello(1, resuming=True, departures=gone), "peer", 0.0)
    declare(job, 0, 5)
    declare(job, 1, 5)
    push(job, 0, 5)
    [action] = push(job, 1, 5)
    assert add_up(job, action).contributors == 2


# The hello.


def test_a_registry_makes_an_elastic_job_only_for_an_elastic_hello() -> None:
    """Other jobs are as they were."""
    for elastic, kind in ((pb.Elastic(min=1, max=3), ElasticJob), (None, Job)):
        job, _, refusal = Registry(LIMITS).join(hello(0, elastic=elastic), "peer", 0.0)
        assert refusal is None
        assert type(job) is kind


def test_ranks_agree_on_the_minimum() -> None:
    """The fault shows both sides."""
    job = started([0])
    _, refusal = job.join(hello(1, elastic=pb.Elastic(min=2, max=3)), "peer", 0.0)
    assert isinstance(refusal, DisagreementError)
    assert "rank 0 has 1:3, rank 1 has 2:3" in str(refusal)
    job = started([0])
    _, refusal = job.join(hello(1, elastic=None), "peer", 0.0)
    assert "rank 0 has 1:3, rank 1 has nothing" in str(refusal)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"elastic": pb.Elastic(min=0, max=3)}, "an elastic job of 0 to 3 ranks"),
        ({"elastic": pb.Elastic(min=4, max=3)}, "an elastic job of 4 to 3 ranks"),
        ({"elastic": pb.Elastic(min=1, max=2)}, "an elastic job of 1 to 2 ranks that begins with 3"),
        ({"elastic": pb.Elastic(min=1, max=5000)}, "at most 4096"),
        ({"ranks": [0, 1]}, "2 ranks of an elastic job, with 0 processes and 0 generations"),
        ({"ranks": [0, 1], "incarnations": [5, 0], "generations": [0, 0]}, "expected a process and a generation"),
        ({"losses": [pb.Loss(rank=3)]}, "none of 3"),
    ],
)
def test_a_hello_that_makes_no_sense_is_refused(change: dict[str, Any], text: str) -> None:
    """Each is refused with an error that says what was expected."""
    _, _, refusal = Registry(LIMITS).join(hello(0, **change), "peer", 0.0)
    assert isinstance(refusal, InvalidError)
    assert text in str(refusal)
