"""The state of a job for operators."""

import itertools
from typing import Final

from psum.aggregator.core.job import Job
from psum.v1 import aggregator_pb2 as pb

#: The most waiting rounds that are listed, the oldest first.
_MAX_ROUNDS: Final = 64


def job_status(job: Job, now: float) -> pb.JobStatus:
    """The state of a job, with its oldest waiting rounds and the ranks that they wait for."""
    rounds = [
        pb.RoundStatus(
            key=key.name,
            label=key.label,
            shard=index,
            round=shard.round,
            waiting_seconds=now - (shard.since or now),
            waiting_for=shard.waiting_for(),
        )
        for index, key, shard in itertools.islice(job.waiting_shards(), _MAX_ROUNDS)
    ]
    behind: dict[int, float] = {}
    for round in rounds:
        for rank in round.waiting_for:
            if (member := job.members.roster.member(rank)) is not None:
                behind[member] = max(round.waiting_seconds, behind.get(member, 0.0))
    members = sorted(job.workers.items(), key=lambda item: item[1].ranks)
    status = pb.JobStatus(
        name=job.name,
        num_workers=job.num_workers,
        workers=[
            pb.WorkerStatus(
                rank=worker.ranks[0],
                worker=worker.hello.worker,
                peer=worker.peer,
                connected=worker.connected,
                last_heard_seconds=now - worker.last_heard,
                received_bytes=worker.received_bytes,
                sent_bytes=worker.sent_bytes,
                left=worker.left,
                behind_seconds=behind.get(member, 0.0),
                ranks=worker.hello.ranks,
                joined_seconds=now - worker.joined,
            )
            for member, worker in members
        ],
        keys=len(job.keys),
        held_bytes=job.held_bytes,
        rounds_completed=job.rounds.completed,
        rounds_waiting=job.rounds_waiting,
        rounds=rounds,
    )
    if (elastic := job.elastic_status(now)) is not None:
        status.elastic.CopyFrom(elastic)
        for row, (_, worker) in zip(status.workers, members, strict=True):
            row.lost = set(worker.ranks) <= set(elastic.lost)
            row.generation = worker.hello.generation
    return status
