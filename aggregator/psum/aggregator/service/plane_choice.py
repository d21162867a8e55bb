"""Chooses how a worker's large payloads travel: the best plane that both sides can use."""

from psum.aggregator.core.job import Job
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.data_port import DataPort
from psum.aggregator.service.descriptor_budget import DescriptorBudget
from psum.aggregator.service.shared_memory import SharedMemories
from psum.aggregator.sums.arena import Arena
from psum.planes import DEFAULT_LIMIT, Limit
from psum.v1 import aggregator_pb2 as pb


class PlaneChoice:
    """Chooses planes for workers that join, and keeps each job's shared memory for sums.

    Args:
        directory: Where shared memory is kept.
        descriptors: The process's file descriptors.
        data_port: Where workers may open data connections.
        limit: How far psum may fill the file system of the directory.
    """

    def __init__(
        self, directory: str, descriptors: DescriptorBudget, data_port: DataPort, limit: Limit = DEFAULT_LIMIT
    ) -> None:
        self._descriptors = descriptors
        self._shared_memories = SharedMemories(directory, descriptors, limit)
        self._data_port = data_port

    def choose(
        self, job: Job, hello: pb.Hello, connection: WorkerConnection, welcome: pb.Welcome, *, awaited: int
    ) -> bool:
        """Gives a worker the best plane that both sides have, and completes the welcome.

        Args:
            job: The worker's job.
            hello: The worker's hello.
            connection: The worker's connection.
            welcome: The answer to the hello.
            awaited: How many workers are not connected yet. Descriptors for their streams are left: it is better that
                all workers can connect, if only with a stream, than that some cannot connect at all.

        Returns:
            Whether there are enough file descriptors for a better plane than the stream.
        """
        if not set(hello.planes) - {pb.PLANE_INLINE}:
            return True
        needed = self._shared_memories.needs(job, hello) + bool(self._data_port.port)
        if not self._descriptors.fits(needed, leaving=awaited):
            return False
        if self._shared_memories.accept(job, hello, connection, welcome):
            welcome.plane = pb.PLANE_SHM
        elif pb.PLANE_DIRECT in hello.planes and self._data_port.port:
            welcome.plane = pb.PLANE_DIRECT
        if welcome.plane != pb.PLANE_INLINE and self._data_port.port:
            welcome.data_port, welcome.data_secret = self._data_port.port, self._data_port.invite(connection)
            welcome.data_answers = True
            connection.descriptors += 1
            self._descriptors.take(1)
        return True

    def arena(self, job: Job) -> Arena | None:
        """The shared memory for a job's sums; None if none of its workers shares memory."""
        return self._shared_memories.arena(job)

    def release(self, job: Job) -> None:
        """Releases the memory of a job that has ended."""
        self._shared_memories.release(job)

    def close(self) -> None:
        """Releases all memory."""
        self._shared_memories.close()
