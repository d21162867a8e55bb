"""Relays in an elastic job, as the owners of shards see them: ranks are lost and leave one by one."""

import pytest

from psum.aggregator.core.actions import Release, Sum, TellTiming
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.elastic_roster import FIRST_RELAY
from psum.aggregator.core.registry import Registry
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import ExcludedError, ProtocolError, RoundTimeoutError, TakenError, WorkerLostError
from tests.aggregator.core.owner import (
    LIMITS,
    add_up,
    begun,
    faults,
    hello,
    join,
    join_learning,
    loss,
    push,
    relay,
    told,
    two_groups,
)
from tests.aggregator.keys import declare

# Members and ranks.


def test_a_relay_is_one_member_with_a_number_of_its_own() -> None:
    """Rounds wait for members; results count the ranks that each member's contribution holds."""
    job, one, two = two_groups()
    assert one >= FIRST_RELAY < two
    assert job.members.roster.known == (0, 1, 2, 3)
    assert push(job, two, of=2, value=8) == []
    assert add_up(job, push(job, one, of=2, value=3)) == (bytes([11] * 4), 0, (one, two), -1)
    assert job.members.roster.ranks(one) == (0, 1)


def test_workers_and_groups_are_summed_in_the_order_of_their_first_ranks() -> None:
    """In whatever order they join, so that sums are repeatable."""
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        hellos = [relay(0, 2), hello(1), relay(3)]
        job = ElasticJob(hellos[order[0]], LIMITS)
        members = {place: join(job, hellos[place]) for place in order}
        assert job.members.roster.members == tuple(members[place] for place in range(3))
        for place in order:
            declare(job, members[place])
        push(job, members[2], of=1, value=3)
        push(job, members[1], value=2)
        [action] = push(job, members[0], of=2, value=1)
        assert isinstance(action, Sum)
        assert [bytes(each)[0] for each in action.contributions] == [1, 2, 3]


def test_the_sum_of_a_relay_says_of_how_many_ranks_it_is() -> None:
    """Without that the mean would be wrong; a worker has nothing to say about it."""
    job, one, _ = two_groups()
    with pytest.raises(ProtocolError, match="ranks 0-1 of job 'night' contributed the sum of 0 ranks; expected"):
        push(job, one, of=0)
    with pytest.raises(ProtocolError, match="sum of 9 ranks"):
        push(job, one, of=9)
    job, [_, _, worker] = begun(relay(0, 1), relay(2), hello(3))
    with pytest.raises(ProtocolError, match="rank 3 of job 'night' contributed the sum of 2 ranks"):
        push(job, worker, of=2)


# Losses.


def test_a_relay_goes_on_without_a_rank_that_it_has_lost() -> None:
    """It tells of the loss before the sum without the rank. Others are told, and the result counts who is in it."""
    job, one, two = two_groups()
    assert push(job, two, of=2, value=8) == []
    actions = job.learn_losses(one, [loss(1)], 2.0)
    assert told(actions) == [([1], (two,))]
    assert faults(actions) == []
    assert not [each for each in actions if isinstance(each, Sum)]
    assert add_up(job, push(job, one, of=1, value=1)) == (bytes([9] * 4), 3, (one, two), -1)
    assert job.members.roster.known == (0, 2, 3)
    assert not job.members.is_lost(one)


def test_a_rank_that_was_lost_after_its_contribution_counts() -> None:
    """What a relay has summed before the loss stays in the round, with its count."""
    job, one, two = two_groups()
    assert push(job, one, of=2, value=3) == []
    job.learn_losses(one, [loss(0)], 2.0)
    job.learn_losses(two, [loss(3)], 2.0)
    assert add_up(job, push(job, two, of=1, value=4)) == (bytes([7] * 4), 3, (one, two), -1)


def test_a_relay_is_gone_with_its_last_rank() -> None:
    """A round that waits only for it ends, and it has its farewell: it has told of its losses itself."""
    job, one, two = two_groups()
    push(job, two, of=2, value=8)
    assert told(job.learn_losses(one, [loss(0)], 2.0)) == [([0], (two,))]
    actions = job.learn_losses(one, [loss(1)], 2.0)
    assert told(actions) == [([1], (two,))]
    assert Release(one) in actions
    assert add_up(job, actions) == (bytes([8] * 4), 2, (two,), -1)
    assert job.members.is_lost(one)
    # What it still sends is ignored.
    assert push(job, one, 1, of=1) == []
    assert declare(job, one) == []
    assert job.learn_losses(one, [loss(2)], 2.0) == []
    assert job.leave(one, 2.0) == []


def test_a_relay_is_told_of_the_losses_that_others_tell_of() -> None:
    """It excludes the process of its rank. It is excluded itself only with its last rank."""
    job, one, two = two_groups()
    actions = job.learn_losses(two, [loss(0)], 2.0)
    assert told(actions) == [([0], (one,))]
    assert faults(actions) == []
    actions = job.learn_losses(two, [loss(1)], 3.0)
    [fault] = faults(actions)
    assert isinstance(fault, ExcludedError)
    assert fault.ranks == (0, 1)
    assert "ranks 0-1 of elastic job 'night' were excluded" in str(fault)


def test_a_relay_whose_last_ranks_end_is_lost_at_once() -> None:
    """Its goodbye may name ranks that it has told of before. Another reason ends the job."""
    job, one, two = two_groups()
    push(job, two, of=2, value=8)
    job.learn_losses(one, [loss(0)], 2.0)
    goodbye = pb.Goodbye(fault=WorkerLostError("all have ended", ranks=[0, 1]).to_message())
    actions = job.leave_early(one, goodbye, 3.0)
    assert told(actions) == [([1], (two,))]
    assert faults(actions) == []
    assert Release(one) in actions
    assert add_up(job, actions)[1] == 2
    # Another process was admitted in the rank that it has lost.
    job, one, two = two_groups()
    job.learn_losses(one, [loss(0)], 2.0)
    job.admit(two, pb.Admission(rank=0, generation=1, incarnation=800), 2.0)
    goodbye = pb.Goodbye(fault=WorkerLostError("all have ended", ranks=[0, 1]).to_message())
    assert told(job.leave_early(one, goodbye, 3.0)) == [([1], (two,))]
    assert job.members.roster.known == (0, 2, 3)
    # This aggregator was started again, and has not heard of that loss.
    known = pb.Admission(rank=0, generation=1, incarnation=800)
    first = relay(1, resuming=True, admissions=[known])
    job = ElasticJob(first, LIMITS)
    one = join_learning(job, first)
    two = join_learning(job, relay(2, 3, resuming=True))
    assert told(job.leave_early(one, goodbye, 3.0)) == [([1], (two,))]
    assert job.failure is None
    # It has not told yet that rank 0 has left.
    job, one, two = two_groups()
    goodbye = pb.Goodbye(fault=WorkerLostError("the last one has ended", ranks=[1]).to_message())
    assert told(job.leave_early(one, goodbye, 3.0)) == [([0, 1], (two,))]
    job, one, two = two_groups()
    goodbye = pb.Goodbye(fault=WorkerLostError("one has ended", ranks=[2]).to_message())
    [fault] = faults(job.leave_early(one, goodbye, 3.0))
    assert not isinstance(fault, ExcludedError)
    assert job.failure is not None


def test_the_place_of_a_relay_is_kept_as_in_other_jobs() -> None:
    """Its workers wait until it is started again. Then all its ranks are lost."""
    job, one, two = two_groups()
    push(job, one, of=2)
    push(job, two, of=2)
    job.lost(one, 10.0, closed=True)
    for now in range(10, 41):
        job.workers[two].last_heard = float(now)
        assert told(job.tick(float(now))) == []
    job.workers[two].last_heard = 41.0
    assert told(job.tick(40.5)) == [([0, 1], (two,))]
    assert job.members.is_lost(one)


def test_a_relay_that_is_silent_has_as_long_as_one_whose_stream_was_closed() -> None:
    """Its process may be stopped; its workers live."""
    job, one, two = two_groups()
    for tenth in range(300):
        now = tenth / 10
        job.workers[two].last_heard = now
        assert told(job.tick(now)) == [], now
    for tenth in range(300, 310):
        job.workers[two].last_heard = tenth / 10
        if actions := told(job.tick(tenth / 10)):
            break
    assert actions == [([0, 1], (two,))]
    assert job.members.is_lost(one)


def test_below_the_minimum_rounds_wait_although_all_members_are_there() -> None:
    """Ranks are counted, not members."""
    job = ElasticJob(relay(0, 1, elastic=pb.Elastic(min=4, max=4)), LIMITS)
    members = [join(job, relay(*ranks, elastic=pb.Elastic(min=4, max=4))) for ranks in ((0, 1), (2, 3))]
    one, two = members
    for member in members:
        declare(job, member)
    job.learn_losses(one, [loss(1)], 1.0)
    assert push(job, one, of=1) == []
    assert push(job, two, of=2) == []
    job.workers[one].last_heard = job.workers[two].last_heard = 700.0
    [fault] = [each for each in faults(job.tick(700.0)) if isinstance(each, RoundTimeoutError)]
    assert "3 of 4 ranks are left" in str(fault)


# Leaving.


def test_a_rank_that_leaves_in_good_order_is_waited_for_no_more() -> None:
    """Its relay goes on with the others; when it leaves too, all its ranks have left."""
    job, one, two = two_groups()
    job.leave_partly(one, [1])
    assert job.members.roster.known == (0, 2, 3)
    assert push(job, two, of=2, value=8) == []
    assert add_up(job, push(job, one, of=1))[:3] == (bytes([9] * 4), 3, (one, two))
    # A goodbye that is said again, or after a loss, changes nothing.
    job.learn_losses(two, [loss(3)], 2.0)
    job.leave_partly(two, [3])
    job.leave_partly(one, [1])
    job.leave(one, 3.0)
    assert list(job.members.roster.known) == [2]
    assert [(list(each.ranks), each.incarnation) for each in job.departures()] == [([0], 100), ([1], 101)]
    job.synced(two, one, 3.0)
    job.leave(two, 4.0)
    job.lost(one, 4.0)
    job.lost(two, 4.0)
    job.tick(10.0)
    assert job.over


def test_a_relay_says_goodbye_for_a_rank_that_a_restarted_owner_has_not_seen() -> None:
    """Its hello did not name the rank any more. The rank of another member is none of its business."""
    job = ElasticJob(relay(0, resuming=True), LIMITS)
    one = join_learning(job, relay(0, resuming=True))
    join_learning(job, relay(2, 3, resuming=True))
    job.leave_partly(one, [1])
    assert job.members.roster.left == {1}
    assert job.members.roster.complete
    with pytest.raises(ProtocolError, match="rank 0 of job 'night' said goodbye for rank 2"):
        job.leave_partly(one, [2])


@pytest.mark.parametrize("here", [False, True])
def test_a_relay_repeats_the_goodbye_of_a_rank_that_was_admitted_elsewhere(here: bool) -> None:
    """The relay was started again, and a worker has told it of the departure. The present process goes on."""
    job, one, two = two_groups()
    job.leave_partly(one, [0])
    for member in (one, two):
        job.admit(member, pb.Admission(rank=0, generation=1, incarnation=800), 2.0)
    if here:
        join(job, hello(0, incarnation=800, generation=1, resuming=True), 2.0)
    assert job.leave_partly(one, [0]) == []
    assert job.members.roster.left == set()
    assert job.members.roster.known == (0, 1, 2, 3)


def test_the_generation_of_one_that_has_left_is_that_of_its_admission() -> None:
    """It may come back to repeat its goodbye, and is not taken for a later process then."""
    known = [pb.Admission(rank=0, generation=1, incarnation=800), pb.Admission(rank=1, generation=2, incarnation=801)]
    gone = [pb.Departure(ranks=[1], incarnation=801), pb.Departure(ranks=[2], incarnation=102)]
    first = hello(0, incarnation=800, generation=1, resuming=True, admissions=known, departures=gone)
    job = ElasticJob(first, LIMITS)
    join_learning(job, first)
    assert (job.workers[1].hello.generation, job.workers[2].hello.generation) == (2, 0)


def test_too_few_ranks_after_a_goodbye_fail_what_waits() -> None:
    """Nobody replaces those that leave; the text names the ranks that have left."""
    elastic = pb.Elastic(min=3, max=4)
    job, [one, two] = begun(relay(0, 1, elastic=elastic), relay(2, 3, elastic=elastic))
    job.leave_partly(one, [1])
    push(job, two, of=2)
    [fault] = faults(job.leave_partly(one, [0]))
    assert isinstance(fault, WorkerLostError)
    assert sorted(fault.ranks) == [0, 1]


# What people see.


def test_the_status_has_relays_with_their_ranks() -> None:
    """A row has the first rank, not the member's number; a relay is lost with all its ranks."""
    registry = Registry(LIMITS)
    for each in (relay(0, 1), relay(2, 3)):
        job, _, refusal = registry.join(each, "peer", 0.0)
        assert refusal is None
    assert isinstance(job, ElasticJob)
    [status], _ = registry.status(1.0, lambda name: True)
    assert [(row.rank, list(row.ranks), row.lost) for row in status.workers] == [
        (0, [0, 1], False),
        (2, [2, 3], False),
    ]
    two = job.members.roster.member(2)
    assert two is not None
    job.learn_losses(two, [loss(0)], 1.0)
    [status], _ = registry.status(1.0, lambda name: True)
    assert [(row.rank, list(row.ranks), row.lost) for row in status.workers] == [(1, [1], False), (2, [2, 3], False)]
    assert (status.elastic.members, list(status.elastic.lost)) == (3, [0])
    job.learn_losses(two, [loss(1)], 1.0)
    [status], _ = registry.status(1.0, lambda name: True)
    assert [(list(row.ranks), row.lost) for row in status.workers] == [([1], True), ([2, 3], False)]


def test_timings_name_a_rank() -> None:
    """A relay's number means nothing to others."""
    job, one, two = two_groups()
    for member in (one, two):
        row = ShardRound(id=7, round=0, length=4, contributors=2, timed=True)
        actions = job.contribute(member, row, memoryview(bytes(4)), 1.0)
    [action] = actions
    assert isinstance(action, Sum)
    [timing, _] = job.summed(action.key, action.shard, b"sum.")
    assert isinstance(timing, TellTiming)
    assert (timing.last_rank, sorted(timing.waiting)) == (2, [one, two])


def test_rounds_name_the_ranks_that_a_relay_waits_for() -> None:
    """What it says of ranks that are lost by now does not matter."""
    job, one, two = two_groups()
    push(job, two, of=2)
    job.lacking(one, ShardRound(id=7, round=0), [1])
    shard = job.keys[7].shards[0]
    assert list(shard.waiting_for()) == [1]
    job.learn_losses(two, [loss(0)], 1.0)
    job.lacking(one, ShardRound(id=7, round=0), [0, 1])
    assert list(shard.waiting_for()) == [1]
    with pytest.raises(ProtocolError, match="does not stand for"):
        job.lacking(one, ShardRound(id=7, round=0), [2])


def test_a_relay_whose_job_has_ended_is_told_so() -> None:
    """It is known by the processes behind it."""
    registry = Registry(LIMITS)
    first = relay(0, 1, num_workers=2)
    job, _, _ = registry.join(first, "peer", 0.0)
    assert job is not None
    job.leave(first.rank, 1.0)
    job.lost(first.rank, 1.0)
    registry.settle(job, 1.0)
    _, _, refusal = registry.join(relay(0, 1, num_workers=2, resuming=True), "peer", 2.0)
    assert isinstance(refusal, TakenError)
    assert "ranks 0-1" in str(refusal)
