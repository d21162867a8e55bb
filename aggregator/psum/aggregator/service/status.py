"""The status of an aggregator with its jobs, and the call GetStatus that returns it."""

import time
from collections.abc import Awaitable, Callable, Sequence
from importlib import metadata
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from psum.aggregator.access.admission import Admission
from psum.aggregator.core.job import Job
from psum.aggregator.service.connections import Connections
from psum.aggregator.service.draining import Draining
from psum.aggregator.service.registries import Registries
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import DeniedError, FaultError

try:
    VERSION = metadata.version("psum")
except metadata.PackageNotFoundError:
    VERSION = "unknown"


class Status:
    """Composes the status of one aggregator.

    Args:
        incarnation: The number that identifies this process to workers.
        registries: The jobs.
        connections: The connections of workers.
        draining: Tells whether this process is about to end.
        admission: Checks the tokens of callers.
        inquire: Asks other aggregators for workers of a group; see Joining.
        loop_lag: By how many seconds the event loop was late in the last seconds.
        clock: The time in seconds that jobs are given.
    """

    def __init__(
        self,
        incarnation: int,
        *,
        registries: Registries,
        connections: Connections,
        draining: Draining,
        admission: Admission,
        inquire: Callable[[bytes, pb.Hello, str, float | None], Awaitable[Sequence[pb.Inquiry]]],
        loop_lag: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self.addresses: Sequence[str] = ()
        """Where the server listens; empty before it does."""
        self.processes: Sequence[Sequence[str]] = ()
        """Of each process of this aggregator its addresses, if this is the first one of several."""
        self._incarnation = incarnation
        self._registries = registries
        self._connections = connections
        self._draining = draining
        self._admission = admission
        self._inquire = inquire
        self._loop_lag = loop_lag
        self._clock = clock
        self._started = clock()

    def all(self) -> pb.GetStatusResponse:
        """The status with all jobs."""
        return self._compose(lambda name: True)

    async def get(self, request: pb.GetStatusRequest | None, context: Any) -> pb.GetStatusResponse:
        """Answers GetStatus with the jobs that the caller asks for and that its token opens.

        Args:
            request: The request; None if it could not be parsed.
            context: The call's grpc.aio.ServicerContext.
        """
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "these bytes are not a psum.v1.GetStatusRequest")
            raise AssertionError("abort raises")
        try:
            token = self._admission.token(context.invocation_metadata() or (), context.peer())
        except DeniedError as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        inquiries: Sequence[pb.Inquiry] = ()
        if request.HasField("hello") and not self._draining.begun:
            try:
                inquiries = await self._inquire(token, request.hello, context.peer(), context.time_remaining())
            except FaultError as error:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        opens = self._admission.opens(token)
        status = self._compose(lambda name: not request.without_jobs and request.job in ("", name) and opens(name))
        status.inquiries.extend(inquiries)
        if request.without_jobs and opens(request.job):
            status.vacant_ranks.extend(self._registries.vacant_ranks(request.job))
        if request.HasField("alive") and opens(request.job):
            status.standing = self._registries.vouch(request.job, request.alive, self._clock())
        return status

    def _compose(self, shown: Callable[[str], bool]) -> pb.GetStatusResponse:
        jobs: list[pb.JobStatus] = []
        ended: list[pb.EndedJob] = []
        for registry in self._registries:
            in_progress, over = registry.status(self._clock(), shown)
            ended += over
            for job in in_progress:
                self._add_connections(job, registry.jobs[job.name])
            jobs += in_progress
        fleet = self._registries.fleet
        return pb.GetStatusResponse(
            version=VERSION,
            incarnation=self._incarnation,
            addresses=self.addresses,
            uptime_seconds=self._clock() - self._started,
            cpu_seconds=time.process_time(),
            jobs=jobs,
            ended=ended,
            draining=self._draining.begun,
            memory_reserved_bytes=fleet.budget.reserved_bytes,
            memory_budget_bytes=fleet.budget.limit_bytes,
            loop_lag_seconds=self._loop_lag(),
            processes=[pb.Process(addresses=addresses) for addresses in self.processes],
        )

    def _add_connections(self, status: pb.JobStatus, job: Job) -> None:
        """Adds how payloads travel to the workers of a job and, if it is forwarded, to other aggregators."""
        for worker in status.workers:
            member = job.members.roster.member(worker.rank)
            if (connection := self._connections.get(job, worker.rank if member is None else member)) is not None:
                worker.plane, worker.data_connection = connection.plane.kind, connection.data_connection is not None
        status.uplinks.extend(self._registries.uplinks(job))


def parse_request(data: bytes) -> pb.GetStatusRequest | None:
    """A request of GetStatus; None if it cannot be parsed. An exception here would write a traceback to the log."""
    try:
        return pb.GetStatusRequest.FromString(data)
    except DecodeError:
        return None
