"""A job of workers, and of relays that stand for several ranks each."""

import pytest

from psum.aggregator.core.actions import Ask, Deliver, Sum, Sync, Warn
from psum.aggregator.core.budget import Budget
from psum.aggregator.core.job import Job
from psum.aggregator.core.job_status import job_status
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.registry import Registry
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ProtocolError, RoundTimeoutError, WorkerLostError
from tests.aggregator.core.members import LIMITS, MEMBERS, checked_job, faults, hello, started
from tests.aggregator.keys import FOUR, entry, key

job = pytest.fixture(checked_job)


def test_a_round_is_complete_when_each_member_has_contributed(job: Job) -> None:
    """A relay's contribution counts for all its ranks. The order of the sum is that of the members' first ranks."""
    values = {0: memoryview(b"0000"), 1: memoryview(b"1111"), 4: memoryview(b"4444")}
    assert job.contribute(4, entry(), values[4], 1.0) == []
    assert job.contribute(1, entry(), values[1], 1.0) == []
    [action] = job.contribute(0, entry(), values[0], 1.0)
    assert isinstance(action, Sum)
    assert action.contributions == tuple(values.values())
    assert job.held_bytes == 12
    assert job.summed(action.key, 0, "sum") == [Deliver(action.key, 0, 0, 0, "sum", (0, 1, 4))]
    assert job.held_bytes == 4


def test_a_relay_that_stands_for_rank_0_is_the_root_of_a_broadcast() -> None:
    """It pushes the value, and all other members pull it."""
    job = started(hello([0, 1]), hello([2]), hello([3, 4]))
    for first in (0, 2, 3):
        job.declare(first, key(8, broadcast=True), 0.0)
    assert job.contribute(3, entry(id=8), None, 1.0) == []
    assert job.contribute(0, entry(id=8), FOUR, 1.0) == []
    [action] = job.contribute(2, entry(id=8), None, 1.0)
    assert isinstance(action, Sum)
    assert action.contributions == (FOUR,)
    job.check()


def test_no_round_is_complete_before_all_ranks_have_joined() -> None:
    """As many contributions as there are members do not complete it while a rank is missing."""
    job = started(hello([0]), hello([1, 2, 3]))
    assert not job.complete
    for first in (0, 1):
        assert job.contribute(first, entry(), FOUR, 1.0) == []
    assert job.join(hello([4]), "peer:4", 1.0) == ([], None)
    job.check()
    job.declare(4, key(), 1.0)
    [action] = job.contribute(4, entry(), FOUR, 1.0)
    assert isinstance(action, Sum)


def test_a_relay_comes_back_with_the_same_ranks(job: Job) -> None:
    """Its contribution counts once, and its lost result is sent again to it alone."""
    job.contribute(1, entry(), FOUR, 1.0)
    job.lost(1, 2.0)
    assert job.join(hello([1, 2, 3], resuming=True), "peer:8", 3.0) == ([], None)
    assert job.declare(1, key(), 3.0) == []
    assert job.contribute(1, entry(), FOUR, 3.0) == []
    job.contribute(0, entry(), FOUR, 3.0)
    [action] = job.contribute(4, entry(), FOUR, 3.0)
    assert isinstance(action, Sum)
    job.summed(action.key, 0, "sum")
    [again] = job.contribute(1, entry(), FOUR, 4.0)
    assert isinstance(again, Deliver)
    assert again.ranks == (1,)


def test_a_relay_gives_back_a_sum_to_an_aggregator_that_was_started_again() -> None:
    """The relay is asked like a worker, and a worker that lacks the sum gets it."""
    job = Job(hello([0]), LIMITS)
    for ranks in MEMBERS:
        assert job.join(hello(ranks, resuming=True), "peer", 0.0) == ([], None)
    assert job.declare(0, key(round=5), 0.0) == []
    assert job.contribute(0, entry(5), FOUR, 1.0) == []
    assert job.declare(1, key(round=6), 1.0) == [Ask(1, ((7, 0, 5),))]
    [action] = job.restore(1, entry(5), FOUR)
    assert isinstance(action, Sum)
    [delivery] = job.restored(action.key, 0, 5, "sum")
    assert isinstance(delivery, Deliver)
    assert delivery.ranks == (0,)
    job.check()


def test_ranks_of_relays_that_do_not_come_back_are_named() -> None:
    """An aggregator that was started again names all ranks that are missing."""
    job = Job(hello([0], resuming=True), LIMITS)
    job.join(hello([0], resuming=True), "peer", 0.0)
    [fault] = faults(job.tick(31.0))
    assert (type(fault), fault.ranks) == (WorkerLostError, (1, 2, 3, 4))
    assert "ranks 1-4 of job 'night' did not come back" in str(fault)


def test_a_relay_s_round_waits_for_all_its_ranks(job: Job) -> None:
    """Until the relay has said for which ones it waits. A rank that never joined is named by itself."""
    job.contribute(0, entry(), FOUR, 1.0)
    job.workers[1].last_heard = 30.0
    job.workers[4].last_heard = 31.0
    [warning] = [action for action in job.tick(32.0) if isinstance(action, Warn)]
    assert "waits for ranks 1-3 (relay on h1, last heard 2.0 s ago), rank 4 (h4 pid 7, last heard 1.0 s" in warning.text
    assert warning.ranks == (0,)
    job.lacking(1, entry(), [2])
    [fault] = faults(job.tick(700.0))
    assert (type(fault), fault.ranks) == (RoundTimeoutError, (2, 4))
    assert "for rank 2 (relay on h1, last heard 670.0 s ago), rank 4 (h4 pid 7" in str(fault)


def test_what_a_relay_lacks_is_forgotten_with_the_round(job: Job) -> None:
    """It counts for the current round only, and not after the relay has contributed."""
    [shard] = job.keys[7].shards.values()
    job.lacking(1, entry(), [1, 3])
    job.lacking(1, entry(1), [2])
    assert list(shard.waiting_for()) == [0, 1, 3, 4]
    assert shard.missing == 4
    job.lacking(1, entry(), [])
    assert list(shard.waiting_for()) == [0, 1, 2, 3, 4]
    job.lacking(1, entry(), [2])
    job.contribute(1, entry(), FOUR, 1.0)
    job.lacking(1, entry(), [2])
    assert list(shard.waiting_for()) == [0, 4]
    job.contribute(0, entry(), FOUR, 1.0)
    [action] = job.contribute(4, entry(), FOUR, 1.0)
    assert isinstance(action, Sum)
    job.summed(action.key, 0, "sum")
    assert list(shard.waiting_for()) == [0, 1, 2, 3, 4]
    assert shard.lacking is None
    job.lacking(1, entry(1, id=99), [2])


def test_a_relay_speaks_for_its_own_ranks_only(job: Job) -> None:
    """What it says about others breaks the protocol, and changes nothing."""
    with pytest.raises(
        ProtocolError, match="ranks 1-3 of job 'night' waits for ranks 3-4, which it does not stand for"
    ):
        job.lacking(1, entry(), [3, 4])
    with pytest.raises(ProtocolError, match="ranks 1-3 of job 'night' said goodbye for rank 0"):
        job.leave_partly(1, [0])
    assert job.members.departures.left == set()


def test_what_needs_some_ranks_of_a_relay_that_have_left_fails(job: Job) -> None:
    """Rounds to which the relay has contributed go on; others fail and name these ranks. The relay stays."""
    job.declare(0, key(8), 0.0)
    job.declare(1, key(8), 0.0)
    job.contribute(1, entry(), FOUR, 1.0)
    job.contribute(0, entry(), FOUR, 1.0)
    assert job.leave_partly(1, [2, 3]) == []
    [action] = job.contribute(4, entry(), FOUR, 1.0)
    assert isinstance(action, Sum)
    [fault] = faults(job.contribute(0, entry(id=8), FOUR, 2.0))
    assert (type(fault), fault.key, fault.ranks) == (WorkerLostError, 8, (2, 3))
    assert "ranks 2-3 (relay on h1) have left job 'night' without contributing to key 'w' round 0" in str(fault)
    assert not job.workers[1].left
    assert [list(status.ranks) for status in job_status(job, 2.0).workers] == [[], [1, 2, 3], []]


def test_an_open_round_fails_when_ranks_of_a_relay_leave(job: Job) -> None:
    """The round waits for the relay, and cannot be completed any more."""
    job.contribute(0, entry(), FOUR, 1.0)
    [fault] = faults(job.leave_partly(1, [3]))
    assert fault.ranks == (3,)
    assert "rank 3 (relay on h1) has left job" in str(fault)


def test_a_relay_leaves_with_all_its_ranks(job: Job) -> None:
    """All who may lack its sums are asked, by member. The job is over when all members have left."""
    for first in (0, 1):
        job.contribute(first, entry(), FOUR, 1.0)
    [action] = job.contribute(4, entry(), FOUR, 1.0)
    assert isinstance(action, Sum)
    job.summed(action.key, 0, "sum")
    job.leave_partly(1, [1])
    [sync] = job.leave(1, 2.0)
    assert sync == Sync(1, (0, 4), (pb.Departure(ranks=[1, 2, 3], incarnation=101),))
    assert job.members.departures.left == {1, 2, 3}
    for first in (0, 4):
        job.leave(first, 2.0)
    for first in (0, 1, 4):
        job.lost(first, 3.0)
    assert job.over


def test_a_relay_that_vanishes_is_named_by_all_its_ranks_that_have_not_left(job: Job) -> None:
    """After its timeout, the job fails."""
    job.leave_partly(1, [3])
    job.lost(1, 2.0)
    [fault] = faults(job.tick(33.0))
    assert (type(fault), fault.ranks) == (WorkerLostError, (1, 2))
    assert "ranks 1-3 of job 'night', relay on h1 (peer:1), vanished 31.0 s ago" in str(fault)


def test_a_relay_whose_connection_was_closed_is_kept_its_place_until_it_is_started_again() -> None:
    """A worker whose process has ended does not come back, but the workers of a relay wait for its next process."""
    limits = Limits(worker_timeout=30, closed_timeout=3, round_timeout=600, warn_after=600)
    for gone, kept in ((1, 30.0), (4, 3.0)):
        job = started(*map(hello, MEMBERS), limits=limits)
        job.contribute(gone, entry(), FOUR, 1.0)
        job.lost(gone, 2.0, closed=True)
        assert job.tick(2.0 + kept) == []
        [fault] = faults(job.tick(2.1 + kept))
        assert isinstance(fault, WorkerLostError)


def test_workers_that_vanish_together_are_named_together(job: Job) -> None:
    """Their host has failed. One that vanished much later is not to blame: it may have ended because of them."""
    job.lost(4, 2.0)
    job.lost(1, 9.0)
    job.lost(0, 31.0)
    [fault] = faults(job.tick(33.0))
    assert (type(fault), fault.ranks) == (WorkerLostError, (1, 2, 3, 4))
    assert str(fault).startswith(
        "ranks 1-3 (relay on h1 (peer:1)), rank 4 (h4 pid 7 (peer:4)) of job 'night' vanished 31.0 s ago and did not"
        " come back within the worker timeout of 30 s; look into their logs"
    )


def test_the_status_shows_a_relay_s_ranks_and_how_far_it_is_behind(job: Job) -> None:
    """It is one worker with several ranks, and is behind if a round waits for any of them."""
    job.contribute(0, entry(), FOUR, 1.0)
    job.lacking(1, entry(), [3])
    status = job_status(job, 4.0)
    assert [(w.rank, list(w.ranks), w.behind_seconds) for w in status.workers] == [
        (0, [], 0.0),
        (1, [1, 2, 3], 3.0),
        (4, [], 3.0),
    ]
    assert list(status.rounds[0].waiting_for) == [3, 4]


def test_a_failure_that_a_relay_passes_on_is_the_failure_for_all(job: Job) -> None:
    """Its kind, text and ranks stay; ranks that do not exist are left out."""
    reported = RoundTimeoutError("rank 2 is slow", ranks=[2, 77]).to_message()
    [fault] = faults(job.abort(1, pb.Abort(id=7, round=3, fault=reported)))
    assert (type(fault), str(fault), fault.key, fault.round, fault.ranks) == (
        RoundTimeoutError,
        "rank 2 is slow",
        7,
        3,
        (2,),
    )
    job.declare(1, key(8), 0.0)
    [fault] = faults(job.abort(1, pb.Abort(id=8, round=3, text="no")))
    assert fault.ranks == (1, 2, 3)
    assert str(fault) == "ranks 1-3 of job 'night' could not contribute to key 'w' round 3: no"


def test_memory_is_reserved_for_members() -> None:
    """While ranks are missing, each may be a member of its own. What is reserved for too many is returned."""
    budget = Budget(1000)
    job = started(hello([1, 2, 3]), budget=budget)
    assert budget.reserved_bytes == 4 * (1 + 2 + 1)
    job.join(hello([0]), "peer:0", 1.0)
    job.join(hello([4]), "peer:4", 1.0)
    assert budget.reserved_bytes == 4 * (3 + 1)
    job = started(hello([0]), hello([1, 2, 3, 4]), budget=(budget := Budget(1000)))
    assert budget.reserved_bytes == 4 * (2 + 1)
    job.abort(0, pb.Abort(id=7))
    assert budget.reserved_bytes == 0
    job.check()


def test_open_rounds_that_wait_for_a_member_that_is_not_connected_are_not_finished(job: Job) -> None:
    """A draining aggregator accepts no streams."""
    job.contribute(0, entry(), FOUR, 1.0)
    assert job.open_rounds() == [(7, 0, 0)]
    job.lost(1, 1.0)
    assert job.open_rounds() == []


def test_an_ended_job_lists_all_ranks_that_joined() -> None:
    """Also those of relays."""
    registry = Registry(LIMITS)
    for ranks in ([0], [2, 3]):
        assert registry.join(hello(ranks), "peer", 0.0)[2] is None
    job = registry.jobs["night"]
    for first in (0, 2):
        job.leave(first, 1.0)
        job.lost(first, 1.0)
    registry.settle(job, 1.0)
    [ended] = registry.status(1.0, lambda name: True)[1]
    assert list(ended.joined) == [0, 2, 3]


def test_a_late_relay_joins_ranks_that_have_left() -> None:
    """It is told at its first contribution that others have left, as a late worker is."""
    registry = Registry(LIMITS)
    assert registry.join(hello([0]), "peer", 0.0)[2] is None
    job = registry.jobs["night"]
    job.leave(0, 1.0)
    job.lost(0, 1.0)
    registry.settle(job, 1.0)
    late = hello([1, 2, 3], age_seconds=60)
    assert registry.join(late, "peer", 2.0)[2] is None
    job = registry.jobs["night"]
    assert not job.complete
    job.declare(1, key(), 2.0)
    [fault] = faults(job.contribute(1, entry(), FOUR, 2.0))
    assert fault.ranks == (0,)
