"""Credit is returned to those whose contributions wait."""

import time

import pytest

from psum.aggregator.core.actions import ReturnCredit
from psum.aggregator.core.credit import CREDIT_HOLD_SECONDS, LENT_HOLD_SECONDS
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
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
    worker = job.workers[1]
    # Shards that no round waits for.
    worker.credited.update(((7, index), (job.keys[7], 0)) for index in range(1, 100_000))
    begin = time.process_time()
    job.tick(1.0)
    # It would be several seconds if each took the longer, the more were forgotten before it.
    assert time.process_time() - begin < 1.0
    assert not worker.credited


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
