"""Processes that join an elastic job, as its tests make them."""

from collections.abc import Iterable, Sequence
from typing import Any

from psum.aggregator.core.actions import Action, Admit, Refuse, TellCandidates
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.elastic_job import ElasticJob
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import FaultError
from tests.aggregator.core.elastic import hello, started
from tests.aggregator.keys import declare

#: The incarnation of processes that join.
NEW = 900

KEY = 7

ELASTIC = pb.Elastic(min=1, max=5)


def begun(ranks: Iterable[int] = range(3), round: int = 0, **change: Any) -> ElasticJob:
    """A job for up to five ranks, three of which have declared a sum."""
    job = started(ranks, **{"elastic": ELASTIC} | change)
    for rank in ranks:
        declare(job, rank, round)
    return job


def candidate(rank: int, now: float = 20.0, **change: Any) -> Candidate:
    fields: dict[str, Any] = {"incarnation": NEW + rank, "worker": f"new{rank} pid 8", "elastic": ELASTIC}
    return Candidate(hello(rank, joining=True, **fields | change), f"peer of new {rank}", now)


def waits(job: ElasticJob, process: Candidate) -> list[Action]:
    actions, refusal = job.wait(process, process.since)
    assert refusal is None
    job.check()
    return actions


def refused(job: ElasticJob, process: Candidate) -> FaultError:
    _, refusal = job.wait(process, process.since)
    assert refusal is not None
    job.check()
    return refusal


def admission(rank: int, generation: int, round: int = 0, incarnation: int | None = None) -> pb.Admission:
    number = NEW + rank if incarnation is None else incarnation
    return pb.Admission(rank=rank, generation=generation, incarnation=number, ids=[KEY], rounds=[round])


def admit(job: ElasticJob, by: int, what: pb.Admission, now: float = 21.0) -> list[Action]:
    actions = job.admit(by, what, now)
    job.check()
    return actions


def lost(job: ElasticJob, rank: int, generation: int = 0, by: int = 0, now: float = 3.0) -> list[Action]:
    """A rank is lost elsewhere, as another one tells."""
    actions = job.learn_losses(by, [pb.Loss(rank=rank, generation=generation, text="it vanished elsewhere")], now)
    job.check()
    return actions


def joined(job: ElasticJob, rank: int, generation: int, round: int = 0) -> None:
    """A process joins with the help of all members."""
    waits(job, candidate(rank))
    members = job.members.roster.members
    actions = [action for by in members for action in admit(job, by, admission(rank, generation, round))]
    assert [action.candidate.hello.rank for action in actions if isinstance(action, Admit)] == [rank]


def listed(actions: Sequence[Action]) -> list[tuple[list[int], tuple[int, ...]]]:
    """The ranks of candidates that are told of, with those who are told."""
    return [([each.rank for each in a.candidates], a.ranks) for a in actions if isinstance(a, TellCandidates)]


def admitted(actions: Sequence[Action]) -> list[int]:
    return [action.candidate.hello.rank for action in actions if isinstance(action, Admit)]


def refusals(actions: Iterable[Action]) -> list[FaultError]:
    return [action.fault for action in actions if isinstance(action, Refuse)]
