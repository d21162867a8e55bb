"""A job turns contributions into sums and deliveries, and says whom a round waits for."""

import pytest

from psum.aggregator.core.actions import Deliver, Report, Sum
from psum.aggregator.core.job import Job
from psum.aggregator.core.job_status import job_status
from psum.aggregator.core.limits import Limits
from psum.wire import ShardRound
from psum.wire.errors import ProtocolError, RoundTimeoutError, WorkerLostError
from tests.aggregator.core.two_workers import checked_job, declare, hello, run_round
from tests.aggregator.keys import FOUR, entry, key

job = pytest.fixture(checked_job)


def test_a_round_is_summed_in_rank_order_and_delivered_to_all(job: Job) -> None:
    """The sum gets the contributions in rank order, whichever comes first, and the highest priority."""
    declare(job)
    one, two = memoryview(b"1111"), memoryview(b"2222")
    assert job.contribute(1, entry(priority=-3), two, now=1.0) == []
    [action] = job.contribute(0, entry(priority=-5), one, now=1.0)
    assert isinstance(action, Sum)
    assert (action.contributions, action.priority) == ((one, two), -3)
    assert job.summed(action.key, 0, "sum") == [Deliver(action.key, 0, 0, -3, "sum", (0, 1))]
    job.check()


def test_rounds_follow_each_other_and_hold_one_result(job: Job) -> None:
    """The held bytes do not grow with the rounds."""
    declare(job)
    for round in range(5):
        run_round(job, round)
        assert job.held_bytes == 4
        job.check()
    assert job.rounds.completed == 5


def test_a_broadcast_delivers_the_roots_value_when_all_take_part(job: Job) -> None:
    """Rank 0 pushes, the others pull; the value is delivered when every rank has asked."""
    declare(job, key(broadcast=True))
    assert job.contribute(1, entry(length=0), None, now=1.0) == []
    [action] = job.contribute(0, entry(), FOUR, now=1.0)
    assert isinstance(action, Sum)
    assert action.contributions == (FOUR,)


@pytest.mark.parametrize(("rank", "payload"), [(0, None), (1, FOUR)], ids=["the root pulls", "another rank pushes"])
def test_the_wrong_part_in_a_broadcast_breaks_the_protocol(job: Job, rank: int, payload: memoryview | None) -> None:
    """Only rank 0 may push, and all others may only pull."""
    declare(job, key(broadcast=True))
    with pytest.raises(ProtocolError, match=f"rank {rank} contributed"):
        job.contribute(rank, entry(), payload, now=1.0)


def test_a_lost_result_is_delivered_again_to_whom_lacks_it(job: Job) -> None:
    """A contribution to the round before is answered with the kept result."""
    declare(job)
    run_round(job, 0)
    [action] = job.contribute(1, entry(0), FOUR, now=2.0)
    assert isinstance(action, Deliver)
    assert (action.result, action.ranks) == ("sum 0", (1,))


def test_a_round_that_waits_too_long_names_whom_it_waits_for(job: Job) -> None:
    """After round_timeout the key fails on every rank, naming key, round, rank and time."""
    declare(job)
    job.contribute(0, entry(), FOUR, now=1.0)
    assert not any(isinstance(a, Report) for a in job.tick(601.0))
    [action] = job.tick(602.0)
    assert isinstance(action, Report)
    assert isinstance(action.fault, RoundTimeoutError)
    assert "key 'w' round 0 has waited 601.0 s for rank 1 (host pid 101, last heard" in str(action.fault)


def test_a_rank_that_never_joined_is_said_to() -> None:
    """A timeout tells a slow rank from one that never joined."""
    lonely = Job(hello(0), Limits(worker_timeout=30, round_timeout=1))
    lonely.join(hello(0), "peer", now=0.0)
    lonely.declare(0, key(), now=0.0)
    lonely.contribute(0, entry(), FOUR, now=0.0)
    *_, action = lonely.tick(2.0)
    assert "rank 1 (never joined)" in str(action.fault if isinstance(action, Report) else "")


def test_what_still_needs_a_worker_that_left_fails_at_once(job: Job) -> None:
    """A rank that waits for one that said goodbye gets an error, now and on later contributions."""
    declare(job)
    declare(job, key(id=8))
    job.contribute(0, entry(), FOUR, now=1.0)
    action, *_ = job.leave(1, now=2.0)
    assert isinstance(action, Report)
    assert isinstance(action.fault, WorkerLostError)
    assert "rank 1 (host pid 101) has left job 'night' without contributing to key 'w' round 0" in str(action.fault)
    [action] = job.contribute(0, entry(id=8), FOUR, now=2.0)
    assert isinstance(action, Report)
    assert action.fault.key == 8


def test_a_worker_that_left_does_not_disturb_what_it_contributed_to(job: Job) -> None:
    """Its last contributions still count."""
    declare(job)
    job.contribute(1, entry(), FOUR, now=1.0)
    assert not any(isinstance(a, Report) for a in job.leave(1, now=2.0))
    [action] = job.contribute(0, entry(), FOUR, now=2.0)
    assert isinstance(action, Sum)
    job.summed(action.key, 0, "sum")
    assert not job.over
    job.leave(0, now=2.0)
    job.lost(0, 1.0)
    job.lost(1, 1.0)
    assert job.over


def test_a_sum_that_comes_after_the_job_failed_is_dropped(job: Job) -> None:
    """A sum that is finished after the job ended is dropped."""
    declare(job)
    job.contribute(0, entry(), FOUR, now=1.0)
    [action] = job.contribute(1, entry(), FOUR, now=1.0)
    assert isinstance(action, Sum)
    job.fail(WorkerLostError("gone"), now=1.0)
    assert job.summed(action.key, 0, "sum") == []


@pytest.mark.parametrize(
    ("wrong", "payload", "complaint"),
    [
        (entry(id=99), FOUR, "key id 0x63, which it has not declared"),
        (entry(shard=5), FOUR, "shard 5 of key 'w', which is none"),
        (entry(), memoryview(b"abc"), "3 bytes to shard 0 of key 'w'; expected 4"),
        (entry(), None, "nothing to shard 0"),
        (entry(round=1), FOUR, "round 1 of key 'w' shard 0, which is at round 0"),
    ],
)
def test_contributions_that_cannot_be_meant_break_the_protocol(
    job: Job, wrong: ShardRound, payload: memoryview | None, complaint: str
) -> None:
    """Unknown keys and shards, wrong sizes and wrong rounds end the sender's stream and change nothing."""
    declare(job)
    with pytest.raises(ProtocolError, match=complaint):
        job.contribute(0, wrong, payload, now=1.0)
    assert job.held_bytes == 0


def test_the_status_says_whom_a_round_waits_for(job: Job) -> None:
    """The status lists workers, and the rounds in progress with their missing ranks."""
    declare(job)
    job.contribute(1, entry(), FOUR, now=1.0)
    status = job_status(job, now=4.0)
    assert [(w.rank, w.connected, w.peer) for w in status.workers] == [(0, True, "peer:0"), (1, True, "peer:1")]
    [round] = status.rounds
    assert (round.key, round.round, round.waiting_seconds, list(round.waiting_for)) == ("w", 0, 3.0, [0])
    assert (status.rounds_waiting, status.held_bytes, status.keys) == (1, 4, 1)
