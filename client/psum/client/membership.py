"""A worker's membership in its job: joining, staying and leaving at every aggregator, or at its relay."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Sequence

from psum.client.core.session import Session
from psum.client.joining import join
from psum.client.observe import process_name
from psum.client.route import Route
from psum.client.settings import Settings
from psum.client.transport.beats import ELASTIC_KEEPALIVE
from psum.client.transport.connection import AggregatorConnection
from psum.client.transport.credentials import Credentials
from psum.client.transport.own_aggregators import own_aggregators
from psum.client.transport.plane_offers import PlaneOffers
from psum.client.transport.vouching import Vouching
from psum.planes import NAMES, GrowingSegment, Plane
from psum.v1 import aggregator_pb2 as pb
from psum.wire import PLACEMENT_BY_ROLES, PLACEMENT_BY_WEIGHTS, PROTOCOL_VERSION, canonical
from psum.wire.errors import ConnectError, ExcludedError, FaultError

_log = logging.getLogger(__name__)


class Membership:
    """The connections of one worker. Its coroutines and `recall` run on the client's event loop.

    Args:
        settings: The worker's settings.
        route: Where it connects to.
        session: What gives the connections their messages, and takes those received.
        by_roles: Whether the aggregators' weights follow from where they run.
        planes: The planes to offer to aggregators, the best first.
        settle: Called after a connection has received messages.
        fail: Called with the error that ends a connection for good.

    Attributes:
        connections: The connections, one for each aggregator, or one to the relay. Empty before the worker has joined.
    """

    def __init__(
        self,
        settings: Settings,
        route: Route,
        session: Session,
        *,
        by_roles: bool,
        planes: Sequence[Plane],
        settle: Callable[[], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self.connections: Sequence[AggregatorConnection] = ()
        self._settings = settings
        self._route = route
        self._session = session
        self._by_roles = by_roles
        self._planes = planes
        self._settle = settle
        self._fail = fail
        self._incarnation = 0
        """The number of this worker's last attempt to join, by which aggregators know it again."""
        self._is_leaving_early = False
        self._joining = settings.joining
        """Whether this worker joins a job that runs already."""
        self._admission: asyncio.Task[None] | None = None
        """Waits until the members of such a job have let this worker in; None if it takes part from the beginning."""
        self._tasks: list[asyncio.Task[None]] = []
        self._vouching: asyncio.Task[None] | None = None
        """Tells the owners of shards that this worker lives; None without a relay."""

    @property
    def planes(self) -> tuple[str, ...]:
        """The plane that was agreed on for each connection: 'shm', 'direct' or 'inline'."""
        return tuple(each.plane_name for each in self.connections if each.plane_name)

    @property
    def incarnation(self) -> int:
        """The number of this worker's process, by which aggregators know it again."""
        return self._incarnation

    @property
    def waits_for_admission(self) -> bool:
        """Whether this worker waits until the members of a running job let it in. False again when they have."""
        return self._joining

    async def join(self, staging: GrowingSegment | None, *, waits_for_rank: bool) -> None:
        """Connects to all aggregators, and keeps the connections up until `leave`.

        A worker that joins a running job waits for its admission afterwards, in the background.

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
        planes = PlaneOffers.of(settings, self._planes, staging)

        def make() -> Sequence[AggregatorConnection]:
            self._incarnation = secrets.randbits(64)
            self._session.joins.ask()
            self.connections = [
                AggregatorConnection(
                    index,
                    address,
                    self._session,
                    credentials=credentials,
                    keepalive=min(settings.keepalive, ELASTIC_KEEPALIVE) if settings.elastic else settings.keepalive,
                    hello=self._hello,
                    planes=planes,
                    settle=self._settle,
                    beats=settings.elastic is not None,
                )
                for index, address in enumerate(self._route.connections)
            ]
            return self.connections

        if not self._joining:
            try:
                await self._join(make, waits_for_rank=waits_for_rank)
                return
            except ExcludedError as error:
                if settings.elastic is None:
                    raise
                _log.warning("rank %d joins the running job in place of a lost process: %s", settings.rank, error)
        self._joining = True
        self._session.joins.wait()
        self._admission = asyncio.create_task(self._wait_for_admission(make, waits_for_rank=waits_for_rank))

    async def _wait_for_admission(
        self, make: Callable[[], Sequence[AggregatorConnection]], *, waits_for_rank: bool
    ) -> None:
        try:
            await self._join(make, waits_for_rank=waits_for_rank)
            self._joining = False
            self._session.joins.changed = True
            self._settle()
        except Exception as error:
            self._fail(error)

    async def _join(self, make: Callable[[], Sequence[AggregatorConnection]], *, waits_for_rank: bool) -> None:
        settings = self._settings
        try:
            await join(make, settings, waits=waits_for_rank, asks_again=self._joining)
        except BaseException as error:
            self.connections = ()
            if isinstance(error, ConnectError):
                raise self._route.explained(error) from None
            raise
        if self._is_leaving_early:
            # The process is ending, and must not begin anything.
            await asyncio.Event().wait()
        if self._by_roles:
            self._session.beside = await self._own_aggregators()
            # Workers that share a relay send each byte once together.
            self._session.is_member = not self._route.relay or settings.local_rank == 0
        self._tasks = [asyncio.create_task(self._keep_up(connection)) for connection in self.connections]
        self._vouch()

    async def leave(self, patience: float) -> None:
        """Says goodbye to all aggregators, and waits for their answers for at most so many seconds."""
        if self._admission is not None:
            self._admission.cancel()
            await asyncio.gather(self._admission, return_exceptions=True)
        for connection in self.connections:
            await connection.leave()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)
        for connection in self.connections:
            await connection.abandon()
        # While its relay is away, the place from which this worker leaves is kept for it.
        ending = [*self._tasks, *([] if self._vouching is None else [self._vouching])]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

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

    def share_links(self, shares: Sequence[float]) -> None:
        """Lets each connection use this worker's links as much as its share says."""
        for connection in self.connections:
            connection.share_links(shares[connection.index])

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

    def _vouch(self) -> None:
        """Tells the owners of shards from now on that this worker lives, past its relay.

        Not behind several relays: this worker does not notice if the second one is away, and would be silent.
        """
        settings, route = self._settings, self._route
        if settings.elastic is None or not route.relay or route.next_relays:
            return
        vouching = Vouching(
            settings.aggregators,
            settings.job,
            pb.Alive(rank=settings.rank, incarnation=self._incarnation),
            relay=self.connections[0],
            credentials=Credentials.of(settings),
            goes_on=lambda: self._session.failure is None,
        )
        self._vouching = asyncio.create_task(vouching.run())

    async def _own_aggregators(self) -> frozenset[int]:
        """The indices of the processes of aggregators on this worker's host."""
        # Only processes of one host share memory, also if they have different addresses, as pods do.
        sharing = {canonical(each.address) for each in self.connections if each.plane_name == NAMES[pb.PLANE_SHM]}
        addresses = self._settings.aggregators
        return await own_aggregators(addresses) | {
            i for i, address in enumerate(addresses) if canonical(address) in sharing
        }

    def _hello(self, aggregator: int, resuming: bool) -> pb.Hello:
        settings = self._settings
        hello = pb.Hello(
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
            placement=PLACEMENT_BY_ROLES if self._by_roles else PLACEMENT_BY_WEIGHTS,
            departures=self._session.departures(aggregator) if resuming else (),
        )
        if settings.elastic is not None:
            hello.elastic.min, hello.elastic.max = settings.elastic.minimum, settings.elastic.maximum
            hello.losses.extend(self._session.joins.losses())
            hello.joining = self._joining and not resuming
            hello.generation = self._session.joins.generation
            hello.admissions.extend(self._session.joins.admissions.for_hello(aggregator))
        self._route.describe(hello)
        return hello
