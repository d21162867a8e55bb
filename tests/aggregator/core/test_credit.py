"""Credit is returned to those whose contributions wait."""

import time

import pytest

from psum.aggregator.core.actions import ReturnCredit
from psum.aggregator.core.credit import CREDIT_HOLD_SECONDS, LENT_HOLD_SECONDS
from psum.aggregator.core.held import Held
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.wire import ShardRound, to_columns
from tests.aggregator.core.two_workers import checked_job, declare, hello, run_round
from tests.aggregator.keys import FOUR, entry, key

job = pytest.fixture(checked_job)


def test_credit_is_returned_for_contributions_that_wait(job: Job) -> None:
    """A round that waits for another rank returns its contributor's credit soon, and only once."""
    declare(job)
    job.contribute(1, entry(), FOUR, now=1.0)
    assert job.credit.pending
    assert job.tick(1.0 + CREDIT_HOLD_SECONDS / 2) == []
    assert job.tick(1.0 + CREDIT_HOLD_SECONDS * 2) == [ReturnCredit(1, ((7, 0, 0),))]
    assert job.tick(2.0) == []
    assert not job.credit.pending


def test_contributions_that_wait_no_more_are_forgotten_quickly(job: Job) -> None:
    """A job with many keys has the credit of thousands returned in each step. Each is forgotten in the same time."""
    declare(job)
    worker, shard = job.workers[1], job.keys[7].shards[0]
    shard.round = 100_001
    # Rounds that are over.
    for round in range(100_000):
        worker.credited.add(1, Held.one(1.0, job.keys[7], 0, shard, round))
    begin = time.process_time()
    job.tick(1.0)
    # It would be several seconds if each took the longer, the more were forgotten before it.
    assert time.process_time() - begin < 1.0
    assert not len(worker.credited)


def test_what_is_over_is_forgotten_although_the_oldest_contribution_waits_for_ever(job: Job) -> None:
    """A worker may wait for a key that nobody else uses, and sum others for days."""
    declare(job, key(id=8))
    declare(job)
    job.contribute(1, entry(id=8), FOUR, now=1.0)
    now = 1.0
    for round in range(3000):
        now += 0.1
        job.contribute(1, entry(round=round), FOUR, now=now)
        job.tick(now + CREDIT_HOLD_SECONDS)
        job.contribute(0, entry(round=round), FOUR, now=now)
        job.summed(job.keys[7], 0, FOUR)
    credited = job.workers[1].credited
    assert 0 < len(credited) < 1500
    assert credited.waits(1), "the oldest one still waits"
    job.contribute(0, entry(id=8), FOUR, now=now)
    job.summed(job.keys[8], 0, FOUR)
    assert not credited.waits(1)
    job.check()


def test_some_of_the_contributions_that_came_together_wait_on(job: Job) -> None:
    """Credit is returned for those only, in their order."""
    for id in (7, 8, 9):
        declare(job, key(id=id))
    rows = [ShardRound(id, length=4) for id in (7, 8, 9)]
    job.contribute_together(1, to_columns(rows), memoryview(bytes(12)), 1.0, 20, [])
    job.contribute(0, entry(id=8), FOUR, now=1.0)
    assert job.tick(1.0 + CREDIT_HOLD_SECONDS) == [ReturnCredit(1, ((7, 0, 0), (9, 0, 0)))]
    job.summed(job.keys[8], 0, FOUR)
    assert len(job.workers[1].credited) == 2
    job.check()


def lending(size: int) -> Job:
    """A job of ranks that all contribute from memory that they lend, to five keys."""
    job = Job(hello(0, {"num_workers": size}), Limits(), lent=lambda payload: isinstance(payload.obj, bytearray))
    for rank in range(size):
        assert job.join(hello(rank, {"num_workers": size}), "peer", 0.0) == ([], None)
    for id in range(5):
        declare(job, key(id=id))
    return job


def lend(job: Job, rank: int, id: int, now: float) -> None:
    job.contribute(rank, entry(id=id), memoryview(bytearray(4)), now)


def test_lent_memory_is_not_copied_while_a_rank_is_merely_late() -> None:
    """The late rank will contribute: it waits for nobody. The credit of what waits for too long is returned."""
    job = lending(3)
    for rank in range(2):
        lend(job, rank, 0, 1.0)
    held = job.keys[0].shards[0].contributions
    assert job.tick(1.0 + LENT_HOLD_SECONDS / 2) == []
    assert [type(held[rank].obj) for rank in range(2)] == [bytearray, bytearray]
    assert job.credit.pending
    assert job.tick(1.1 + LENT_HOLD_SECONDS) == [ReturnCredit(rank, ((0, 0, 0),)) for rank in range(2)]
    assert [type(held[rank].obj) for rank in range(2)] == [bytes, bytes]
    assert not job.credit.pending


def test_lent_memory_is_held_while_a_rank_has_not_joined() -> None:
    """That one cannot wait for anything."""
    job = Job(hello(0), Limits(), lent=lambda _: True)
    job.join(hello(0), "peer", 0.0)
    declare(job)
    job.contribute(0, entry(), FOUR, now=1.0)
    assert job.tick(1.0 + 2 * CREDIT_HOLD_SECONDS) == []


def test_ranks_that_wait_for_each_other_get_their_credit_soon() -> None:
    """They have pushed different keys first. They wait even if their credit is back already."""
    job = lending(2)
    lend(job, 0, 0, 1.0)
    assert job.tick(1.02) == []
    lend(job, 1, 1, 1.02)
    assert job.tick(1.04) == [ReturnCredit(0, ((0, 0, 0),)), ReturnCredit(1, ((1, 0, 0),))]
    lend(job, 1, 2, 1.05)
    assert job.tick(1.07) == [ReturnCredit(1, ((2, 0, 0),))]
    # Rank 0 does not wait any more, so it is merely late for what rank 1 pushes next.
    lend(job, 0, 1, 1.08)
    lend(job, 1, 0, 1.08)
    for id in range(2):
        job.summed(job.keys[id], 0, FOUR)
    lend(job, 1, 3, 1.1)
    assert job.tick(1.12) == []
    job.check()


def test_credit_of_completed_rounds_is_returned_by_their_results(job: Job) -> None:
    """Credit is not returned separately for a contribution whose result is being sent."""
    declare(job)
    run_round(job, 0)
    assert job.tick(5.0) == []
