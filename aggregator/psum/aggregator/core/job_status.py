"""What an operator wants to know of a job."""

import itertools

from psum.aggregator.core.job import Job
from psum.v1 import aggregator_pb2 as pb

#: Rounds that are listed; of those that wait, the oldest.
_MAX_ROUNDS = 64


def job_status(job: Job, now: float) -> pb.JobStatus:
    """The state of a job, with the rounds that wait longest and whom they wait for."""
    rounds = [
        pb.RoundStatus(
            key=key.name,
            label=key.label,
            shard=index,
            round=shard.round,
            waiting_seconds=now - (shard.since or now),
            waiting_for=shard.waiting_for(),
        )
        for (_, index), (key, shard) in itertools.islice(job.waiting.items(), _MAX_ROUNDS)
    ]
    behind: dict[int, float] = {}
    for round in rounds:
        for rank in round.waiting_for:
            behind[rank] = max(round.waiting_seconds, behind.get(rank, 0.0))
    return pb.JobStatus(
        name=job.name,
        num_workers=job.num_workers,
        workers=[
            pb.WorkerStatus(
                rank=rank,
                worker=worker.hello.worker,
                peer=worker.peer,
                connected=worker.connected,
                last_heard_seconds=now - worker.last_heard,
                received_bytes=worker.received_bytes,
                sent_bytes=worker.sent_bytes,
                left=worker.left,
                behind_seconds=behind.get(rank, 0.0),
            )
            for rank, worker in sorted(job.workers.items())
        ],
        keys=len(job.keys),
        held_bytes=job.held_bytes,
        rounds_completed=job.rounds_completed,
        rounds_waiting=len(job.waiting),
        rounds=rounds,
    )
