"""A worker's membership in its job: joining, staying and leaving at every aggregator."""

import asyncio
import secrets
from collections.abc import Callable, Collection, Sequence

from psum.client.core.placement import RULE
from psum.client.core.session import Session
from psum.client.joining import join
from psum.client.observe import process_name
from psum.client.settings import Settings
from psum.client.transport.connection import AggregatorConnection
from psum.client.transport.credentials import Credentials
from psum.client.transport.plane_offers import PlaneOffers
from psum.planes import GrowingSegment, Plane
from psum.v1 import aggregator_pb2 as pb
from psum.wire import PROTOCOL_VERSION
from psum.wire.errors import FaultError


class Membership:
    """The connections of one worker. Its coroutines and `recall` run on the client's event loop.

    Args:
        settings: The worker's settings.
        session: What gives the connections their messages, and takes those received.
        planes: The planes to offer to aggregators, the best first.
        settle: Called after a connection has received messages.
        fail: Called with the error that ends a connection for good.

    Attributes:
        connections: The connections, one for each aggregator. Empty before the worker has joined.
    """

    def __init__(
        self,
        settings: Settings,
        session: Session,
        *,
        planes: Sequence[Plane],
        settle: Callable[[], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self.connections: Sequence[AggregatorConnection] = ()
        self._settings = settings
        self._session = session
        self._planes = planes
        self._settle = settle
        self._fail = fail
        self._incarnation = 0
        """The number of this worker's last attempt to join, by which aggregators know it again."""
        self._is_leaving_early = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def planes(self) -> tuple[str, ...]:
        """The plane that was agreed on with each aggregator: 'shm', 'direct' or 'inline'."""
        return tuple(each.plane_name for each in self.connections if each.plane_name)

    async def join(self, staging: GrowingSegment | None, *, waits_for_rank: bool) -> None:
        """Connects to all aggregators, and keeps the connections up until `leave`.

        Args:
            staging: Memory that aggregators on this host may read contributions from; None if there is none.
            waits_for_rank: Whether to wait while another process has the rank, which may be about to end.

        Raises:
            ConnectError: An aggregator was not reached in time, or one side does not trust the other.
            FaultError: An aggregator refused this worker.
            ConfigurationError: A file for TLS or the token file cannot be used.
        """
        settings = self._settings
        credentials = Credentials.of(settings)
        credentials.check()
        planes = PlaneOffers(settings, self._planes, staging)

        def make() -> Sequence[AggregatorConnection]:
            self._incarnation = secrets.randbits(64)
            self.connections = [
                AggregatorConnection(
                    index,
                    address,
                    self._session,
                    credentials=credentials,
                    keepalive=settings.keepalive,
                    hello=self._hello,
                    planes=planes,
                    settle=self._settle,
                )
                for index, address in enumerate(settings.aggregators)
            ]
            return self.connections

        try:
            await join(make, settings, waits=waits_for_rank)
        except BaseException:
            self.connections = ()
            raise
        if self._is_leaving_early:
            # The process is ending, and must not begin anything.
            await asyncio.Event().wait()
        self._tasks = [asyncio.create_task(self._keep_up(connection)) for connection in self.connections]

    async def leave(self, patience: float) -> None:
        """Says goodbye to all aggregators, and waits for their answers for at most so many seconds."""
        for connection in self.connections:
            await connection.leave()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)
        for connection in self.connections:
            await connection.abandon()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def leave_early(self, fault: FaultError) -> None:
        """Tells all aggregators that this worker ends before its work is done, and waits until they have heard it.

        The job fails with this fault for all ranks, unless this worker has taken part in no round yet.
        """
        goodbye = pb.Goodbye(fault=fault.to_message(), replaceable=not self._session.took_part)
        self._is_leaving_early = True
        for connection in self.connections:
            connection.part(goodbye)
        await asyncio.gather(*(connection.parted() for connection in self.connections), return_exceptions=True)

    def pass_on(self, fault: FaultError) -> None:
        """Tells all aggregators what has ended the job at one of them.

        Otherwise the others would still have a job in progress, and could let a replaced process into it.
        """
        for connection in self.connections:
            connection.part(pb.Goodbye(fault=fault.to_message()))

    def recall(self, aggregators: Collection[int]) -> None:
        """Stops sending, to these aggregators, memory that is no longer this worker's to send."""
        for connection in self.connections:
            if connection.index in aggregators:
                connection.recall()

    async def _keep_up(self, connection: AggregatorConnection) -> None:
        try:
            try:
                await connection.run(self._settings.reconnect_timeout)
            finally:
                await connection.abandon()
        except Exception as error:
            # Nobody else would complete the operations.
            self._fail(error)

    def _hello(self, aggregator: int, resuming: bool) -> pb.Hello:
        settings = self._settings
        return pb.Hello(
            protocol_version=PROTOCOL_VERSION,
            job=settings.job,
            rank=settings.rank,
            num_workers=settings.num_workers,
            incarnation=self._incarnation,
            partition_bytes=settings.shard_bytes,
            aggregators=settings.aggregators,
            weights=settings.weights,
            aggregator_index=aggregator,
            worker=process_name.name(),
            age_seconds=process_name.age_seconds(),
            resuming=resuming,
            placement=RULE,
        )
