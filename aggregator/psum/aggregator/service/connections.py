"""The connections of all workers that have joined a job."""

from collections import Counter
from collections.abc import Iterable, Iterator

from psum.aggregator.core.job import Job
from psum.aggregator.service.connection import WorkerConnection
from psum.v1 import aggregator_pb2 as pb


class Connections:
    """The connection of each connected worker, by its job and rank.

    Jobs are told apart by identity: two jobs of one name may exist while the first one ends.
    """

    def __init__(self) -> None:
        self._connections: dict[tuple[int, int], WorkerConnection] = {}
        """By the job's id() and the rank."""

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[WorkerConnection]:
        return iter(self._connections.values())

    def get(self, job: Job | None, rank: int) -> WorkerConnection | None:
        """The connection of a job's rank; None if it is not connected."""
        return self._connections.get((id(job), rank))

    def add(self, job: Job, rank: int, connection: WorkerConnection) -> None:
        """Adds a worker's connection, and closes the one that it replaces, if any."""
        if (replaced := self.get(job, rank)) is not None:
            # The worker reconnected before the end of its old connection was noticed.
            replaced.abandon()
        self._connections[id(job), rank] = connection

    def remove(self, job: Job, rank: int, connection: WorkerConnection) -> bool:
        """Removes a worker's connection. Returns False if another one has replaced it."""
        if self.get(job, rank) is not connection:
            return False
        del self._connections[id(job), rank]
        return True

    def detach(self, job: Job, rank: int) -> None:
        """Removes the connection of a rank whose process is out. It ends when its last messages have been sent."""
        if (connection := self._connections.pop((id(job), rank), None)) is not None:
            connection.finish()

    def by_job(self) -> Iterator[tuple[int, WorkerConnection]]:
        """Each connection with the id() of its job."""
        for (job_id, _), connection in self._connections.items():
            yield job_id, connection

    def send_to_all(self, job: Job, message: pb.ExchangeResponse) -> None:
        """Sends a message without payload to all connected workers of a job."""
        for job_id, connection in self.by_job():
            if job_id == id(job):
                connection.say(message)

    def queued_messages(self, jobs: Iterable[Job]) -> Counter[str]:
        """How many messages wait to be sent to the workers of these jobs, by the job's name."""
        names = {id(job): job.name for job in jobs}
        queued: Counter[str] = Counter()
        for job_id, connection in self.by_job():
            if job_id in names:
                queued[names[job_id]] += len(connection.queue)
        return queued
