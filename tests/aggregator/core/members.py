"""A job of workers, and of relays that stand for several ranks each, for tests."""

from collections.abc import Iterable, Iterator
from typing import Any

from psum.aggregator.core.actions import Action, Report
from psum.aggregator.core.budget import Budget
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.v1 import aggregator_pb2 as pb
from psum.wire import PROTOCOL_VERSION
from psum.wire.errors import FaultError
from tests.aggregator.keys import key

LIMITS = Limits(worker_timeout=30, round_timeout=600, warn_after=30)

#: The members of the job in most tests: a worker, a relay, another worker.
MEMBERS = ([0], [1, 2, 3], [4])


def hello(ranks: Iterable[int], **change: Any) -> pb.Hello:
    """The hello of a member that stands for these ranks; of a plain worker, if it is one rank."""
    first, *others = ranks
    fields: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "job": "night",
        "rank": first,
        "ranks": [first, *others] if others else [],
        "num_workers": 5,
        "incarnation": 100 + first,
        "partition_bytes": 1024,
        "aggregators": ["a:1"],
        "worker": f"relay on h{first}" if others else f"h{first} pid 7",
    }
    return pb.Hello(**fields | change)


def started(*hellos: pb.Hello, limits: Limits = LIMITS, budget: Budget | None = None) -> Job:
    """A job that these members have joined, and that has one key."""
    job = Job(hellos[0], limits, budget=budget)
    for each in hellos:
        assert job.join(each, f"peer:{each.rank}", 0.0) == ([], None)
    for each in hellos:
        assert job.declare(each.rank, key(), 0.0) == []
    return job


def faults(actions: Iterable[Action]) -> list[FaultError]:
    return [action.fault for action in actions if isinstance(action, Report)]


def refusal(job: Job, hello: pb.Hello) -> FaultError:
    """Why a hello is refused; the job goes on."""
    actions, refused = job.join(hello, "peer:9", 2.0)
    assert actions == []
    assert refused is not None
    assert job.failure is None
    return refused


def checked_job() -> Iterator[Job]:
    """A job of a worker, a relay and another worker, whose invariants are checked at the end."""
    job = started(*map(hello, MEMBERS))
    yield job
    job.check()
