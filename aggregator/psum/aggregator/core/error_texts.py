"""The texts of the faults that a job reports: what happened, to whom, what was expected, and what to do.

Faults are handled elsewhere: job.py fails a job and job_rounds.py fails a key, membership.py finds lost workers, and
open_shards.py finds rounds that have waited too long.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Final

from psum.aggregator.core import agreement
from psum.aggregator.core.budget import Budget
from psum.aggregator.core.key import Key
from psum.aggregator.core.round import ShardRounds
from psum.aggregator.core.worker import Worker
from psum.runtime import titled
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import (
    AbortedError,
    DisagreementError,
    ExhaustedError,
    FaultError,
    RoundTimeoutError,
    TakenError,
    WorkerLostError,
)

#: How many of the ranks that a round waits for are named.
_MAX_NAMED: Final = 8

#: How many waiting rounds are searched for one that a rank has contributed to.
_MAX_SEARCHED: Final = 64

_NUM_WORKERS, _PARTITION_BYTES, _PLACEMENT = map(attrgetter, ("num_workers", "partition_bytes", "placement"))

#: How many characters of a rank's reason are repeated.
_MAX_REASON: Final = 4096


def _said_weights(hello: pb.Hello) -> list[int] | str:
    return "auto" if agreement.weights(hello) == "auto" else list(hello.weights)


#: What the ranks of a job must agree on: its name, what a rank's hello says, and that value in its canonical form.
_AGREED: Final[Sequence[tuple[str, Callable[[pb.Hello], object], Callable[[pb.Hello], object]]]] = (
    ("the number of workers (PSUM_NUM_WORKERS)", _NUM_WORKERS, _NUM_WORKERS),
    ("the partition size (PSUM_PARTITION_BYTES)", _PARTITION_BYTES, _PARTITION_BYTES),
    ("the list of aggregators (PSUM_AGGREGATORS)", lambda hello: list(hello.aggregators), agreement.aggregators),
    ("the weights of the aggregators (PSUM_AGGREGATOR_WEIGHTS)", _said_weights, agreement.weights),
    ("the rule for the placement of shards (the version of psum)", _PLACEMENT, agreement.placement),
)


def disagreement(first: pb.Hello, first_worker: Worker | None, hello: pb.Hello, peer: str) -> DisagreementError | None:
    """How a worker's settings differ from those of the job's first worker; None if they agree.

    Args:
        first: The first worker's hello.
        first_worker: The worker that has the first worker's rank now, if any.
        hello: The hello to compare.
        peer: The address that it came from.
    """
    same_fleet = agreement.aggregators(first) == agreement.aggregators(hello)
    if same_fleet and first.aggregator_index != hello.aggregator_index:
        return _listed_twice(first, hello)
    differences = [
        f"{what}: rank {first.rank} has {said(first)}, rank {hello.rank} has {said(hello)}"
        for what, said, meant in _AGREED
        if meant(first) != meant(hello)
    ]
    if not differences:
        return None
    return DisagreementError(
        f"ranks of job {first.job!r} disagree on " + "; on ".join(differences) + f". Rank {first.rank} is"
        f" {first_worker or first.worker}, rank {hello.rank} is {hello.worker} ({peer})."
        " Give all workers of a job the same settings, and every job its own PSUM_JOB",
        ranks=sorted({first.rank, hello.rank}),
    )


def _listed_twice(first: pb.Hello, hello: pb.Hello) -> DisagreementError:
    """Two entries of the workers' list of aggregators lead to this one aggregator."""
    names = list(hello.aggregators)

    def address(index: int) -> str:
        return names[index] if index < len(names) else f"place {index} of {names}"

    whose = f"rank {first.rank} of job {first.job!r} came by the first, rank {hello.rank} by the second"
    if first.rank == hello.rank:
        whose = f"rank {first.rank} of job {first.job!r} came by both"
    return DisagreementError(
        f"{address(first.aggregator_index)} and {address(hello.aggregator_index)} of PSUM_AGGREGATORS lead to one and"
        f" the same aggregator: {whose}. List each aggregator once, by one address that leads to it alone",
        ranks=sorted({first.rank, hello.rank}),
    )


def taken(holder: Worker, hello: pb.Hello, peer: str, now: float) -> TakenError:
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
        f"rank {hello.rank} of job {hello.job!r} is taken by {holder}, {state};"
        f" refused {hello.worker or 'an unnamed worker'} ({peer}). {what_to_do}",
        ranks=[hello.rank],
    )


def replaced(holder: Worker, hello: pb.Hello, peer: str, now: float) -> WorkerLostError:
    """Another process has come in the place of a worker that vanished."""
    return WorkerLostError(
        f"rank {hello.rank} of job {hello.job!r}, {holder}, vanished {now - holder.last_heard:.1f} s ago, and another"
        f" process, {hello.worker or 'an unnamed worker'} ({peer}), has come in its place. That one starts from the"
        " first round, so the job ends here; start all workers again",
        ranks=[hello.rank],
    )


def replaced_unseen(hello: pb.Hello, peer: str, seconds: float) -> WorkerLostError:
    """Another process has come in the place of a worker that did not come back to an aggregator that was started again.

    Args:
        hello: The other process's hello.
        peer: The address that it came from.
        seconds: How long ago the first worker came back.
    """
    return WorkerLostError(
        f"rank {hello.rank} of job {hello.job!r} has not come back to this aggregator, which was started again; the"
        f" first rank came back {seconds:.1f} s ago. Another process, {hello.worker or 'an unnamed worker'} ({peer}),"
        " has come in its place. That one starts from the first round, so the job ends here; start all workers again",
        ranks=[hello.rank],
    )


def still_ending(workers: Mapping[int, Worker], hello: pb.Hello, peer: str) -> TakenError:
    """A worker has come for the next run of a failed job, while some workers of this run are still connected."""
    there = [f"rank {rank} ({worker})" for rank, worker in workers.items() if worker.connected]
    still = f"; still connected: {', '.join(there[:_MAX_NAMED])}" if there else ""
    holder = workers.get(hello.rank, "another process")
    return TakenError(
        f"job {hello.job!r}, in which rank {hello.rank} was {holder}, has failed and is still ending{still}. Refused"
        f" {hello.worker or 'an unnamed worker'} ({peer}), which can join its next run when all of them have ended",
        ranks=[hello.rank],
    )


def begun_without(hello: pb.Hello, peer: str) -> TakenError:
    """A new process joins a job in which all ranks have already taken part in some round."""
    return TakenError(
        f"rank {hello.rank} of job {hello.job!r} has taken part in it as another process; refused"
        f" {hello.worker or 'an unnamed worker'} ({peer}), which starts from the first round."
        " If the other process has ended, the job fails soon, and this one can join its next run; if not, give every"
        " worker its own PSUM_RANK, and every job its own PSUM_JOB",
        ranks=[hello.rank],
    )


def started_again(workers: Sequence[Worker]) -> DisagreementError:
    """These processes joined after all ranks had taken part in some round."""
    who = ", ".join(f"rank {w.hello.rank} ({w.hello.worker or 'an unnamed worker'})" for w in workers)
    return DisagreementError(
        f"{who} started job {workers[0].hello.job!r} from the first round, but other ranks have sums of it already: was"
        " a worker started again in the middle of the job? Start all workers again",
        ranks=[worker.hello.rank for worker in workers],
    )


def exhausted(job: str, key: Key, num_workers: int, need: int, budget: Budget) -> ExhaustedError:
    """The memory budget is too small for a key that needs this many bytes."""
    return ExhaustedError(
        f"job {job!r} needs {need} bytes on this aggregator for key {key.title}, {key.describe(key.declared)},"
        f" of {num_workers} workers; {budget.free_bytes} bytes of its memory budget of {budget.limit_bytes} are"
        " left. Give it more (--memory-budget), add aggregators, or wait for other jobs to end",
        key=key.id,
    )


def too_many_shards(job: str, keys: int, declared: pb.Key, shards: int, max_shards: int) -> ExhaustedError:
    """With another key, a job would have more shards than it may have."""
    return ExhaustedError(
        f"job {job!r} has {keys} keys on this aggregator; with key"
        f" {titled(declared.name, declared.label)} they have {shards} shards, and may have {max_shards}"
        " (max_shards). Are new keys made in every step, or is PSUM_PARTITION_BYTES very small?"
    )


def out_of_step(job: str, key: Key, declared: pb.Shard, rank: int) -> DisagreementError:
    """A rank declares a round that it cannot be at."""
    return DisagreementError(
        f"rank {rank} is at round {declared.round} of key {key.title}, the others of job {job!r} are at round"
        f" {key.shards[declared.index].round}; was a worker started again in the middle of the job?"
        " Start all workers again",
        key=key.id,
        round=declared.round,
        ranks=[rank],
    )


def aborted(job: str, key: Key, rank: int, message: pb.Abort) -> AbortedError:
    """A rank said that it cannot contribute."""
    return AbortedError(
        f"rank {rank} of job {job!r} could not contribute to key {key.title} round {message.round}:"
        f" {message.text[:_MAX_REASON]}",
        key=key.id,
        round=message.round,
        ranks=[rank],
    )


def timed_out(
    job: str, key: Key, shard: ShardRounds[object], absent: str, timeout: float, now: float
) -> RoundTimeoutError:
    """A round has waited longer than the round timeout; `absent` names the ranks that it waits for."""
    return RoundTimeoutError(
        f"job {job!r} key {key.title} round {shard.round} has waited {now - (shard.since or now):.1f} s for"
        f" {absent}, longer than the round timeout of {timeout:g} s. Check what keeps them busy, and whether they use"
        f" this key too, in a {'broadcast' if key.broadcast else 'pushpull'}",
        key=key.id,
        round=shard.round,
        ranks=shard.waiting_for(),
    )


def waits(job: str, key: Key, shard: ShardRounds[object], absent: str, others: int, timeout: float, now: float) -> str:
    """A round has waited for long. `absent` names the ranks that it waits for; `others` counts other waiting rounds."""
    waited = now - (shard.since or now)
    more = f"; {others} more shards wait" if others else ""
    return (
        f"job {job!r} key {key.title} round {shard.round} waits for {absent}. It has waited {waited:.0f} s,"
        f" and will fail after {timeout:g} s{more}"
    )


_OpenShards = Mapping[tuple[int, int], tuple[Key, ShardRounds[object]]]


def absent(shard: ShardRounds[object], workers: Mapping[int, Worker], open_shards: _OpenShards, now: float) -> str:
    """The ranks that a round waits for, and what is known of each.

    Args:
        shard: The shard.
        workers: The job's workers by rank.
        open_shards: All shards of the job whose round waits.
        now: The time.
    """
    ranks = list(shard.waiting_for())
    known = [f"rank {rank} ({_whereabouts(rank, workers, open_shards, now)})" for rank in ranks[:_MAX_NAMED]]
    return ", ".join(known) + (f" and {len(ranks) - _MAX_NAMED} more" if len(ranks) > _MAX_NAMED else "")


def _whereabouts(rank: int, workers: Mapping[int, Worker], open_shards: _OpenShards, now: float) -> str:
    worker = workers.get(rank)
    if worker is None:
        return "never joined"
    if not worker.connected:
        return f"{worker.hello.worker}, vanished {now - worker.last_heard:.1f} s ago"
    return f"{worker.hello.worker}, last heard {now - worker.last_heard:.1f} s ago{_occupation(rank, open_shards)}"


def _occupation(rank: int, open_shards: _OpenShards) -> str:
    """The oldest round to which a rank has contributed and that waits for others.

    It hints at ranks that use keys, or make stores, in different orders.
    """
    for key, shard in itertools.islice(open_shards.values(), _MAX_SEARCHED):
        if rank in shard.contributions or rank in shard.ranks_lacking_result:
            return f"; it waits itself, for others in key {key.title} round {shard.round}"
    return ""


def deserted(key: Key, shard: ShardRounds[object], gone: Sequence[Worker]) -> WorkerLostError:
    """A round needs workers that have said goodbye."""
    who = ", ".join(f"rank {w.hello.rank} ({w.hello.worker})" for w in gone)
    return WorkerLostError(
        f"{who} has left job {gone[0].hello.job!r} without contributing to key {key.title} round {shard.round};"
        " its output may say why it ended. All ranks must push the same keys the same number of times",
        key=key.id,
        round=shard.round,
        ranks=[worker.hello.rank for worker in gone],
    )


def ended_early(worker: Worker, num_workers: int, reported: pb.Fault) -> FaultError:
    """A worker ends before its work is done, and says why. The failure is that of the whole job."""
    fault = FaultError.from_message(reported)
    text = str(fault)[:_MAX_REASON] or (
        f"rank {worker.hello.rank} of job {worker.hello.job!r}, {worker}, ended too early"
    )
    return type(fault)(text, ranks=[rank for rank in fault.ranks[:num_workers] if rank < num_workers])


def replaceable(worker: Worker, reported: pb.Fault, timeout: float) -> str:
    """A worker ends before it has taken part in any round."""
    return (
        f"{reported.text[:_MAX_REASON] or 'a worker ended too early'}. It had taken part in nothing: the place of rank"
        f" {worker.hello.rank} is kept for another process, for {timeout:g} s; then the job fails"
    )


def vanished(worker: Worker, timeout: float, now: float) -> WorkerLostError:
    """A worker's connection broke, and the worker did not come back within the timeout."""
    return WorkerLostError(
        f"rank {worker.hello.rank} of job {worker.hello.job!r}, {worker}, vanished {now - worker.last_heard:.1f} s ago"
        f" and did not come back within the worker timeout of {timeout:g} s;"
        " look into its log, then start the job again",
        ranks=[worker.hello.rank],
    )


def not_back(job: str, missing: Sequence[int], timeout: float) -> WorkerLostError:
    """The aggregator was started again; some ranks came back to it, and these did not."""
    return WorkerLostError(
        f"rank {', '.join(map(str, missing))} of job {job!r} did not come back within the worker timeout of"
        f" {timeout:g} s after this aggregator was started again; look into its log, then start the job again",
        ranks=missing,
    )
