"""A job of two workers, for tests."""

from collections.abc import Iterator, Mapping
from typing import Any

from psum.aggregator.core.actions import Action, Sum
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.v1 import aggregator_pb2 as pb
from tests.aggregator.keys import FOUR, entry, key


def hello(rank: int, change: Mapping[str, Any] | None = None) -> pb.Hello:
    fields: dict[str, Any] = {
        "job": "night",
        "rank": rank,
        "num_workers": 2,
        "partition_bytes": 1024,
        "aggregators": ["a:1"],
        "worker": f"host pid {100 + rank}",
    }
    return pb.Hello(**fields | dict(change or {}))


def run_round(job: Job, round: int) -> list[Action]:
    assert job.contribute(0, entry(round), FOUR, now=1.0) == []
    [action] = job.contribute(1, entry(round), FOUR, now=1.0)
    assert isinstance(action, Sum)
    return job.summed(action.key, action.shard, f"sum {round}")


def declare(job: Job, message: pb.Key | None = None) -> None:
    for rank in job.workers:
        assert job.declare(rank, message or key(), now=0.0) == []


def checked_job() -> Iterator[Job]:
    """A job of two workers, both there, whose invariants are checked at the end."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    for rank in range(2):
        assert job.join(hello(rank), f"peer:{rank}", now=0.0) == ([], None)
    yield job
    job.check()
