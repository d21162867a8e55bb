"""An elastic job of workers, for tests."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from psum.aggregator.core.actions import Action, Deliver, Report, ReturnCredit, Sum, TellLosses
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.v1 import aggregator_pb2 as pb
from psum.wire import PROTOCOL_VERSION, ShardRound
from psum.wire.errors import FaultError
from tests.aggregator.keys import declare

#: The seconds between two ticks of a service.
TICK: Final = 0.25

LIMITS = Limits(round_timeout=600, warn_after=30, elastic_timeout=5, elastic_closed_timeout=1)


def hello(rank: int, **change: Any) -> pb.Hello:
    fields: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "job": "night",
        "rank": rank,
        "num_workers": 3,
        "incarnation": 100 + rank,
        "partition_bytes": 1024,
        "aggregators": ["a:1", "b:1"],
        "worker": f"h{rank} pid 7",
        "elastic": pb.Elastic(min=1, max=3),
    }
    return pb.Hello(**fields | change)


def started(ranks: Iterable[int] = range(3), limits: Limits = LIMITS, **change: Any) -> ElasticJob:
    """A job with these ranks, on an aggregator that was just started."""
    hellos = [hello(rank, **change) for rank in ranks]
    job = ElasticJob(hellos[0], limits)
    for each in hellos:
        assert job.join(each, f"peer {each.rank}", 0.0) == ([], None)
    return job


def push(job: Job, rank: int, round: int = 0, now: float = 1.0) -> list[Action]:
    actions = job.contribute(rank, ShardRound(id=7, round=round, length=4), memoryview(bytes([1 << rank] * 4)), now)
    job.check()
    return actions


def pull(job: Job, rank: int, round: int = 0) -> list[Action]:
    actions = job.contribute(rank, ShardRound(id=7, round=round), None, 1.0)
    job.check()
    return actions


def add_up(job: Job, action: Action) -> Deliver:
    """Makes the sum that an action asks for. Returns the result that follows."""
    assert isinstance(action, Sum)
    result = bytes(map(sum, zip(*action.contributions, strict=True)))
    [deliver] = job.summed(action.key, action.shard, result)
    job.check()
    assert isinstance(deliver, Deliver)
    return deliver


def tick(job: ElasticJob, now: float) -> list[Action]:
    """What follows from the time, but for credit. It passes in steps, in which connected workers send beats."""
    actions: list[Action] = []
    for each in steps(job, now):
        actions += [action for action in job.tick(each) if not isinstance(action, ReturnCredit)]
    job.check()
    return actions


def steps(job: ElasticJob, now: float) -> Iterator[float]:
    """The times until now at which a service ticks, which runs all the while. Connected workers send beats."""
    before = job.members.looked_at
    while before is not None and before + TICK < now:
        before += TICK
        beat(job, before)
        yield before
    beat(job, now)
    yield now


def beat(job: ElasticJob, now: float) -> None:
    """All connected workers are heard."""
    for worker in job.workers.values():
        if worker.connected:
            worker.last_heard = max(now, worker.last_heard)


def silence(job: ElasticJob, rank: int, now: float = 10.0) -> list[Action]:
    """A rank's stream is given up as silent, and the time passes after which the rank is lost."""
    assert job.lost(rank, now) == []
    assert tick(job, now + 4.9) == []
    return tick(job, now + 5.1)


def told(actions: Sequence[Action]) -> list[tuple[list[int], tuple[int, ...]]]:
    """The lost ranks that are told of, with those who are told."""
    return [([loss.rank for loss in a.losses], a.ranks) for a in actions if isinstance(a, TellLosses)]


def loss(rank: int) -> pb.Loss:
    return pb.Loss(rank=rank, text="it vanished elsewhere", seconds_ago=2.0)


def sums(actions: Sequence[Action]) -> list[Sum]:
    return [action for action in actions if isinstance(action, Sum)]


def faults(actions: Sequence[Action]) -> list[FaultError]:
    return [action.fault for action in actions if isinstance(action, Report)]


def begun(**change: Any) -> ElasticJob:
    """A job whose ranks have declared the key."""
    job = started(**change)
    for rank in range(3):
        assert declare(job, rank) == []
    return job
