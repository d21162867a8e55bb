"""The texts of the faults and warnings of elastic jobs: what happened, to whom, and what to do."""

from psum.aggregator.core.elastic_roster import ElasticRoster
from psum.aggregator.core.key import Key
from psum.aggregator.core.losses import Loss
from psum.aggregator.core.round import ShardRounds
from psum.aggregator.core.worker import Worker
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ExcludedError, RoundTimeoutError, TakenError, WorkerLostError


def vanished(worker: Worker, now: float) -> str:
    """Why a worker is lost that is out of touch."""
    how = "its connection was closed" if worker.closed else "nothing was heard of it"
    return f"{worker} vanished {now - worker.last_heard:.1f} s ago ({how})"


def silent(worker: Worker, now: float) -> str:
    """Why a worker is lost whose connection is open."""
    return (
        f"{worker} was silent for {now - worker.last_heard:.1f} s, although its connection is open: it was stopped or"
        " blocked, or its host or network does not work (PSUM_ELASTIC_TIMEOUT)"
    )


def not_back(timeout: float) -> str:
    """Why a rank is lost that has not come back to an aggregator that was started again."""
    return f"its process did not come back within {timeout:g} s after an aggregator was started again"


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
        then = f"the job goes on with {left} of {roster.size} ranks"
    return f"rank {loss.rank} of job {job!r} is lost: {loss.text}; {then}"


def all_lost(job: str, roster: ElasticRoster) -> WorkerLostError:
    """No rank is left."""
    ranks = sorted(roster.lost)
    return WorkerLostError(f"all ranks of elastic job {job!r} are lost; start the job again", ranks=ranks)


def excluded(job: str, loss: Loss, now: float) -> ExcludedError:
    """A process of a lost rank is told that it is lost."""
    return ExcludedError(
        f"rank {loss.rank} of elastic job {job!r} was excluded {max(0.0, now - loss.at):.1f} s ago: {loss.text}. The"
        " others go on without it. This process cannot continue, because it lacks what they have done since; start a"
        " new process in its place",
        ranks=[loss.rank],
    )


def occupied(job: str, loss: Loss, hello: pb.Hello, peer: str, now: float) -> TakenError:
    """A new process has come for a lost rank while the others go on."""
    return TakenError(
        f"rank {loss.rank} of elastic job {job!r} was lost {max(0.0, now - loss.at):.1f} s ago ({loss.text}), and the"
        f" others go on without it; refused {hello.worker or 'an unnamed worker'} ({peer}), which begins with the first"
        " round. The rank is free when the job has ended",
        ranks=[loss.rank],
    )


def root_lost(job: str, key: Key, shard: ShardRounds[object], why: str) -> WorkerLostError:
    """The rank is gone whose value a broadcast sends."""
    return WorkerLostError(
        f"rank 0 of elastic job {job!r}, whose value key {key.title} round {shard.round} broadcasts, {why} before it"
        " contributed. Start the job again, or broadcast from a rank that is left",
        key=key.id,
        round=shard.round,
        ranks=[0],
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
