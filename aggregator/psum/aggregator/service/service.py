"""The gRPC service of an aggregator: connects streams, jobs, sums and the status."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc

from psum.aggregator.access.admission import Admission
from psum.aggregator.access.handshakes import Handshakes
from psum.aggregator.core.actions import Action, Admit, Refuse
from psum.aggregator.core.budget import Budget
from psum.aggregator.core.job import Job
from psum.aggregator.core.limits import Limits
from psum.aggregator.core.registry import Registry
from psum.aggregator.service.action_runner import ActionRunner
from psum.aggregator.service.connections import Connections
from psum.aggregator.service.data_port import DataPort
from psum.aggregator.service.descriptor_budget import DescriptorBudget, DescriptorMonitor
from psum.aggregator.service.draining import Draining
from psum.aggregator.service.job_memory import JobMemories
from psum.aggregator.service.joining import Joining
from psum.aggregator.service.plane_choice import PlaneChoice
from psum.aggregator.service.registries import Registries
from psum.aggregator.service.status import Status, parse_request
from psum.aggregator.service.stream import Streams
from psum.aggregator.service.ticker import Ticker
from psum.aggregator.settings import Settings
from psum.aggregator.sums.pool import PriorityPool
from psum.planes import is_lent
from psum.runtime import descriptor_limit, open_descriptors
from psum.v1 import aggregator_pb2 as pb

if TYPE_CHECKING:
    from psum.aggregator.relay.relays import Relays

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["AggregatorService"].full_name


class Service:
    """The aggregator's service, to be registered with one gRPC server on the running event loop.

    Args:
        settings: The settings.
        data_port: Where workers may open data connections.
        handshakes: The TLS handshakes in progress; it is told which peers have made a call.
        loop_lag: By how many seconds the event loop was late in the last seconds; for the status.
        clock: The time in seconds that jobs are given; None: the event loop's.
        budget: The memory for sums, if it is shared with other processes.

    Raises:
        ConfigurationError: The token file cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        data_port: DataPort,
        handshakes: Handshakes,
        *,
        loop_lag: Callable[[], float],
        clock: Callable[[], float] | None = None,
        budget: Budget | None = None,
    ) -> None:
        clock = asyncio.get_running_loop().time if clock is None else clock
        self.settings = settings
        self.serving = False
        """Whether its server has been started."""
        self.descriptors = DescriptorBudget(descriptor_limit(), open_descriptors())
        """The file descriptors of this process, and how many of them workers have."""
        self._data_port = data_port
        self._handshakes = handshakes
        self._admission = Admission(settings)
        self._descriptor_monitor = DescriptorMonitor()
        self._job_memories = JobMemories(settings.shm_directory, self.descriptors, settings.shm_limit)
        self.registry = Registry(_limits(settings), self._job_memories.release, is_lent, budget=budget)
        """The jobs."""
        self.connections = Connections()
        """The connections of workers that have joined a job."""
        self._clock = clock
        self._incarnation = incarnation = random.SystemRandom().getrandbits(64)
        self.registries = Registries(self.registry, self._load_relays)
        """The jobs, and those of groups that this process relays for."""
        self._pool = PriorityPool(settings.threads)
        self._runner = ActionRunner(
            self._pool,
            self.connections.get,
            self._job_memories.of,
            self.registries.tell_uplinks,
            self.connections.detach,
            self._decide,
        )
        self._draining = Draining(self.registries, self.connections)
        self._ticker = Ticker(self.registries, self._runner, clock, self._tick)
        self._joining = Joining(
            settings,
            incarnation,
            admission=self._admission,
            registries=self.registries,
            connections=self.connections,
            runner=self._runner,
            descriptors=self.descriptors,
            plane_choice=PlaneChoice(self._job_memories, self.descriptors, data_port),
            clock=clock,
        )
        self._streams = Streams(
            settings,
            self._joining,
            registries=self.registries,
            connections=self.connections,
            runner=self._runner,
            data_port=data_port,
            descriptors=self.descriptors,
            draining=self._draining,
            clock=clock,
            uncredited=self._ticker.tick_soon,
        )
        self._status = Status(
            incarnation,
            registries=self.registries,
            connections=self.connections,
            draining=self._draining,
            admission=self._admission,
            inquire=self._joining.inquire,
            loop_lag=loop_lag,
            clock=clock,
        )

    def handler(self) -> grpc.GenericRpcHandler:
        """The handler for a gRPC server. Messages of Exchange stay bytes, because wire/framing.py parses them."""
        return grpc.method_handlers_generic_handler(
            _SERVICE,
            {
                "Exchange": grpc.stream_stream_rpc_method_handler(self._exchange),
                "GetStatus": grpc.unary_unary_rpc_method_handler(
                    self._get_status,
                    request_deserializer=parse_request,
                    response_serializer=pb.GetStatusResponse.SerializeToString,
                ),
            },
        )

    def listening_on(self, addresses: Sequence[str], processes: Sequence[Sequence[str]] = ()) -> None:
        """Notes where the server listens, for the status and for warnings.

        Args:
            addresses: The addresses.
            processes: Of each process of this aggregator its addresses, if this is the first one of several.
        """
        self._status.addresses = self._joining.addresses = addresses
        self._status.processes = processes

    def status(self) -> pb.GetStatusResponse:
        """The status of the aggregator with all its jobs."""
        return self._status.all()

    def queued_messages(self) -> Counter[str]:
        """How many messages wait to be sent, by the name of the job."""
        return self.connections.queued_messages(self.registries.jobs())

    def refused_connections(self) -> dict[tuple[str, str], int]:
        """How many connections were closed before they belonged to a worker, by port ("grpc", "data") and kind."""
        ports = {"grpc": self._handshakes.refused, "data": self._data_port.refused}
        return {(port, kind): count for port, refused in ports.items() for kind, count in refused.counts.items()}

    @property
    def draining(self) -> bool:
        """Whether it is about to end, and accepts no streams."""
        return self._draining.begun

    @property
    def ready(self) -> bool:
        """Whether workers may connect."""
        return self.serving and not self.draining and not self.full

    @property
    def full(self) -> bool:
        """Whether there is no file descriptor for another worker."""
        return not self.descriptors.left

    @property
    def waiting_sums(self) -> int:
        """How many sums wait for a thread."""
        return self._pool.waiting

    async def drain(self, grace: float) -> None:
        """Finishes the open rounds within `grace` seconds, and begins no others: workers keep them for the next
        process."""
        self.registries.end_inquiries()
        self._joining.end_waiting()
        await self._draining.run(grace)

    async def close(self) -> None:
        """Ends the service after its server has stopped."""
        self._descriptor_monitor.close()
        await self._ticker.close()
        await self.registries.close()
        await asyncio.get_running_loop().run_in_executor(None, self._pool.close)
        self._job_memories.close()

    def _load_relays(self) -> Callable[[], "Relays"]:
        """Imports what relays need; returns what makes them. In any thread."""
        from psum.aggregator.relay.relays import Relays

        return partial(
            Relays,
            self.settings,
            self._incarnation,
            limits=_limits(self.settings),
            budget=self.registry.budget,
            released=self._job_memories.release,
            lent=is_lent,
            clock=self._clock,
            perform=self._perform,
            descriptors=self._take_descriptors,
        )

    def _perform(self, job: Job, actions: Sequence[Action]) -> None:
        """Carries out actions that follow from what other aggregators have sent."""
        self._runner.perform(job, actions)
        if job.credit.pending:
            self._ticker.tick_soon()
        if job.failure is not None:
            self.registries.settle(job, self._clock())

    def _decide(self, job: Job, action: Admit | Refuse) -> None:
        self._joining.decide(job, action)

    def _tick(self) -> None:
        self._handshakes.tick()
        self._joining.refuse_overdue()

    def _take_descriptors(self, count: int) -> bool:
        """Takes file descriptors for connections to other aggregators, if there are as many; or gives them back."""
        if count > 0 and not self.descriptors.fits(count):
            return False
        self.descriptors.take(count)
        return True

    async def _exchange(self, _requests: AsyncIterator[bytes], context: Any) -> None:
        self._handshakes.called(context.peer())
        if self.draining:
            # Clients try again after this code, until the next process accepts them.
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this aggregator is about to end")
        if (refusal := self._admission.enter(context.peer())) is not None:
            self.registry.counters.refusals["exhausted"] += 1
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, refusal)
        try:
            await self._streams.serve(context)
        finally:
            self._admission.leave(context.peer())

    async def _get_status(self, request: pb.GetStatusRequest | None, context: Any) -> pb.GetStatusResponse:
        self._handshakes.called(context.peer())
        return await self._status.get(request, context)


def _limits(settings: Settings) -> Limits:
    return Limits(
        worker_timeout=settings.worker_timeout,
        closed_timeout=settings.closed_timeout,
        elastic_timeout=settings.elastic_timeout,
        elastic_closed_timeout=settings.elastic_closed_timeout,
        round_timeout=settings.round_timeout,
        warn_after=settings.warn_after,
        max_shards=settings.max_shards,
        max_jobs=settings.max_jobs,
        memory_budget=settings.memory_budget,
    )
