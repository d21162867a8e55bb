"""What a job tells its workers when something fails: what happened, to whom, what was expected, what to do."""

import itertools
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from psum.aggregator.core import agreement
from psum.aggregator.core.key import Key
from psum.aggregator.core.round import ShardRounds
from psum.aggregator.core.worker import Worker
from psum.v1 import aggregator_pb2 as pb
from psum.wire import titled
from psum.wire.errors import (
    AbortedError,
    DisagreementError,
    ExhaustedError,
    FaultError,
    RoundTimeoutError,
    TakenError,
    WorkerLostError,
)

if TYPE_CHECKING:
    from psum.aggregator.core.job import Job

#: How many of the ranks that a round waits for are named.
_MAX_NAMED = 8

#: How many of the rounds that wait are looked at for one that a rank has contributed to.
_MAX_LOOKED_AT = 64

_NUM_WORKERS, _PARTITION_BYTES = map(attrgetter, ("num_workers", "partition_bytes"))

#: How much is told of the reason that a rank gives, in characters.
_MAX_REASON = 4096


#: What the ranks of a job must agree on: what it is called, what a rank says of it, and what that means.
_AGREED: Final[Sequence[tuple[str, Callable[[pb.Hello], object], Callable[[pb.Hello], object]]]] = (
    ("the number of workers (PSUM_NUM_WORKERS)", _NUM_WORKERS, _NUM_WORKERS),
    ("the partition size (PSUM_PARTITION_BYTES)", _PARTITION_BYTES, _PARTITION_BYTES),
    ("the list of aggregators (PSUM_AGGREGATORS)", lambda hello: list(hello.aggregators), agreement.aggregators),
    ("the weights of the aggregators", lambda hello: list(hello.weights), agreement.weights),
)


def disagreement(job: "Job", hello: pb.Hello, peer: str) -> DisagreementError | None:
    """What is wrong where a worker's settings are not those of the first, None where they are."""
    first = job.first
    same_fleet = agreement.aggregators(first) == agreement.aggregators(hello)
    if same_fleet and first.aggregator_index != hello.aggregator_index:
        return _listed_twice(job, hello)
    differences = [
        f"{what}: rank {first.rank} has {said(first)}, rank {hello.rank} has {said(hello)}"
        for what, said, meant in _AGREED
        if meant(first) != meant(hello)
    ]
    if not differences:
        return None
    one = job.workers.get(first.rank)
    return DisagreementError(
        f"ranks of job {job.name!r} disagree on " + "; on ".join(differences) + f". Rank {first.rank} is"
        f" {one or first.worker}, rank {hello.rank} is {hello.worker} ({peer})."
        " Give all workers of a job the same settings, and every job its own PSUM_JOB",
        ranks=sorted({first.rank, hello.rank}),
    )


def _listed_twice(job: "Job", hello: pb.Hello) -> DisagreementError:
    """Workers come to this one aggregator for two places of their list."""
    first, names = job.first, list(hello.aggregators)

    def address(place: int) -> str:
        return names[place] if place < len(names) else f"place {place} of {names}"

    whose = f"rank {first.rank} of job {job.name!r} came by the first, rank {hello.rank} by the second"
    if first.rank == hello.rank:
        whose = f"rank {first.rank} of job {job.name!r} came by both"
    return DisagreementError(
        f"{address(first.aggregator_index)} and {address(hello.aggregator_index)} of PSUM_AGGREGATORS lead to one and"
        f" the same aggregator: {whose}. List each aggregator once, by one address that leads to it alone",
        ranks=sorted({first.rank, hello.rank}),
    )


def taken(job: "Job", holder: Worker, hello: pb.Hello, peer: str, now: float) -> TakenError:
    """A second process claims a rank."""
    if holder.left:
        state = "which has left it"
    elif holder.connected:
        state = f"connected {now - holder.joined:.1f} s ago"
    else:
        state = f"which vanished {now - holder.last_heard:.1f} s ago"
    what_to_do = (
        "Either that process is still ending, and this rank is free when it has ended; or both have the same rank for"
        " good: then give every worker its own PSUM_RANK, and every job its own PSUM_JOB"
    )
    if hello.resuming:
        what_to_do = "It was replaced while it could not be reached"
    return TakenError(
        f"rank {hello.rank} of job {job.name!r} is taken by {holder}, {state};"
        f" refused {hello.worker or 'an unnamed worker'} ({peer}). {what_to_do}",
        ranks=[hello.rank],
    )


def replaced(job: "Job", holder: Worker, hello: pb.Hello, peer: str, now: float) -> WorkerLostError:
    """Another process has come in the place of a worker that vanished."""
    return WorkerLostError(
        f"rank {hello.rank} of job {job.name!r}, {holder}, vanished {now - holder.last_heard:.1f} s ago, and another"
        f" process, {hello.worker or 'an unnamed worker'} ({peer}), has come in its place. That one begins at the"
        " beginning, so the job ends here; start all workers again",
        ranks=[hello.rank],
    )


def still_ending(job: "Job", holder: Worker, hello: pb.Hello, peer: str) -> TakenError:
    """The job has failed, and a worker has come for the next run, while others of this one are still there."""
    there = [f"rank {rank} ({worker})" for rank, worker in job.workers.items() if worker.connected]
    still = f"; still connected: {', '.join(there[:_MAX_NAMED])}" if there else ""
    return TakenError(
        f"job {job.name!r}, in which rank {hello.rank} was {holder}, has failed and is still ending{still}. Refused"
        f" {hello.worker or 'an unnamed worker'} ({peer}), which can join its next run when all of them have ended",
        ranks=[hello.rank],
    )


def begun_without(job: "Job", hello: pb.Hello, peer: str) -> TakenError:
    """A process that was not in the job before comes to one whose ranks have all taken part in some round."""
    return TakenError(
        f"rank {hello.rank} of job {job.name!r} has taken part in it as another process; refused"
        f" {hello.worker or 'an unnamed worker'} ({peer}), which begins at the beginning."
        " Start all workers again, or give this one another PSUM_JOB",
        ranks=[hello.rank],
    )


def started_again(job: "Job", ranks: Sequence[int]) -> DisagreementError:
    """Processes are in the job that were not in it when all ranks took part in some round."""
    who = ", ".join(f"rank {r} ({job.workers[r].hello.worker or 'an unnamed worker'})" for r in ranks)
    return DisagreementError(
        f"{who} has begun job {job.name!r} at the beginning, others have sums of it already: was a worker started again"
        " in the midst of the job? Start all workers again",
        ranks=ranks,
    )


def exhausted(job: "Job", key: Key, need: int) -> ExhaustedError:
    """There is no memory for a key."""
    return ExhaustedError(
        f"job {job.name!r} needs {need} bytes on this aggregator for key {key.title}, {key.describe(key.declared)},"
        f" of {job.num_workers} workers; of its memory budget of {job.budget.limit_bytes} bytes"
        f" {job.budget.free_bytes} are"
        " left. Give it more (--memory-budget), add aggregators, or wait for other jobs to end",
        key=key.id,
    )


def too_many_shards(job: "Job", declared: pb.Key, shards: int) -> ExhaustedError:
    """There is no place for another key."""
    return ExhaustedError(
        f"job {job.name!r} has {len(job.keys)} keys on this aggregator; with key"
        f" {titled(declared.name, declared.label)} they have {shards} shards, and may have {job.max_shards}"
        " (max_shards). Are new keys made in every step, or is PSUM_PARTITION_BYTES very small?"
    )


def out_of_step(job: "Job", key: Key, declared: pb.Shard, rank: int) -> DisagreementError:
    """A rank is at a round at which it cannot be."""
    return DisagreementError(
        f"rank {rank} is at round {declared.round} of key {key.title}, the others of job {job.name!r} are at round"
        f" {key.shards[declared.index].round}; was a worker started again in the midst of the job?"
        " Start all workers again",
        key=key.id,
        round=declared.round,
        ranks=[rank],
    )


def aborted(job: "Job", key: Key, rank: int, message: pb.Abort) -> AbortedError:
    """A rank said that it cannot contribute."""
    return AbortedError(
        f"rank {rank} of job {job.name!r} could not contribute to key {key.title} round {message.round}:"
        f" {message.text[:_MAX_REASON]}",
        key=key.id,
        round=message.round,
        ranks=[rank],
    )


def timed_out(job: "Job", key: Key, shard: ShardRounds[object], now: float) -> RoundTimeoutError:
    """A round has waited too long."""
    return RoundTimeoutError(
        f"job {job.name!r} key {key.title} round {shard.round} has waited {now - (shard.since or now):.1f} s for"
        f" {_missing(job, shard, now)}, longer than the round timeout of {job.round_timeout:g} s; see what keeps them"
        f" busy, or whether they use this key as well, in a {'broadcast' if key.broadcast else 'pushpull'}",
        key=key.id,
        round=shard.round,
        ranks=shard.waiting_for(),
    )


def waits(job: "Job", key: Key, shard: ShardRounds[object], now: float) -> str:
    """A round has waited for long: whom it waits for, and how long it will."""
    waited = now - (shard.since or now)
    others = f"; {len(job.waiting) - 1} more shards wait" if len(job.waiting) > 1 else ""
    return (
        f"job {job.name!r} key {key.title} round {shard.round} waits for {_missing(job, shard, now)} since"
        f" {waited:.0f} s, and will fail after {job.round_timeout:g} s{others}"
    )


def _missing(job: "Job", shard: ShardRounds[object], now: float) -> str:
    """The ranks that a round waits for, and what is known of each."""
    ranks = list(shard.waiting_for())
    known = [f"rank {rank} ({_whereabouts(job, rank, now)})" for rank in ranks[:_MAX_NAMED]]
    return ", ".join(known) + (f" and {len(ranks) - _MAX_NAMED} more" if len(ranks) > _MAX_NAMED else "")


def _whereabouts(job: "Job", rank: int, now: float) -> str:
    worker = job.workers.get(rank)
    if worker is None:
        return "never joined"
    if not worker.connected:
        return f"{worker.hello.worker}, vanished {now - worker.last_heard:.1f} s ago"
    return f"{worker.hello.worker}, last heard {now - worker.last_heard:.1f} s ago{_occupation(job, rank)}"


def _occupation(job: "Job", rank: int) -> str:
    """The oldest round that waits for others although this rank has contributed: perhaps the ranks took keys in
    another order, or made stores in another order."""
    for key, shard in itertools.islice(job.waiting.values(), _MAX_LOOKED_AT):
        if rank in shard.contributions or rank in shard.waiters:
            return f"; it waits itself, for others in key {key.title} round {shard.round}"
    return ""


def deserted(job: "Job", key: Key, shard: ShardRounds[object], gone: Sequence[int]) -> WorkerLostError:
    """A round needs ranks that have left in good order."""
    who = ", ".join(f"rank {r} ({job.workers[r].hello.worker})" for r in gone)
    return WorkerLostError(
        f"{who} has left job {job.name!r} without contributing to key {key.title} round {shard.round};"
        " look into its output for why it ended. All ranks must push the same keys the same number of times",
        key=key.id,
        round=shard.round,
        ranks=gone,
    )


def ended_early(job: "Job", worker: Worker, told: pb.Fault) -> FaultError:
    """A worker ends before its work is done, and says why; what it says is about the whole job."""
    fault = FaultError.from_message(told)
    text = str(fault)[:_MAX_REASON] or f"rank {worker.hello.rank} of job {job.name!r}, {worker}, ended too early"
    return type(fault)(text, ranks=[rank for rank in fault.ranks[: job.num_workers] if rank < job.num_workers])


def replaceable(job: "Job", worker: Worker, told: pb.Fault) -> str:
    """A worker ends before it has taken part in anything."""
    return (
        f"{told.text[:_MAX_REASON] or 'a worker ended too early'}. It had taken part in nothing: the place of rank"
        f" {worker.hello.rank} is kept for another process, for {job.worker_timeout:g} s; then the job fails"
    )


def vanished(job: "Job", rank: int, now: float) -> WorkerLostError:
    """A worker's connection broke, and it did not come back."""
    worker = job.workers[rank]
    return WorkerLostError(
        f"rank {rank} of job {job.name!r}, {worker}, vanished {now - worker.last_heard:.1f} s ago and"
        f" did not come back within the worker timeout of {job.kept_seconds(worker):g} s;"
        " look into its log, then start the job again",
        ranks=[rank],
    )


def not_back(job: "Job") -> WorkerLostError:
    """Some ranks came back to an aggregator that was started again, others did not."""
    missing = sorted(set(range(job.num_workers)) - set(job.workers))
    return WorkerLostError(
        f"rank {', '.join(map(str, missing))} of job {job.name!r} did not come back within the worker timeout of"
        f" {job.worker_timeout:g} s after this aggregator was started again; look into its log, then start the job"
        " again",
        ranks=missing,
    )
