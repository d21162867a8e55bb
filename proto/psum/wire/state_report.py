"""The state of an aggregator as JSON, the same over HTTP and from the command line."""

import urllib.parse
from typing import Any

from psum.v1 import aggregator_pb2 as pb


def report_of(status: pb.GetStatusResponse) -> dict[str, Any]:
    """Return an answer to GetStatus as a dictionary of aggregator, jobs and ended. Units are bytes and seconds."""
    return {
        "aggregator": {
            "version": status.version,
            # As text, because JavaScript has no 64 bit integers.
            "incarnation": f"{status.incarnation:016x}",
            "addresses": list(status.addresses),
            "uptime_seconds": round(status.uptime_seconds, 3),
            "cpu_seconds": round(status.cpu_seconds, 3),
            "loop_lag_seconds": round(status.loop_lag_seconds, 6),
            "memory_reserved_bytes": status.memory_reserved_bytes,
            "memory_budget_bytes": status.memory_budget_bytes,
            "draining": status.draining,
        },
        "jobs": [_job(job) for job in status.jobs],
        "ended": [
            {
                "name": ended.name,
                "num_workers": ended.num_workers,
                "joined": len(ended.joined),
                "ended_seconds": round(ended.ended_seconds, 3),
                "failure": ended.failure,
            }
            for ended in status.ended
        ],
    }


def _job(job: pb.JobStatus) -> dict[str, Any]:
    joined = {rank for worker in job.workers for rank in _ranks(worker)}
    # Which ranks a relay's group has is not known before they join.
    expected = () if job.uplinks else range(job.num_workers)
    joined.update(job.elastic.lost)
    return {
        "name": job.name,
        "num_workers": job.num_workers,
        "keys": job.keys,
        "held_bytes": job.held_bytes,
        "received_bytes": sum(worker.received_bytes for worker in job.workers),
        "sent_bytes": sum(worker.sent_bytes for worker in job.workers),
        "rounds_completed": job.rounds_completed,
        "rounds_waiting": job.rounds_waiting,
        # None if the job is not elastic.
        "elastic": _elastic(job.elastic) if job.HasField("elastic") else None,
        "not_joined": [rank for rank in expected if rank not in joined],
        "workers": [
            {
                "rank": worker.rank,
                "ranks": _ranks(worker),
                "worker": worker.worker,
                "address": _address(worker.peer),
                "state": _state(worker),
                "generation": worker.generation,
                "joined_seconds": round(worker.joined_seconds, 3),
                "way": _plane(worker.plane, data_connection=worker.data_connection),
                "last_heard_seconds": round(worker.last_heard_seconds, 3),
                "behind_seconds": round(worker.behind_seconds, 3),
                "received_bytes": worker.received_bytes,
                "sent_bytes": worker.sent_bytes,
            }
            for worker in job.workers
        ],
        "rounds": [
            {
                "key": waiting.key,
                "label": waiting.label,
                "shard": waiting.shard,
                "round": waiting.round,
                "waiting_seconds": round(waiting.waiting_seconds, 3),
                "waiting_for": list(waiting.waiting_for),
            }
            for waiting in job.rounds
        ],
        "uplinks": [
            {
                "address": uplink.address,
                "state": "connected" if uplink.connected else "not connected",
                "way": _plane(uplink.plane, data_connection=uplink.data_connection) if uplink.connected else "",
                "sent_bytes": uplink.sent_bytes,
                "received_bytes": uplink.received_bytes,
                "outstanding_shards": uplink.outstanding_shards,
            }
            for uplink in job.uplinks
        ],
    }


def _state(worker: pb.WorkerStatus) -> str:
    if worker.left:
        return "left"
    return "lost" if worker.lost else "connected" if worker.connected else "vanished"


def _elastic(elastic: pb.ElasticStatus) -> dict[str, Any]:
    return {
        "min": elastic.min,
        "max": elastic.max,
        "members": elastic.members,
        "lost": list(elastic.lost),
        "losses": elastic.losses,
        "joins": elastic.joins,
        "departures": elastic.departures,
        "changed_seconds": round(elastic.changed_seconds, 3) if elastic.changed_seconds else None,
        "events": [
            {
                "change": pb.MembershipChange.Name(event.change).removeprefix("MEMBERSHIP_CHANGE_").lower(),
                "rank": event.rank,
                "generation": event.generation,
                "text": event.text,
                "seconds_ago": round(event.seconds_ago, 3),
            }
            for event in elastic.events
        ],
        "candidates": [
            {
                "rank": candidate.rank,
                "worker": candidate.worker,
                "address": _address(candidate.peer),
                "waiting_seconds": round(candidate.waiting_seconds, 3),
            }
            for candidate in elastic.candidates
        ],
    }


def _ranks(worker: pb.WorkerStatus) -> list[int]:
    """Return the ranks that a worker stands for: its own, or those of a relay."""
    return list(worker.ranks) or [worker.rank]


def _plane(plane: pb.Plane.ValueType, *, data_connection: bool) -> str:
    """Return the plane of payloads: shm, direct or inline, or "shm, stream" if there is no data connection and messages
    travel on the stream. Empty while there is no plane, because nothing is connected."""
    if not plane:
        return ""
    name = pb.Plane.Name(plane).removeprefix("PLANE_").lower()
    return f"{name}, stream" if plane == pb.PLANE_SHM and not data_connection else name


def _address(peer: str) -> str:
    """Return gRPC's name of a peer without the prefix for the kind of address."""
    return urllib.parse.unquote(peer.removeprefix("ipv4:").removeprefix("ipv6:"))
