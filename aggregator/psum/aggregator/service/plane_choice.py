"""Chooses how a worker's large payloads travel: the best plane that both sides can use."""

from collections.abc import Sequence

from psum.aggregator.core.job import Job
from psum.aggregator.core.registry import Registry
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.connections import Connections
from psum.aggregator.service.data_port import DataPort
from psum.aggregator.service.descriptor_budget import DescriptorBudget
from psum.aggregator.service.shared_memory import SharedMemories
from psum.v1 import aggregator_pb2 as pb


class PlaneChoice:
    """Chooses planes for workers that join.

    Args:
        descriptors: The process's file descriptors.
        shared_memories: The memory that is shared with workers.
        data_port: Where workers may open data connections.
        registry: The jobs.
        connections: The connections of workers.
    """

    def __init__(
        self,
        descriptors: DescriptorBudget,
        shared_memories: SharedMemories,
        data_port: DataPort,
        registry: Registry,
        connections: Connections,
    ) -> None:
        self.addresses: Sequence[str] = ()
        """Where the server listens; empty before it does."""
        self._descriptors = descriptors
        self._shared_memories = shared_memories
        self._data_port = data_port
        self._registry = registry
        self._connections = connections

    def choose(self, job: Job, hello: pb.Hello, connection: WorkerConnection, welcome: pb.Welcome) -> str | None:
        """Chooses a plane, and adds to the welcome what the worker needs for it.

        Returns:
            Why no better plane than the stream could be chosen, if this process lacks descriptors for it; else None.
        """
        if not set(hello.planes) - {pb.PLANE_INLINE}:
            return None
        missing = max(0, sum(job.num_workers for job in self._registry.jobs.values()) - len(self._connections))
        needed = self._shared_memories.needs(job, hello) + bool(self._data_port.port)
        # It is better that all workers can connect, if only with a stream, than that some cannot connect at all.
        if not self._descriptors.fits(needed, leaving=missing):
            return self._descriptors.lack(
                f"rank {hello.rank} has only its stream to {', '.join(self.addresses)}, which is slower"
            )
        if self._shared_memories.accept(job, hello, connection, welcome):
            welcome.plane = pb.PLANE_SHM
        elif pb.PLANE_DIRECT in hello.planes and self._data_port.port:
            welcome.plane = pb.PLANE_DIRECT
        if welcome.plane != pb.PLANE_INLINE and self._data_port.port:
            welcome.data_port, welcome.data_secret = self._data_port.port, self._data_port.invite(connection)
            welcome.data_answers = True
            connection.descriptors += 1
            self._descriptors.take(1)
        return None
