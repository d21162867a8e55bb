"""The status of an aggregator with its jobs, and the call GetStatus that returns it."""

import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from psum.aggregator.access.admission import Admission
from psum.aggregator.core.registry import Registry
from psum.aggregator.service.connections import Connections
from psum.aggregator.service.draining import Draining
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import DeniedError

try:
    VERSION = metadata.version("psum")
except metadata.PackageNotFoundError:
    VERSION = "unknown"


class Status:
    """Composes the status of one aggregator.

    Args:
        incarnation: The number that identifies this process to workers.
        registry: The jobs.
        connections: The connections of workers.
        draining: Tells whether this process is about to end.
        admission: Checks the tokens of callers.
        loop_lag: By how many seconds the event loop was late in the last seconds.
        clock: The time in seconds that jobs are given.
    """

    def __init__(
        self,
        incarnation: int,
        *,
        registry: Registry,
        connections: Connections,
        draining: Draining,
        admission: Admission,
        loop_lag: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self.addresses: Sequence[str] = ()
        """Where the server listens; empty before it does."""
        self.processes: Sequence[Sequence[str]] = ()
        """Of each process of this aggregator its addresses, if this is the first one of several."""
        self._incarnation = incarnation
        self._registry = registry
        self._connections = connections
        self._draining = draining
        self._admission = admission
        self._loop_lag = loop_lag
        self._clock = clock
        self._started = clock()

    def all(self) -> pb.GetStatusResponse:
        """The status with all jobs."""
        return self._compose(*self._registry.status(self._clock(), lambda name: True))

    async def get(self, request: pb.GetStatusRequest | None, context: Any) -> pb.GetStatusResponse:
        """Answers GetStatus with the jobs that the caller asks for and that its token opens.

        Args:
            request: The request; None if it could not be parsed.
            context: The call's grpc.aio.ServicerContext.
        """
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "these bytes are not a psum.v1.GetStatusRequest")
            raise AssertionError("abort raises")
        now = self._clock()
        try:
            token = self._admission.token(context.invocation_metadata() or (), context.peer())
        except DeniedError as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        opens = self._admission.opens(token)
        jobs, ended = self._registry.status(
            now, lambda name: not request.without_jobs and request.job in ("", name) and opens(name)
        )
        return self._compose(jobs, ended)

    def _compose(self, jobs: Sequence[pb.JobStatus], ended: Sequence[pb.EndedJob]) -> pb.GetStatusResponse:
        for job in jobs:
            about = self._registry.jobs.get(job.name)
            for worker in job.workers:
                if (connection := self._connections.get(about, worker.rank)) is not None:
                    worker.plane, worker.data_connection = connection.plane.kind, connection.data_connection is not None
        return pb.GetStatusResponse(
            version=VERSION,
            incarnation=self._incarnation,
            addresses=self.addresses,
            uptime_seconds=self._clock() - self._started,
            cpu_seconds=time.process_time(),
            jobs=jobs,
            ended=ended,
            draining=self._draining.begun,
            memory_reserved_bytes=self._registry.budget.reserved_bytes,
            memory_budget_bytes=self._registry.budget.limit_bytes,
            loop_lag_seconds=self._loop_lag(),
            processes=[pb.Process(addresses=addresses) for addresses in self.processes],
        )


def parse_request(data: bytes) -> pb.GetStatusRequest | None:
    """A request of GetStatus; None if it cannot be parsed. An exception here would write a traceback to the log."""
    try:
        return pb.GetStatusRequest.FromString(data)
    except DecodeError:
        return None
