"""An elastic job with relays at an owner of shards, for tests."""

from typing import Any

from psum.aggregator.core.actions import Action, Report, Sum, TellLosses
from psum.aggregator.core.elastic_job import ElasticJob
from psum.aggregator.core.limits import Limits
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound
from psum.wire.errors import FaultError
from tests.aggregator.core import elastic
from tests.aggregator.keys import declare

LIMITS = Limits(worker_timeout=30, round_timeout=600, warn_after=30, elastic_timeout=5, elastic_closed_timeout=1)
ELASTIC = pb.Elastic(min=1, max=8)


def hello(rank: int, **change: Any) -> pb.Hello:
    """That of a worker."""
    return elastic.hello(rank, **{"num_workers": 4, "elastic": ELASTIC} | change)


def relay(*ranks: int, processes: dict[int, tuple[int, int]] | None = None, **change: Any) -> pb.Hello:
    """That of a relay. The processes are (incarnation, generation) by rank."""
    processes = {rank: (100 + rank, 0) for rank in ranks} | (processes or {})
    ranks = tuple(sorted(processes))
    return hello(
        ranks[0],
        **{
            "ranks": ranks,
            "incarnations": [processes[rank][0] for rank in ranks],
            "generations": [processes[rank][1] for rank in ranks],
            "incarnation": 0,
            "worker": f"relay for {ranks}",
        }
        | change,
    )


def join(job: ElasticJob, each: pb.Hello, now: float = 0.0) -> int:
    """Lets a member in without more ado. Returns its number."""
    actions, refusal = job.join(each, f"peer {each.rank}", now)
    assert (actions, refusal) == ([], None)
    job.check()
    return each.rank


def started(*hellos: pb.Hello) -> tuple[ElasticJob, list[int]]:
    """A job with these members, and their numbers."""
    job = ElasticJob(hellos[0], LIMITS)
    return job, [join(job, each) for each in hellos]


def begun(*hellos: pb.Hello) -> tuple[ElasticJob, list[int]]:
    """The same, with a key that all have declared."""
    job, members = started(*hellos)
    for member in members:
        assert declare(job, member) == []
    return job, members


def two_groups() -> tuple[ElasticJob, int, int]:
    """A job of two relays with two ranks each."""
    job, [one, two] = begun(relay(0, 1), relay(2, 3))
    return job, one, two


def push(
    job: ElasticJob, member: int, round: int = 0, *, of: int = 0, value: int = 1, now: float = 1.0, id: int = 7
) -> list[Action]:
    """A member contributes; a relay the sum of so many ranks."""
    row = ShardRound(id=id, round=round, length=4, contributors=of)
    actions = job.contribute(member, row, memoryview(bytes([value] * 4)), now)
    job.check()
    return actions


def pull(job: ElasticJob, member: int, round: int = 0, *, of: int = 1, id: int = 7) -> list[Action]:
    actions = job.contribute(member, ShardRound(id=id, round=round, contributors=of), None, 1.0)
    job.check()
    return actions


def add_up(job: ElasticJob, actions: list[Action]) -> tuple[bytes, int, tuple[int, ...], int]:
    """Makes the only sum that actions ask for. Returns the result, its count, its receivers and its sender."""
    [action] = [each for each in actions if isinstance(each, Sum)]
    result = bytes(map(sum, zip(*action.contributions, strict=True)))
    [deliver] = job.summed(action.key, action.shard, result)
    job.check()
    return result, deliver.contributors, deliver.ranks, deliver.sender  # type: ignore[union-attr]


def loss(rank: int, generation: int = 0) -> pb.Loss:
    return pb.Loss(rank=rank, text="it vanished at its relay", seconds_ago=1.0, generation=generation)


def told(actions: list[Action]) -> list[tuple[list[int], tuple[int, ...]]]:
    """The lost ranks that are told of, with those who are told."""
    return [([each.rank for each in a.losses], a.ranks) for a in actions if isinstance(a, TellLosses)]


def faults(actions: list[Action]) -> list[FaultError]:
    return [action.fault for action in actions if isinstance(action, Report)]


def join_learning(job: ElasticJob, each: pb.Hello) -> int:
    """Lets a member in that has losses or admissions to tell of. Returns its number."""
    _, refusal = job.join(each, "peer", 0.0)
    assert refusal is None
    job.check()
    return each.rank
