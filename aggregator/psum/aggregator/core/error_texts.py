"""The texts of the faults about keys and rounds: what happened, to whom, what was expected, and what to do.

job_rounds.py fails a key, and open_shards.py finds rounds that have waited too long. membership_texts.py has the faults
about members.
"""

import itertools
from collections.abc import Mapping, Sequence, Sized
from typing import Final

from psum.aggregator.core.budget import Budget
from psum.aggregator.core.key import Key
from psum.aggregator.core.round import ShardRounds
from psum.aggregator.core.worker import Worker
from psum.runtime import rank_names, titled
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import (
    AbortedError,
    DisagreementError,
    ExhaustedError,
    FaultError,
    RoundTimeoutError,
    WorkerLostError,
)

#: How many of the ranks that a round waits for are named.
MAX_NAMED: Final = 8

#: How many waiting rounds are searched for one that a rank has contributed to.
_MAX_SEARCHED: Final = 64

#: How many characters of a rank's reason are repeated.
MAX_REASON: Final = 4096


def either(several: Sized, one_form: str, form: str) -> str:
    """The form of a word that fits one or several."""
    return one_form if len(several) == 1 else form


def exhausted(job: str, key: Key, members: int, need: int, budget: Budget) -> ExhaustedError:
    """The memory budget is too small for a key that needs this many bytes."""
    return ExhaustedError(
        f"job {job!r} needs {need} bytes on this aggregator for key {key.title}, {key.describe(key.declared)},"
        f" of {members} workers; {budget.free_bytes} bytes of its memory budget of {budget.limit_bytes} are"
        " left. Give it more (PSUM_MEMORY_BUDGET), add aggregators, or wait for other jobs to end",
        key=key.id,
    )


def too_many_shards(job: str, keys: int, declared: pb.Key, shards: int, max_shards: int) -> ExhaustedError:
    """With another key, a job would have more shards than it may have."""
    return ExhaustedError(
        f"job {job!r} has {keys} keys on this aggregator; with key"
        f" {titled(declared.name, declared.label)} they have {shards} shards, and may have {max_shards}"
        " (PSUM_MAX_SHARDS). Are new keys made in every step, or is PSUM_PARTITION_BYTES very small?"
    )


def out_of_step(job: str, key: Key, declared: pb.Shard, ranks: Sequence[int]) -> DisagreementError:
    """A member declares a round that it cannot be at."""
    return DisagreementError(
        f"{rank_names(ranks)} {either(ranks, 'is', 'are')} at round {declared.round} of key {key.title}, the others of"
        f" job {job!r} are at round {key.shards[declared.index].round}; was a worker started again in the middle of the"
        " job? Start all workers again",
        key=key.id,
        round=declared.round,
        ranks=ranks,
    )


def aborted(job: str, key: Key, worker: Worker, message: pb.Abort) -> FaultError:
    """A member said that it cannot contribute. If it passes on a failure, as relays do, that is the failure for all."""
    who = f"{rank_names(worker.ranks)} of job {job!r}"
    if message.HasField("fault"):
        otherwise = f"{who} could not contribute to key {key.title}"
        return passed_on(message.fault, otherwise, worker.hello.num_workers, key=key.id, round=message.round)
    return AbortedError(
        f"{who} could not contribute to key {key.title} round {message.round}: {message.text[:MAX_REASON]}",
        key=key.id,
        round=message.round,
        ranks=worker.ranks,
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
        workers: The job's members by first rank.
        open_shards: All shards of the job whose round waits.
        now: The time.
    """
    ranks, roster = list(shard.waiting_for()), shard.roster
    # The ranks of one relay are together.
    groups: dict[int, list[int]] = {}
    for rank in ranks:
        member = roster.member(rank)
        groups.setdefault(rank if member is None else member, []).append(rank)
    named = list(groups.values())[:MAX_NAMED]
    known = [
        f"{rank_names(group)} ({_whereabouts(roster.member(group[0]), workers, open_shards, now)})" for group in named
    ]
    if more := len(ranks) - sum(map(len, named)):
        known[-1] += f" and {more} more"
    if roster.unknown:
        known.append(
            f"{roster.unknown} of the {roster.size} ranks of this group, which have not joined (PSUM_LOCAL_SIZE must be"
            " the number of workers there)"
        )
    return ", ".join(known)


def _whereabouts(member: int | None, workers: Mapping[int, Worker], open_shards: _OpenShards, now: float) -> str:
    worker = None if member is None else workers.get(member)
    if member is None or worker is None:
        return "never joined"
    if not worker.connected:
        return f"{worker.hello.worker}, vanished {now - worker.last_heard:.1f} s ago"
    return f"{worker.hello.worker}, last heard {now - worker.last_heard:.1f} s ago{_occupation(member, open_shards)}"


def _occupation(member: int, open_shards: _OpenShards) -> str:
    """The oldest round to which a member has contributed and that waits for others.

    It hints at ranks that use keys, or make stores, in different orders.
    """
    for key, shard in itertools.islice(open_shards.values(), _MAX_SEARCHED):
        if member in shard.contributions or member in shard.ranks_lacking_result:
            return f"; it waits itself, for others in key {key.title} round {shard.round}"
    return ""


def deserted(key: Key, shard: ShardRounds[object], gone: Sequence[tuple[Sequence[int], Worker]]) -> WorkerLostError:
    """A round needs ranks that have left.

    Args:
        key: The key.
        shard: The shard.
        gone: Members that have not contributed, each with those of its ranks that have left.
    """
    who = ", ".join(f"{rank_names(ranks)} ({worker.hello.worker})" for ranks, worker in gone)
    left = [rank for ranks, _ in gone for rank in ranks]
    return WorkerLostError(
        f"{who} {either(left, 'has', 'have')} left job {gone[0][1].hello.job!r} without contributing to key {key.title}"
        f" round {shard.round}; {either(left, 'its output may say why it', 'their output may say why they')} ended. All"
        " ranks must push the same keys the same number of times",
        key=key.id,
        round=shard.round,
        ranks=left,
    )


def passed_on(
    reported: pb.Fault, otherwise: str, num_workers: int, key: int | None = None, round: int | None = None
) -> FaultError:
    """A failure that a member reports, for all others; what is too long or makes no sense is left out.

    Args:
        reported: What the member reports.
        otherwise: The text if it gives none.
        num_workers: The number of ranks of the fleet.
        key: The key that fails; None if the whole job does.
        round: The round that fails.
    """
    fault = FaultError.from_message(reported)
    ranks = [rank for rank in fault.ranks[:num_workers] if rank < num_workers]
    return type(fault)(str(fault)[:MAX_REASON] or otherwise, key=key, round=round, ranks=ranks)
