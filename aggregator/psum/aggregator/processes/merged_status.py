"""The status of several processes as that of one aggregator, for the status page.

Every worker is connected to every process. Each process sums other shards of the same keys.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Final

from psum.aggregator.processes.merged_elastic import merged_elastic
from psum.v1 import aggregator_pb2 as pb

#: The most waiting rounds of a job that are listed, as by one process.
_MAX_ROUNDS: Final = 64


def merged_status(statuses: Sequence[pb.GetStatusResponse]) -> pb.GetStatusResponse:
    """The status of an aggregator, given those of its processes, of which there is at least one."""
    jobs: dict[str, list[pb.JobStatus]] = {}
    for status in statuses:
        for job in status.jobs:
            jobs.setdefault(job.name, []).append(job)
    first = statuses[0]
    return pb.GetStatusResponse(
        version=first.version,
        incarnation=first.incarnation,
        addresses=first.addresses,
        uptime_seconds=max(status.uptime_seconds for status in statuses),
        cpu_seconds=sum(status.cpu_seconds for status in statuses),
        jobs=[_job(of, len(statuses)) for of in jobs.values()],
        ended=_ended(statuses),
        draining=any(status.draining for status in statuses),
        memory_reserved_bytes=sum(status.memory_reserved_bytes for status in statuses),
        memory_budget_bytes=max(status.memory_budget_bytes for status in statuses),
        loop_lag_seconds=max(status.loop_lag_seconds for status in statuses),
        processes=first.processes,
    )


def merged_rates(rates: Iterable[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The throughput of several processes together. The last samples are of the same time."""
    columns = zip_longest(*(reversed(each) for each in rates), fillvalue=(0.0, 0.0))
    return [(sum(received for received, _ in column), sum(sent for _, sent in column)) for column in columns][::-1]


def _job(jobs: Sequence[pb.JobStatus], processes: int) -> pb.JobStatus:
    workers: dict[int, list[pb.WorkerStatus]] = {}
    for job in jobs:
        for worker in job.workers:
            workers.setdefault(worker.rank, []).append(worker)
    rounds = sorted((r for job in jobs for r in job.rounds), key=lambda round: -round.waiting_seconds)
    merged = pb.JobStatus()
    merged.CopyFrom(jobs[0])
    for name in ("workers", "rounds", "uplinks"):
        merged.ClearField(name)
    # A process knows only the keys of which it has shards. Large keys have shards everywhere.
    merged.keys = max(job.keys for job in jobs)
    merged.held_bytes = sum(job.held_bytes for job in jobs)
    merged.rounds_completed = sum(job.rounds_completed for job in jobs)
    merged.rounds_waiting = sum(job.rounds_waiting for job in jobs)
    merged.workers.extend(_worker(workers[rank], processes) for rank in sorted(workers))
    merged.rounds.extend(rounds[:_MAX_ROUNDS])
    merged.uplinks.extend(uplink for job in jobs for uplink in job.uplinks)
    if elastic := [job.elastic for job in jobs if job.HasField("elastic")]:
        merged.elastic.CopyFrom(merged_elastic(elastic))
    return merged


def _worker(found: Sequence[pb.WorkerStatus], processes: int) -> pb.WorkerStatus:
    merged = pb.WorkerStatus()
    merged.CopyFrom(found[0])
    merged.connected = len(found) == processes and all(worker.connected for worker in found)
    merged.left = all(worker.left for worker in found)
    merged.lost = any(worker.lost for worker in found)
    merged.joined_seconds = max(worker.joined_seconds for worker in found)
    merged.generation = max(worker.generation for worker in found)
    merged.last_heard_seconds = min(worker.last_heard_seconds for worker in found)
    merged.received_bytes = sum(worker.received_bytes for worker in found)
    merged.sent_bytes = sum(worker.sent_bytes for worker in found)
    merged.behind_seconds = max(worker.behind_seconds for worker in found)
    merged.data_connection = all(worker.data_connection for worker in found)
    return merged


def _ended(statuses: Sequence[pb.GetStatusResponse]) -> list[pb.EndedJob]:
    """The jobs that ended, the latest first. The same job ended on all processes, hardly at the same time."""
    merged: dict[tuple[str, int], pb.EndedJob] = {}
    for status in statuses:
        seen: Counter[str] = Counter()
        for ended in status.ended:
            known = merged.get(place := (ended.name, seen[ended.name]))
            seen[ended.name] += 1
            if known is None:
                merged[place] = known = pb.EndedJob()
                known.CopyFrom(ended)
                continue
            known.joined[:] = sorted({*known.joined, *ended.joined})
            known.ended_seconds = min(known.ended_seconds, ended.ended_seconds)
            known.failure = known.failure or ended.failure
    return sorted(merged.values(), key=lambda ended: ended.ended_seconds)
