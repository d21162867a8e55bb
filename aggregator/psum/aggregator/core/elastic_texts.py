"""The texts of the faults and warnings of elastic jobs: what happened, to whom, and what to do."""

from collections.abc import Sequence
from typing import Final

from psum.aggregator.core.admissions import Admission
from psum.aggregator.core.budget import Budget
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.elastic_roster import ElasticRoster
from psum.aggregator.core.error_texts import either
from psum.aggregator.core.key import Key
from psum.aggregator.core.losses import Loss
from psum.aggregator.core.round import ShardRounds
from psum.aggregator.core.worker import Worker
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ExcludedError, ExhaustedError, InvalidError, RoundTimeoutError, TakenError, WorkerLostError


def aggregator(hello: pb.Hello) -> str:
    """An aggregator, as a worker of the job knows it from this hello."""
    known = hello.aggregator_index < len(hello.aggregators)
    return f"aggregator {hello.aggregators[hello.aggregator_index]}" if known else "an aggregator"


def silent(worker: Worker, here: str, now: float) -> str:
    """Why a worker is lost whose connection is open."""
    return (
        f"{worker} was silent for {now - worker.last_heard:.1f} s, although its connection to {here} is open: it was"
        " stopped or blocked, or its host or network does not work (PSUM_ELASTIC_TIMEOUT)"
    )


def vanished(worker: Worker, here: str, now: float) -> str:
    """Why a worker is lost that is out of touch with an aggregator."""
    how = "was closed" if worker.closed else "was silent"
    return f"{worker} vanished {now - worker.last_heard:.1f} s ago: its connection to {here} {how}, and no other came"


def not_back(timeout: float, here: str) -> str:
    """Why a rank is lost that has not come back to an aggregator that was started again."""
    return f"its process did not come back within {timeout:g} s after {here} was started again"


def replaced(hello: pb.Hello, peer: str) -> str:
    """Why a rank is lost for which another process has come."""
    return f"another process, {hello.worker or 'an unnamed worker'} ({peer}), came in its place"


def began_anew(worker: Worker) -> str:
    """Why a rank is lost whose process begins with the first round, while others go on."""
    return f"{worker} begins with the first round, and the others do not: its earlier process has ended"


def ended_early(worker: Worker, fault: pb.Fault, longest: int) -> str:
    """Why a rank is lost that ends before its work is done."""
    return f"{worker} ended: {fault.text[:longest] or 'it did not say why'}"


def lost(job: str, loss: Loss, roster: ElasticRoster) -> str:
    """A rank is lost, and what that means for the others."""
    left = len(roster.known)
    if roster.too_few:
        then = (
            f"{left} of {roster.size} ranks are left, and rounds need {roster.least} (PSUM_ELASTIC). Rounds wait, and"
            " fail after the round timeout"
        )
    else:
        then = f"the job goes on with {left} of {max(left, roster.size)} ranks"
    return f"rank {loss.rank} of job {job!r} is lost: {loss.text}; {then}"


def all_lost(job: str, roster: ElasticRoster) -> WorkerLostError:
    """No rank is left."""
    ranks = sorted(roster.lost)
    return WorkerLostError(f"all ranks of elastic job {job!r} are lost; start the job again", ranks=ranks)


def all_away(job: str, seconds: float) -> WorkerLostError:
    """A process waits to join a job whose members are all away."""
    return WorkerLostError(
        f"no member of elastic job {job!r} has been connected for {seconds:g} s, so nobody can let another process in;"
        " start the job again"
    )


def excluded(job: str, loss: Loss, now: float, *, ranks: Sequence[int] = ()) -> ExcludedError:
    """A process of a lost rank is told that it is lost.

    Args:
        job: The job's name.
        loss: The loss.
        now: The time.
        ranks: If a relay is told: all its ranks, which are lost.
    """
    who = sorted(ranks) or [loss.rank]
    was, it = either(who, "was", "were"), either(who, "it", "them")
    cannot = either(who, "This process cannot continue, because it lacks", "These processes cannot continue: they lack")
    return ExcludedError(
        f"{rank_names(who)} of elastic job {job!r} {was} excluded {max(0.0, now - loss.at):.1f} s ago: {loss.text}. The"
        f" others go on without {it}. {cannot} what they have done since; start"
        f" {either(who, 'a new process in its place', 'new processes in their places')}",
        ranks=who,
    )


def without(hello: pb.Hello, peer: str) -> str:
    """Why a rank is lost that its relay does not name any more."""
    return f"its relay, {hello.worker or 'an unnamed relay'} ({peer}), came back without it"


def begun_without(job: str, hello: pb.Hello, peer: str, why: str) -> ExcludedError:
    """A process begins with the first round in a rank that takes no part any more, or not yet."""
    return ExcludedError(
        f"rank {hello.rank} of elastic job {job!r} was {why}, and the others go on; refused"
        f" {hello.worker or 'an unnamed worker'} ({peer}), which begins with the first round. It can join the job"
        " (PSUM_JOIN=1), or wait until the job has ended",
        ranks=[hello.rank],
    )


def superseded(job: str, hello: pb.Hello, peer: str, generation: int) -> ExcludedError:
    """A process comes back, or begins, whose rank belongs to a process that was admitted later."""
    return ExcludedError(
        f"rank {hello.rank} of elastic job {job!r} belongs to process {generation} of this rank, which was admitted to"
        f" the job; refused {hello.worker or 'an unnamed worker'} ({peer}), which is process {hello.generation}",
        ranks=[hello.rank],
    )


def not_come(admission: Admission) -> str:
    """Why a rank is lost whose process was admitted, and is not here."""
    return f"its process, number {admission.generation} of this rank, was admitted and did not become a member in time"


def admitted_later(admission: Admission) -> str:
    """Why a process is lost in whose place members have admitted another one."""
    return f"the members have admitted another process, number {admission.generation} of this rank"


def already_lost(job: str, hello: pb.Hello, peer: str) -> ExcludedError:
    """A process asks to join that was a member and is lost."""
    return ExcludedError(
        f"{hello.worker or 'an unnamed worker'} ({peer}) was rank {hello.rank} of elastic job {job!r} and is lost. It"
        " cannot join again as the same process; start a new process in its place",
        ranks=[hello.rank],
    )


def replaced_candidate(job: str, hello: pb.Hello, peer: str) -> TakenError:
    """A process waits to join, and the same worker asks anew."""
    return TakenError(
        f"another process, {hello.worker or 'an unnamed worker'} ({peer}), waits to join elastic job {job!r} as rank"
        f" {hello.rank} in the place of this one",
        ranks=[hello.rank],
    )


def taken_candidate(job: str, waiting: Candidate, hello: pb.Hello, peer: str) -> TakenError:
    """Two processes ask to join as the same rank."""
    return TakenError(
        f"{waiting} waits already to join elastic job {job!r} as rank {hello.rank}; refused"
        f" {hello.worker or 'an unnamed worker'} ({peer}). Give every worker its own PSUM_RANK, and every job its own"
        " PSUM_JOB",
        ranks=[hello.rank],
    )


def no_room(job: str, hello: pb.Hello, peer: str, lack: int, budget: Budget) -> ExhaustedError:
    """There is not enough memory for the contributions of another rank."""
    return ExhaustedError(
        f"{hello.worker or 'an unnamed worker'} ({peer}) cannot join elastic job {job!r} as rank {hello.rank}: its"
        f" contributions need {lack} bytes more than are left of the aggregator's memory budget of"
        f" {budget.limit_bytes} bytes. Give it more (PSUM_MEMORY_BUDGET), or wait for other jobs to end",
        ranks=[hello.rank],
    )


def waits_long(job: str, candidate: Candidate, roster: ElasticRoster, timeout: float, now: float) -> str:
    """A candidate waits for long."""
    if roster.too_few:
        why = f"It cannot: {below_minimum(roster)}"
    else:
        why = (
            "Members admit it when all of them call step() of their ElasticState, and when the process before it in"
            f" this rank is lost or has left. It is refused after {timeout:g} s"
        )
    return (
        f"{candidate} has waited {now - candidate.since:.0f} s to join elastic job {job!r} as rank"
        f" {candidate.hello.rank}. {why}"
    )


def waited_in_vain(job: str, candidate: Candidate, why: str, timeout: float) -> WorkerLostError:
    """A candidate has waited too long."""
    return WorkerLostError(
        f"{candidate} has waited to join elastic job {job!r} as rank {candidate.hello.rank} for longer than the round"
        f" timeout of {timeout:g} s: {why}",
        ranks=[candidate.hello.rank],
    )


IN_ITS_PLACE: Final = "the members have admitted another process of this rank, or do not know the rank yet"
NO_MEMBERS: Final = "no member of this job has come to this aggregator. Start the job's first workers without PSUM_JOIN"
NOT_ADMITTED: Final = (
    "the members have not admitted it. They do so when all of them call step() of their ElasticState; a program that"
    " never does takes in no others"
)


def below_minimum(roster: ElasticRoster) -> str:
    """Why nobody is admitted to a job that has too few members."""
    return (
        f"{len(roster.known)} of {roster.size} ranks are left, and rounds need {roster.least} (PSUM_ELASTIC). So the"
        " members cannot end their step, and processes are admitted between steps. Start the job again from its last"
        " checkpoint, with a lower minimum if fewer workers will do"
    )


def held(holder: Worker) -> str:
    """Why a candidate was not admitted whose rank has a living process."""
    return f"its rank is that of {holder}, which is still there. Give every worker its own PSUM_RANK"


def not_elastic(hello: pb.Hello) -> InvalidError:
    """A process asks to join a job that takes in nobody."""
    return InvalidError(
        f"{hello.worker or 'an unnamed worker'} asks to join job {hello.job!r}, which is not elastic (PSUM_ELASTIC)"
    )


def ended(job: str, candidate: Candidate) -> WorkerLostError:
    """The job has ended while a process waited to join it."""
    return WorkerLostError(
        f"elastic job {job!r} has ended while {candidate} waited to join it as rank {candidate.hello.rank}: all its"
        " members have left",
        ranks=[candidate.hello.rank],
    )


def root_lost(job: str, key: Key, shard: ShardRounds[object], why: str) -> WorkerLostError:
    """The rank is gone whose value a broadcast sends."""
    return WorkerLostError(
        f"rank {key.root} of elastic job {job!r}, whose value key {key.title} round {shard.round} sends to"
        f" {rank_names(sorted(key.ranks))}, {why} before it contributed",
        key=key.id,
        round=shard.round,
        ranks=[key.root],
    )


def too_few(
    job: str, key: Key, shard: ShardRounds[object], roster: ElasticRoster, timeout: float, now: float
) -> RoundTimeoutError:
    """A round has waited longer than the round timeout for more ranks to come."""
    lost = sorted(roster.lost)
    return RoundTimeoutError(
        f"job {job!r} key {key.title} round {shard.round} has waited {now - (shard.since or now):.1f} s, longer than"
        f" the round timeout of {timeout:g} s: {len(roster.known)} of {roster.size} ranks are left, and an elastic job"
        f" that needs {roster.least} (PSUM_ELASTIC) goes on with no fewer. {rank_names(lost).capitalize()}"
        f" {'is' if len(lost) == 1 else 'are'} lost. Start the job again, or allow fewer ranks",
        key=key.id,
        round=shard.round,
        ranks=lost,
    )
