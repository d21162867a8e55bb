"""What the counters count, and for how long they are kept."""

import numpy as np

from psum.aggregator.core.counters import KEEP_SECONDS, AllCounters
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.registry import Registry
from psum.aggregator.core.round import Verdict
from psum.runtime import Histogram
from psum.v1 import aggregator_pb2 as pb
from psum.wire import PROTOCOL_VERSION, ShardRound


def test_jobs_that_ended_are_forgotten_after_some_time() -> None:
    """Until then their last values can be scraped; afterwards they stay in the totals."""
    all_counters = AllCounters()
    all_counters.begin("a").contributed(False, Verdict.COMPLETE, 10, 0.5)
    all_counters.begin("b").contributed(True, Verdict.TAKE, 5, 0.0)
    all_counters.end("a", 100.0)
    all_counters.expire(100.0 + KEEP_SECONDS)
    assert [name for name, _ in all_counters.items()] == ["a", "b"]
    all_counters.expire(100.1 + KEEP_SECONDS)
    assert [name for name, _ in all_counters.items()] == ["b"]
    assert all_counters.totals() == (15, 0)


def test_a_job_that_is_started_again_goes_on_counting() -> None:
    """There is one series for the name, and it does not decrease."""
    all_counters = AllCounters()
    all_counters.begin("a").contributed(False, Verdict.TAKE, 10, 0.0)
    all_counters.end("a", 100.0)
    all_counters.begin("a").contributed(False, Verdict.TAKE, 10, 0.0)
    all_counters.expire(100.0 + 2 * KEEP_SECONDS)
    ((_, counters),) = all_counters.items()
    assert (counters.sum.contributions, counters.sum.received_bytes) == (2, 20)
    all_counters.end("a", 200.0)
    all_counters.expire(201.0 + KEEP_SECONDS)
    assert len(all_counters) == 0


def test_a_job_of_the_registry_is_forgotten_too() -> None:
    """Time alone is enough."""
    registry = fleet_of(1, 2)
    (job,) = registry.jobs.values()
    for rank in range(2):
        job.leave(rank, 5.0)
        job.lost(rank, 5.0)
        registry.settle(job, 5.0)
    list(registry.tick(5.0 + KEEP_SECONDS))
    assert len(registry.counters) == 1
    list(registry.tick(6.0 + KEEP_SECONDS))
    assert len(registry.counters) == 0


def test_however_many_jobs_come_and_go_no_more_is_exported() -> None:
    """For example when a failing program is started again and again under new names."""
    all_counters = AllCounters()
    for number in range(10_000):
        all_counters.begin(f"job-{number}").contributed(False, Verdict.TAKE, 1, 0.0)
        all_counters.end(f"job-{number}", 0.0)
        all_counters.expire(0.0)
    assert len(all_counters) == 100
    assert all_counters.totals() == (10_000, 0)


def test_a_contribution_is_counted_by_what_became_of_it() -> None:
    """Contributions that counted, duplicates, and how long each round waited for its last contribution."""
    counters = AllCounters().begin("a")
    for verdict in Verdict:
        counters.contributed(False, verdict, 1, 0.3)
    assert counters.sum.contributions == 2
    assert counters.duplicates == 3
    assert (counters.sum.waiting.count, counters.sum.waiting.sum) == (1, 0.3)


def test_a_histogram_counts_as_prometheus_does() -> None:
    """Each bucket counts all values up to its bound, including the bound."""
    histogram = Histogram((0.1, 1.0))
    for value in (0.1, 0.11, 1.0, 7.0):
        histogram.observe(value)
    assert histogram.buckets() == [("0.1", 1.0), ("1.0", 3.0), ("+Inf", 4.0)]
    assert (histogram.count, round(histogram.sum, 2)) == (4, 8.21)


def fleet_of(jobs: int, workers: int) -> Registry:
    """Jobs whose workers have all contributed to a round."""
    registry = Registry(Limits())
    value = memoryview(np.ones(8, np.float32).tobytes())
    for number in range(jobs):
        for rank in range(workers):
            hello = pb.Hello(
                protocol_version=PROTOCOL_VERSION,
                job=f"job-{number}",
                rank=rank,
                num_workers=workers,
                incarnation=rank,
                partition_bytes=1 << 20,
                planes=[pb.PLANE_INLINE],
            )
            job, _, refusal = registry.join(hello, "ipv4:127.0.0.1:1", 0.0)
            assert job is not None
            assert refusal is None
            key = pb.Key(id=1, name="w", elements=8, type=pb.ELEMENT_TYPE_FLOAT32, operation=pb.OPERATION_SUM)
            key.shards.add(index=0, elements=8)
            job.declare(rank, key, 0.0)
            job.contribute(rank, ShardRound(id=1, shard=0, round=0), value, 1.0)
    return registry
