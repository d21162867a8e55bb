"""Memory is reserved when keys are declared; a key that does not fit is refused with a reason."""

import tracemalloc

import pytest

from psum.aggregator.core.actions import Report
from psum.aggregator.core.budget import Budget
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import ExhaustedError, ProtocolError, WorkerLostError


def make(name: str, budget: Budget) -> Job:
    job = Job(pb.Hello(job=name, num_workers=2), Limits(worker_timeout=30, round_timeout=600), budget=budget)
    for rank in range(2):
        job.join(pb.Hello(job=name, rank=rank, num_workers=2, incarnation=rank), "peer", 0.0)
    return job


def key(id: int, elements: int) -> pb.Key:
    declared = pb.Key(id=id, name=f"w{id}", elements=elements, type=pb.ELEMENT_TYPE_UINT8, operation=pb.OPERATION_SUM)
    declared.shards.append(pb.Shard(index=0, elements=elements))
    return declared


def test_a_key_that_does_not_fit_fails_in_words_on_every_rank() -> None:
    """Two workers need three times its size; the error says what is needed, what is left, and what to do."""
    job = make("night", Budget(1000))
    assert job.declare(0, key(1, 300), 0.0) == []
    [action] = job.declare(0, key(2, 50), 0.0)
    assert isinstance(action, Report)
    assert isinstance(action.fault, ExhaustedError)
    assert action.ranks == (0, 1)
    assert "needs 150 bytes on this aggregator for key 'w2'" in str(action.fault)
    assert "100 bytes of its memory budget of 1000 are left" in str(action.fault)
    assert job.declare(1, key(2, 50), 0.0) == [Report(action.fault, (1,))]
    assert job.declare(1, key(3, 20), 0.0) == []
    job.check()


def test_jobs_share_the_budget_and_give_it_back_when_they_end() -> None:
    """Another job cannot have what one job has reserved, until that job has ended or failed."""
    budget = Budget(1000)
    one, two = make("one", budget), make("two", budget)
    one.declare(0, key(1, 200), 0.0)
    two.declare(0, key(1, 100), 0.0)
    assert budget.reserved_bytes == 900
    one.end()
    assert budget.reserved_bytes == 300
    two.fail(WorkerLostError("gone"), 1.0)
    two.end()
    assert budget.reserved_bytes == 0


def test_a_key_that_fails_gives_its_share_back_once() -> None:
    """Neither a second failure nor the end of the job releases it again."""
    budget = Budget(1000)
    job = make("night", budget)
    job.declare(0, key(1, 100), 0.0)
    job.abort(0, pb.Abort(id=1, text="no"))
    assert budget.reserved_bytes == 0
    job.abort(0, pb.Abort(id=1, text="no"))
    job.end()
    assert budget.reserved_bytes == 0


@pytest.mark.parametrize("size", [0, 1, 10**15])
def test_without_a_limit_everything_fits(size: int) -> None:
    """0 means no limit."""
    budget = Budget()
    assert budget.reserve(size)
    assert budget.reserved_bytes == size


def test_a_declaration_takes_memory_for_its_shards_and_not_for_each_rank_of_each() -> None:
    """A message of 150 kB that declares 20,000 shards in a job of 4,096 workers does not take hundreds of megabytes."""
    job = Job(pb.Hello(job="night", num_workers=4096), Limits(worker_timeout=30, round_timeout=600))
    job.join(pb.Hello(job="night", num_workers=4096), "peer", 0.0)
    declared = pb.Key(id=1, name="w", elements=20_000, type=pb.ELEMENT_TYPE_UINT8, operation=pb.OPERATION_SUM)
    declared.shards.extend(pb.Shard(index=index, elements=1) for index in range(20_000))
    tracemalloc.start()
    try:
        assert job.declare(0, declared, 0.0) == []
        for index in range(1000):
            job.contribute(0, ShardRound(id=1, shard=index, length=1), memoryview(b"x"), 0.0)
        taken_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken_bytes < 40e6
    job.check()


def test_a_refused_declaration_does_not_count_against_the_number_of_shards() -> None:
    """A declaration that breaks the protocol changes nothing: the key can be declared correctly afterwards."""
    job = Job(pb.Hello(job="night", num_workers=2), Limits(worker_timeout=30, round_timeout=600, max_shards=1))
    job.join(pb.Hello(job="night", num_workers=2), "peer", 0.0)
    with pytest.raises(ProtocolError, match="0 bytes"):
        job.declare(0, key(1, 0), 0.0)
    assert job.declare(0, key(1, 4), 0.0) == []
