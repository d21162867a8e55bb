"""Which ranks an operation waits for: what the aggregators know, in a sentence for people."""

import contextlib
import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from psum.client.client import Client
from psum.client.transport.aggregator_status import fetch_status
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import PsumError

#: How long the aggregators may take to answer.
_PATIENCE_SECONDS: Final = 2.0

#: How many aggregators are asked at the same time.
_AT_ONCE: Final = 16

#: The most ranks of which it is told what they do.
_MOST_TOLD: Final = 4


def whom(client: Client, operations: Collection[tuple[str, int]]) -> str:
    """Asks the aggregators which ranks operations wait for. Waits for some seconds at most, and does not raise.

    Args:
        client: The membership in the job.
        operations: The key's name and the round of each operation.

    Returns:
        One or more sentences.
    """
    jobs, silent = _ask_all(client)
    return sentence(jobs, operations, client.rank, silent)


def departed(client: Client, ranks: Collection[int]) -> dict[int, str]:
    """Asks the aggregators which of some ranks have left the job in good order. Waits for some seconds at most.

    Args:
        client: The membership in the job.
        ranks: The ranks.

    Returns:
        A sentence without a full stop, by rank. Without those of which nothing is known.
    """
    jobs, _ = _ask_all(client)
    return {
        worker.rank: _doing(worker.rank, worker, (), client.rank)
        for job in jobs
        for worker in job.workers
        if worker.left and worker.rank in ranks
    }


def _ask_all(client: Client) -> tuple[list[pb.JobStatus], list[str]]:
    """Returns the job as its aggregators see it, and why some did not answer."""
    settings = client.settings
    deadline = time.monotonic() + _PATIENCE_SECONDS
    silent: list[str] = []

    def ask(address: str) -> list[pb.JobStatus]:
        try:
            timeout = max(0.1, deadline - time.monotonic())
            return list(fetch_status(address, job=settings.job, timeout=timeout, settings=settings).jobs)
        except PsumError as error:
            silent.append(str(error))
            return []

    jobs: list[pb.JobStatus] = []
    # RuntimeError: the interpreter is about to end.
    with contextlib.suppress(RuntimeError), ThreadPoolExecutor(_AT_ONCE, "psum-stragglers") as pool:
        jobs = [job for found in pool.map(ask, settings.aggregators) for job in found]
    return jobs, silent


def sentence(
    jobs: Sequence[pb.JobStatus], operations: Collection[tuple[str, int]], rank: int, silent: Sequence[str] = ()
) -> str:
    """Says which ranks operations wait for.

    Args:
        jobs: The job as its aggregators see it.
        operations: The key's name and the round of each operation.
        rank: This process's rank.
        silent: Why aggregators did not answer.
    """
    rounds = sorted((round for job in jobs for round in job.rounds), key=lambda round: -round.waiting_seconds)
    late = sorted({late for round in rounds if (round.key, round.round) in operations for late in round.waiting_for})
    if late:
        known = {worker.rank: worker for job in jobs for worker in job.workers}
        told = [text for other in late[:_MOST_TOLD] if (text := _doing(other, known.get(other), rounds, rank))]
        whose = f"{rank_names(late)} {'has' if len(late) == 1 else 'have'} not contributed to it"
        return f"{whose[0].upper()}{whose[1:]}.{''.join(f' {text}.' for text in told)}"
    if silent:
        return f"Which ranks it waits for is not known: {silent[0]}."
    return "No rank is late: the aggregators have all that was sent, and the result is on its way."


def _doing(rank: int, worker: pb.WorkerStatus | None, rounds: Iterable[pb.RoundStatus], asking: int) -> str:
    """What is known of a rank, without the full stop."""
    if rank == asking:
        return f"Rank {rank} is this process: what it gives is still on its way"
    if worker is None:
        return f"Rank {rank} never joined"
    if worker.left:
        return f"Rank {rank} ({worker.worker}) has left the job"
    if not worker.connected:
        return f"Rank {rank} ({worker.worker}) vanished {worker.last_heard_seconds:.1f} s ago"
    for round in rounds:
        if rank not in round.waiting_for:
            return (
                f"Rank {rank} ({worker.worker}) waits for {rank_names(round.waiting_for)} in"
                f" {round.label or f'key {round.key!r}'}"
            )
    return f"Rank {rank} ({worker.worker}) was last heard {worker.last_heard_seconds:.1f} s ago, and waits for nobody"
