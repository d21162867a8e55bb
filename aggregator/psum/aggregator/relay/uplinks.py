"""The connections of one relay's group to the aggregators that it forwards to."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

from psum.aggregator.core.actions import (
    Action,
    ConnectUplinks,
    LeaveUplinks,
    PartUplinks,
    ReopenUplinks,
    SendUplinks,
    UplinkAction,
)
from psum.aggregator.relay.core.host_job import HostJob
from psum.aggregator.relay.exposure import exposure
from psum.client.transport.beats import ELASTIC_KEEPALIVE
from psum.client.transport.connection import AggregatorConnection
from psum.client.transport.credentials import Credentials
from psum.client.transport.opening import backoff
from psum.client.transport.plane_offers import PlaneOffers
from psum.planes import Limit, Plane
from psum.runtime import HOW_TO_RAISE
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import (
    DeniedError,
    ExhaustedError,
    FaultError,
    InternalError,
    ProtocolError,
    PsumError,
    TakenError,
    UnreachableError,
)

_log = logging.getLogger(__name__)

#: How long the owners may take to hear that a group's job has failed.
_PART_SECONDS: Final = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class UplinkTerms:
    """How a relay connects to other aggregators.

    Attributes:
        credentials: What is shown to them, and asked of them; without the workers' token.
        insecure: Whether a token may travel unencrypted to other machines.
        planes: The planes to offer, the best first; none: there are not enough file descriptors to connect.
        plane: The name of the plane that was asked for, or "auto".
        shm_directory: Where shared memory is kept.
        shm_limit: How full psum may make the file system there.
        credit_bytes: How many bytes may be under way to one aggregator.
        keepalive: Seconds of silence after which an aggregator is probed.
        connect_timeout: Seconds to try for at the start.
        reconnect_timeout: Seconds to try for when a connection was lost.
    """

    credentials: Credentials
    insecure: bool
    planes: Sequence[Plane]
    plane: str
    shm_directory: str
    shm_limit: Limit
    credit_bytes: int
    keepalive: float
    connect_timeout: float
    reconnect_timeout: float


class Uplinks:
    """Connects one group's job to the aggregators that it forwards to. Used on the aggregator's event loop.

    Args:
        job: The group's job.
        terms: How to connect.
        token: Returns the token of the group's workers, which goes on with what they contribute, empty without one;
            None: the terms have the relay's own.
        clock: The time in seconds that jobs are given.
        perform: Carries out the actions that follow for the group's job.
    """

    def __init__(
        self,
        job: HostJob,
        terms: UplinkTerms,
        token: Callable[[], str] | None,
        *,
        clock: Callable[[], float],
        perform: Callable[[HostJob, Sequence[Action]], None],
    ) -> None:
        self.connections: Sequence[AggregatorConnection] = ()
        """One for each uplink; empty before all ranks of the group have joined."""
        self._job = job
        self._terms = terms
        self._credentials = dataclasses.replace(terms.credentials, token=token)
        self._clock = clock
        self._perform = perform
        self._tasks: set[asyncio.Task[None]] = set()
        self._staying: set[int] = set()
        """The uplinks whose aggregator has not let the relay go."""
        self._parting = False
        self._leaving = False
        self._reopened = False
        """Whether something may have been said on earlier connections that must be said again."""

    def tell(self, action: UplinkAction) -> None:
        """Carries out an action of the job."""
        match action:
            case ConnectUplinks():
                self._connect()
            case ReopenUplinks():
                for task in list(self._tasks):
                    task.cancel()
                self._reopened = True
                self._connect()
            case SendUplinks():
                for connection in self.connections:
                    if self._job.uplink.has_messages(connection.index):
                        connection.wake()
            case LeaveUplinks():
                self._leaving = True
                for connection in self.connections:
                    self._begin(connection.leave())
            case PartUplinks(goodbye):
                self._part(goodbye)

    def note_lost(self) -> None:
        """Tells the job which aggregators it is not connected to."""
        self._job.uplink.lost = {connection.index for connection in self.connections if connection.stream is None}

    @property
    def reconnects(self) -> int:
        """How many streams were opened again."""
        return self._job.uplink.counters.reconnects

    def leading_to(self, incarnation: int) -> set[int]:
        """The indices of the uplinks that lead to the process of this number."""
        return {
            connection.index
            for connection in self.connections
            if connection.stream is not None and connection.stream.welcome.incarnation == incarnation
        }

    def status(self) -> list[pb.UplinkStatus]:
        """The state of each connection, for people."""
        uplink = self._job.uplink
        return [
            pb.UplinkStatus(
                address=connection.address,
                connected=connection.stream is not None,
                plane=uplink.windows[index].plane.kind if connection.stream is not None else pb.PLANE_UNSPECIFIED,
                data_connection=connection.stream is not None and connection.stream.data_connection is not None,
                sent_bytes=uplink.sent_bytes[index],
                received_bytes=uplink.received_bytes[index],
                outstanding_shards=uplink.outstanding_shards(index),
            )
            for index, connection in enumerate(self.connections)
        ]

    async def finish(self) -> None:
        """Ends all connections of a job that has ended, as soon as its owners know why it failed."""
        if self._parting and self._tasks:
            # `_part` limits how long that takes.
            await asyncio.wait(list(self._tasks))
        await self.close()

    async def close(self) -> None:
        """Ends all connections at once."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _connect(self) -> None:
        job, terms = self._job, self._terms
        uplink, elastic = job.uplink, job.members.first.HasField("elastic")
        if (refusal := self._exposes_token() or self._lacks_descriptors()) is not None:
            # Not from within the action that connects: the job is in the middle of one.
            asyncio.get_running_loop().call_soon(self._fail, refusal)
            return
        planes = PlaneOffers(
            uplink.title,
            terms.plane,
            terms.planes,
            shm_directory=terms.shm_directory,
            shm_limit=terms.shm_limit,
            credit_bytes=max(terms.credit_bytes, job.members.first.partition_bytes),
        )
        self.connections = [
            AggregatorConnection(
                index,
                address,
                uplink,
                credentials=self._credentials,
                keepalive=min(terms.keepalive, ELASTIC_KEEPALIVE) if elastic else terms.keepalive,
                hello=job.hello,
                planes=planes,
                settle=partial(self._settle, index),
                beats=elastic,
            )
            for index, address in enumerate(uplink.addresses)
        ]
        _log.info("job %s: %s forwards to %s", job.name, uplink.title, ", ".join(uplink.addresses))
        for connection in self.connections:
            self._staying.add(connection.index)
            self._begin(self._keep_up(connection))

    def _exposes_token(self) -> DeniedError | None:
        """Why the workers' token may not go on to some aggregator, None if it may."""
        uplink = self._job.uplink
        what = f"{uplink.title} may not forward job {self._job.name!r} to"
        return exposure(what, uplink.addresses, self._credentials, insecure=self._terms.insecure)

    def _lacks_descriptors(self) -> ExhaustedError | None:
        if self._terms.planes:
            return None
        return ExhaustedError(
            f"{self._job.uplink.title} cannot forward job {self._job.name!r} to {len(self._job.uplink.addresses)}"
            f" aggregators: it needs a file descriptor for each, and has too few left; {HOW_TO_RAISE}, where it is"
            " started"
        )

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_up(self, connection: AggregatorConnection) -> None:
        """Joins the fleet's job at one aggregator, and stays there until the group leaves or its job fails."""
        try:
            await self._join(connection)
            if self._reopened:
                self._job.uplink.reconnected(connection.index)
            if self._job.uplink.let_in(connection.index):
                self.tell(SendUplinks())
            # The welcome of an elastic job has something for the group.
            self._perform(self._job, self._job.heard(self._clock()))
            if self._parting:
                await connection.parted()
            else:
                await connection.run(self._terms.reconnect_timeout)
        except Exception as error:
            self._fail(self._failure(connection.address, error))
        finally:
            await connection.abandon()
        self._staying.discard(connection.index)
        if self._leaving and not self._staying:
            # Every aggregator has let the relay go. So may the last ranks of the group.
            self._perform(self._job, self._job.parted(self._clock()))

    async def _join(self, connection: AggregatorConnection) -> None:
        """Opens the first stream. Waits while another process has the ranks, which may be about to end."""
        give_up = time.monotonic() + self._terms.connect_timeout
        pauses = backoff()
        while True:
            try:
                return await connection.connect(self._terms.connect_timeout)
            except TakenError:
                if self._parting or self._leaving or time.monotonic() >= give_up:
                    raise
            await asyncio.sleep(next(pauses))

    def _failure(self, address: str, error: Exception) -> FaultError:
        """The failure of the group's job if a connection has ended with this error."""
        if isinstance(error, FaultError):
            return error
        if isinstance(error, ProtocolError):
            return InternalError(f"{self._job.uplink.title} does not understand aggregator {address}: {error}")
        if isinstance(error, PsumError):
            return UnreachableError(str(error))
        _log.error("job %s: %s failed", self._job.name, self._job.uplink.title, exc_info=error)
        return InternalError(f"{self._job.uplink.title} failed with aggregator {address}: {error!r}; see its log")

    def _fail(self, failure: FaultError) -> None:
        # Its traceback would keep the frames of the connection.
        failure.__traceback__ = None
        self._perform(self._job, self._job.unreachable(failure, self._clock()))

    def _settle(self, index: int) -> None:
        """Hands on what the last message brought. It may have returned credit for further shards."""
        self._perform(self._job, self._job.heard(self._clock()))
        self.connections[index].wake()

    def _part(self, goodbye: pb.Goodbye) -> None:
        self._parting = True
        for connection in self.connections:
            connection.part(goodbye)
        # An aggregator that cannot be reached, or does not answer, is not waited for.
        for task in list(self._tasks):
            asyncio.get_running_loop().call_later(_PART_SECONDS, task.cancel)
