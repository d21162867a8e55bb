"""A job on an aggregator that was started again, to which three workers come back, for tests."""

from psum.aggregator.core.actions import Action, Sum, Sync
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.v1 import aggregator_pb2 as pb
from tests.aggregator.keys import FOUR, entry


def hello(rank: int, *, incarnation: int | None = None, resuming: bool = True) -> pb.Hello:
    return pb.Hello(
        job="night",
        rank=rank,
        num_workers=3,
        incarnation=100 + rank if incarnation is None else incarnation,
        resuming=resuming,
    )


def returned() -> Job:
    """A job on an aggregator that was just started again, to which three workers have come back."""
    job = Job(hello(0), Limits(worker_timeout=30, round_timeout=600))
    for rank in range(3):
        assert job.join(hello(rank), "peer", 0.0) == ([], None)
    return job


def sync(leaving: int, *others: int) -> Sync:
    """What the others are asked when a rank leaves."""
    return Sync(leaving, others, (pb.Departure(ranks=[leaving], incarnation=100 + leaving),))


def push(job: Job, rank: int, round: int) -> list[Action]:
    actions = job.contribute(rank, entry(round), FOUR, 1.0)
    job.check()
    return actions


def give_back(job: Job, rank: int, round: int) -> list[Action]:
    """A rank gives back a sum, and the shell makes a message of it."""
    [action] = job.restore(rank, entry(round), FOUR)
    assert isinstance(action, Sum)
    assert action.restored
    actions = job.restored(action.key, 0, round, "sum")
    job.check()
    return actions
