"""Which plane each worker gets."""

import logging

from psum.aggregator.core.job import Job
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.data_port import DataPort
from psum.aggregator.service.descriptor_budget import DescriptorBudget
from psum.aggregator.service.job_memory import JobMemories
from psum.planes import PLANES, AggregatorPlane, Arena, PlaneError
from psum.v1 import aggregator_pb2 as pb

_log = logging.getLogger(__name__)


class PlaneChoice:
    """Gives each worker the best plane that both sides have.

    Args:
        memories: The shared memory of each job.
        descriptors: The file descriptors of this process.
        data_port: Where workers may open data connections.
    """

    def __init__(self, memories: JobMemories, descriptors: DescriptorBudget, data_port: DataPort) -> None:
        self._memories = memories
        self._descriptors = descriptors
        self._data_port = data_port

    def choose(
        self, job: Job, hello: pb.Hello, connection: WorkerConnection, welcome: pb.Welcome, *, workers_to_come: int
    ) -> bool:
        """Gives a worker the best plane that both sides have, and completes the welcome.

        Args:
            job: The worker's job.
            hello: The worker's hello.
            connection: The worker's connection, which gets the plane and its file descriptors.
            welcome: The answer.
            workers_to_come: How many workers have not joined yet. There must be file descriptors for their streams: it
                is better that all workers send messages than that some cannot join.

        Returns:
            Whether there are enough file descriptors for a better plane than messages.
        """
        offered = [plane for plane in PLANES if plane.kind in hello.planes]
        if not {plane.kind for plane in offered} - {pb.PLANE_INLINE}:
            return True
        host = _Host(self._memories, self._data_port.port, job, hello.rank)
        needed = max(plane.needs(hello, host) for plane in offered) + bool(self._data_port.port)
        if not self._descriptors.fits(needed, leaving=workers_to_come):
            return False
        for plane in offered:
            try:
                accepted = plane.accept(hello, welcome, host)
            except PlaneError as error:
                host.without(f"plane {plane.name}", error)
                continue
            if accepted is not None:
                welcome.plane = plane.kind
                self._use(accepted, connection, welcome)
                break
        return True

    def _use(self, plane: AggregatorPlane, connection: WorkerConnection, welcome: pb.Welcome) -> None:
        connection.plane = plane
        descriptors = plane.descriptors
        if plane.uses_data_connection and self._data_port.port:
            welcome.data_port, welcome.data_secret = self._data_port.port, self._data_port.invite(connection)
            welcome.data_answers = welcome.data_follows = True
            descriptors += 1
        connection.descriptors += descriptors
        self._descriptors.take(descriptors)


class _Host:
    """What planes that accept one worker may use."""

    def __init__(self, memories: JobMemories, data_port: int, job: Job, rank: int) -> None:
        self.shm_directory = memories.directory
        self.data_port = data_port
        self._memories = memories
        self._job = job
        self._rank = rank

    @property
    def has_memory(self) -> bool:
        return self._memories.of(self._job) is not None

    def memory(self) -> Arena:
        return self._memories.make(self._job)

    def without(self, what: str, error: PlaneError) -> None:
        level = logging.WARNING if error.scarce else logging.DEBUG
        _log.log(level, "job %s: rank %d goes on without %s: %s", self._job.name, self._rank, what, error)
