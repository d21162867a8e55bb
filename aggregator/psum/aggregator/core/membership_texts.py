"""The texts of the faults that end a membership or refuse one: whom they are about, what was expected, and what to do.

membership.py and job.py decide about these faults. error_texts.py has those about keys and rounds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from operator import attrgetter
from typing import Final

from psum.aggregator.core import agreement
from psum.aggregator.core.error_texts import MAX_NAMED, MAX_REASON, either, passed_on
from psum.aggregator.core.roster import Roster, ranks_of
from psum.aggregator.core.worker import Worker
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import DisagreementError, FaultError, TakenError, WorkerLostError

_NUM_WORKERS, _GROUP_SIZE = map(attrgetter, ("num_workers", "group_size"))

_PARTITION_BYTES, _PLACEMENT = map(attrgetter, ("partition_bytes", "placement"))


def _said_weights(hello: pb.Hello) -> list[int] | str:
    return "auto" if agreement.weights(hello) == "auto" else list(hello.weights)


def _said_elastic(hello: pb.Hello) -> str:
    bounds = agreement.elastic(hello)
    return "nothing" if bounds is None else "{}:{}".format(*bounds)


#: What the ranks of a job must agree on: its name, what a rank's hello says, and that value in its canonical form.
_AGREED: Final[Sequence[tuple[str, Callable[[pb.Hello], object], Callable[[pb.Hello], object]]]] = (
    ("the number of workers (PSUM_NUM_WORKERS)", _NUM_WORKERS, _NUM_WORKERS),
    ("the size of the relay's group (PSUM_RELAY, PSUM_LOCAL_SIZE)", _GROUP_SIZE, _GROUP_SIZE),
    ("the relays further up (PSUM_RELAY)", agreement.next_relays, agreement.next_relays),
    ("the partition size (PSUM_PARTITION_BYTES)", _PARTITION_BYTES, _PARTITION_BYTES),
    ("the list of aggregators (PSUM_AGGREGATORS)", lambda hello: list(hello.aggregators), agreement.aggregators),
    ("the weights of the aggregators (PSUM_AGGREGATOR_WEIGHTS)", _said_weights, agreement.weights),
    ("how many workers may be lost or join (PSUM_ELASTIC)", _said_elastic, agreement.elastic),
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
    one, two = ranks_of(first), ranks_of(hello)
    differences = [
        f"{what}: {rank_names(one)} {either(one, 'has', 'have')} {said(first)},"
        f" {rank_names(two)} {either(two, 'has', 'have')} {said(hello)}"
        for what, said, meant in _AGREED
        if meant(first) != meant(hello)
    ]
    if not differences:
        return None
    who = (
        f"{rank_names(one).capitalize()} {either(one, 'is', 'are')} {first_worker or first.worker},"
        f" {rank_names(two)} {either(two, 'is', 'are')} {hello.worker} ({peer})"
    )
    return DisagreementError(
        f"ranks of job {first.job!r} disagree on {'; on '.join(differences)}. {who}."
        " Give all workers of a job the same settings, and every job its own PSUM_JOB",
        ranks=sorted({*one, *two}),
    )


def _has(ranks: Sequence[int]) -> str:
    return f"{rank_names(ranks)} {either(ranks, 'has', 'have')}"


def _listed_twice(first: pb.Hello, hello: pb.Hello) -> DisagreementError:
    """Two entries of the workers' list of aggregators lead to this one aggregator."""
    names = list(hello.aggregators)

    def address(index: int) -> str:
        return names[index] if index < len(names) else f"place {index} of {names}"

    one, two = ranks_of(first), ranks_of(hello)
    whose = f"{rank_names(one)} of job {first.job!r} came by the first, {rank_names(two)} by the second"
    if first.rank == hello.rank:
        whose = f"{rank_names(one)} of job {first.job!r} came by both"
    return DisagreementError(
        f"{address(first.aggregator_index)} and {address(hello.aggregator_index)} of PSUM_AGGREGATORS lead to one and"
        f" the same aggregator: {whose}. List each aggregator once, by one address that leads to it alone",
        ranks=sorted({*one, *two}),
    )


def taken(holders: Sequence[Worker], hello: pb.Hello, peer: str, now: float) -> TakenError:
    """Another process claims ranks that are held.

    Args:
        holders: Those that hold them. If they hold other ranks than the process claims, the text shows both sides.
        hello: The other process's hello.
        peer: The address that it came from.
        now: The time.
    """
    ranks, held = ranks_of(hello), _ranks(holders)
    what_to_do = (
        "Either that process is still ending, and this rank is free when it has ended; or both have the same rank for"
        " good: then give every worker its own PSUM_RANK, and every job its own PSUM_JOB"
    )
    whom = _name(hello, peer)
    if ranks != held:
        whom += f" for {rank_names(ranks)}"
        what_to_do += ", and all workers of a host the same PSUM_RELAY"
    elif hello.resuming:
        what_to_do = "It was replaced while it could not be reached"
    by = ", and by ".join(f"{holder}, {_state(holder, now)}" for holder in holders[:MAX_NAMED])
    return TakenError(
        f"{rank_names(held)} of job {hello.job!r} {either(held, 'is', 'are')} taken by {by}; refused {whom}."
        f" {what_to_do}",
        ranks=ranks,
    )


def _state(holder: Worker, now: float) -> str:
    if holder.left:
        return "which has left it"
    if holder.connected:
        return f"connected {now - holder.joined:.1f} s ago"
    return f"which vanished {now - holder.last_heard:.1f} s ago"


def replaced(holders: Sequence[Worker], hello: pb.Hello, peer: str, now: float) -> WorkerLostError:
    """Another process has come in the place of workers that vanished."""
    since = max(holder.last_heard for holder in holders)
    return WorkerLostError(
        f"{_who(holders, hello.job)} vanished {now - since:.1f} s ago, and another process, {_name(hello, peer)}, has"
        f" come in {either(holders, 'its', 'their')} place. That one starts from the first round, so the job"
        " ends here; start all workers again",
        ranks=_ranks(holders),
    )


def too_many_ranks(workers: Iterable[Worker], hello: pb.Hello, peer: str) -> DisagreementError:
    """A worker has come to a relay whose group has no place for it."""
    ranks = ranks_of(hello)
    return DisagreementError(
        f"the group of job {hello.job!r} on this relay has {hello.group_size} ranks, and there are"
        f" {_listed(workers)}; refused {rank_names(ranks)}, {_name(hello, peer)}. A relay serves the workers of one"
        " host: give each worker the relay of its own host (PSUM_RELAY), and the number of workers there"
        " (PSUM_LOCAL_SIZE)",
        ranks=ranks,
    )


def replaced_unseen(hello: pb.Hello, peer: str, seconds: float) -> WorkerLostError:
    """Another process has come in the place of a worker that did not come back to an aggregator that was started again.

    Args:
        hello: The other process's hello.
        peer: The address that it came from.
        seconds: How long ago the first worker came back.
    """
    ranks = ranks_of(hello)
    return WorkerLostError(
        f"{rank_names(ranks)} of job {hello.job!r} {either(ranks, 'has', 'have')} not come back to this aggregator,"
        f" which was started again; the first rank came back {seconds:.1f} s ago. Another process,"
        f" {_name(hello, peer)}, has come in {either(ranks, 'its', 'their')} place. That one starts from the first"
        " round, so the job ends here; start all workers again",
        ranks=ranks,
    )


def still_ending(workers: Mapping[int, Worker], holders: Sequence[Worker], hello: pb.Hello, peer: str) -> TakenError:
    """A worker has come for the next run of a failed job, while some workers of this run are still connected.

    Args:
        workers: The job's members by first rank.
        holders: Those that hold the worker's ranks.
        hello: The worker's hello.
        peer: The address that it came from.
    """
    there = [worker for worker in workers.values() if worker.connected]
    still = f"; still connected: {_listed(there)}" if there else ""
    ranks = ranks_of(hello)
    was = ", ".join(map(str, holders[:MAX_NAMED])) or "another process"
    return TakenError(
        f"job {hello.job!r}, in which {rank_names(ranks)} {either(ranks, 'was', 'were')} {was}, has failed and is"
        f" still ending{still}. Refused {_name(hello, peer)}, which can join its next run when all of them have ended",
        ranks=ranks,
    )


def begun_without(hello: pb.Hello, peer: str) -> TakenError:
    """A new process joins a job in which all ranks have already taken part in some round."""
    ranks = ranks_of(hello)
    return TakenError(
        f"{rank_names(ranks)} of job {hello.job!r} {either(ranks, 'has', 'have')} taken part in it as another"
        f" process; refused {_name(hello, peer)}, which starts from the first round."
        " If the other process has ended, the job fails soon, and this one can join its next run; if not, give every"
        " worker its own PSUM_RANK, and every job its own PSUM_JOB",
        ranks=ranks,
    )


def started_again(workers: Sequence[Worker]) -> DisagreementError:
    """These processes joined after all ranks had taken part in some round."""
    return DisagreementError(
        f"{_listed(workers)} started job {workers[0].hello.job!r} from the first round, but other ranks have sums of it"
        " already: was a worker started again in the middle of the job? Start all workers again",
        ranks=_ranks(workers),
    )


def ended_early(worker: Worker, reported: pb.Fault) -> FaultError:
    """A member ends before its work is done, and says why. The failure is that of the whole job."""
    return passed_on(reported, f"{_who([worker], worker.hello.job)} ended too early", worker.hello.num_workers)


def replaceable(worker: Worker, reported: pb.Fault, timeout: float) -> str:
    """A worker ends before it has taken part in any round."""
    return (
        f"{reported.text[:MAX_REASON] or 'a worker ended too early'}. It had taken part in nothing: the place of"
        f" {rank_names(worker.ranks)} is kept for another process, for {timeout:g} s; then the job fails"
    )


def vanished(workers: Sequence[Worker], timeout: float, left: Set[int], now: float) -> WorkerLostError:
    """Connections broke, and the first of these workers did not come back within the timeout.

    Args:
        workers: The workers that vanished together.
        timeout: How long their places were kept.
        left: The ranks that have left. They are named only if a relay has vanished after all its ranks had left.
        now: The time.
    """
    ranks = _ranks(workers)
    since = min(worker.last_heard for worker in workers)
    return WorkerLostError(
        f"{_who(workers, workers[0].hello.job)} vanished {now - since:.1f} s ago and did not come back within the"
        f" worker timeout of {timeout:g} s; look into {either(workers, 'its log', 'their logs')}, then start the job"
        " again",
        ranks=[rank for rank in ranks if rank not in left] or ranks,
    )


def all_vanished(workers: Sequence[Worker], hello: pb.Hello, peer: str) -> WorkerLostError:
    """All workers of a job here vanished, and a process that was started after that has come in the place of one.

    Of a relay's group the others must know: their own ranks may live.

    Args:
        workers: The workers; some may have left before.
        hello: The process's hello.
        peer: Its address.
    """
    gone = [worker for worker in workers if not worker.left] or workers
    return WorkerLostError(
        f"{_who(gone, hello.job)} vanished, and {hello.worker or 'an unnamed worker'} ({peer}) was started in"
        f" {either(gone, 'its', 'their')} place; look into {either(gone, 'its log', 'their logs')}, then start the job"
        " again",
        ranks=_ranks(gone),
    )


def not_back(job: str, roster: Roster, timeout: float) -> WorkerLostError:
    """The aggregator was started again; some ranks came back to it, and others did not."""
    missing = roster.not_joined()
    who = rank_names(missing) if missing else f"{roster.absent} of the {roster.size} ranks of a relay's group"
    return WorkerLostError(
        f"{who} of job {job!r} did not come back within the worker timeout of"
        f" {timeout:g} s after this aggregator was started again; look into {either(missing, 'its log', 'their logs')},"
        " which may name another cause of the job's end, then start the job again",
        ranks=missing,
    )


def _ranks(workers: Iterable[Worker]) -> tuple[int, ...]:
    """The ranks that members stand for, in ascending order."""
    return tuple(sorted(rank for worker in workers for rank in worker.ranks))


def _name(hello: pb.Hello, peer: str) -> str:
    """A process that says hello."""
    return f"{hello.worker or 'an unnamed worker'} ({peer})"


def _listed(workers: Iterable[Worker]) -> str:
    """Members with their ranks, the first of many."""
    names = [f"{rank_names(worker.ranks)} ({worker})" for worker in workers]
    return ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")


def _who(workers: Sequence[Worker], job: str) -> str:
    """Members of a job, as the subject of a sentence."""
    if len(workers) == 1:
        return f"{rank_names(workers[0].ranks)} of job {job!r}, {workers[0]},"
    return f"{_listed(workers)} of job {job!r}"
