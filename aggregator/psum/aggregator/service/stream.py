"""The life of one worker's stream: from the call of Exchange to the last message."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import grpc

from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.job import Job
from psum.aggregator.service.action_runner import ActionRunner
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.connections import Connections
from psum.aggregator.service.data_port import DataPort
from psum.aggregator.service.descriptor_budget import DescriptorBudget
from psum.aggregator.service.draining import Draining
from psum.aggregator.service.joining import Joining
from psum.aggregator.service.receiver import Receiver
from psum.aggregator.service.registries import Registries
from psum.aggregator.settings import Settings
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb
from psum.wire import DATA_CONNECTION_BROKE
from psum.wire.errors import FaultError, InvalidError, ProtocolError

_log = logging.getLogger(__name__)

#: How long a peer may take to end the stream after the last message to it.
_LAST_MESSAGE_SECONDS = 2.0


class Streams:
    """Serves the streams of workers, each in one call of `serve`.

    Args:
        settings: The aggregator's settings.
        joining: Makes the peer of a stream a worker.
        registries: The jobs.
        connections: The connections of workers.
        runner: Carries out the jobs' actions.
        data_port: Where workers may open data connections.
        descriptors: The process's file descriptors.
        draining: Tells whether this process is about to end.
        clock: The time in seconds that jobs are given.
        uncredited: Called when a contribution counts against a worker's credit that may have to be returned soon.
    """

    def __init__(
        self,
        settings: Settings,
        joining: Joining,
        *,
        registries: Registries,
        connections: Connections,
        runner: ActionRunner,
        data_port: DataPort,
        descriptors: DescriptorBudget,
        draining: Draining,
        clock: Callable[[], float],
        uncredited: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._joining = joining
        self._registries = registries
        self._connections = connections
        self._runner = runner
        self._data_port = data_port
        self._descriptors = descriptors
        self._draining = draining
        self._clock = clock
        self._uncredited = uncredited

    async def serve(self, context: Any) -> None:
        """Serves one stream until it ends.

        Args:
            context: The stream's grpc.aio.ServicerContext.
        """
        loop = asyncio.get_running_loop()
        connection = WorkerConnection()
        sender = loop.create_task(connection.send(context))
        receiver: asyncio.Task[None] | None = None
        joined: tuple[Job, int] | None = None
        candidate: Candidate | None = None
        first: asyncio.Task[Any] | None = None
        gone, unread, why = False, True, ""
        try:
            # The token is checked before anything is read, so that strangers cannot make the aggregator store data.
            token = self._joining.token(context)
            unread = False
            entered = await self._joining.join(token, connection, context)
            if isinstance(entered, Candidate):
                candidate, first = entered, loop.create_task(context.read())
                if (admitted := await self._await_admission(candidate, first, sender)) is None:
                    return
                entered, candidate = (admitted, candidate.hello.rank), None
            joined = job, rank = entered
            incoming = Receiver(job, rank, connection, self._runner, clock=self._clock, uncredited=self._uncredited)
            receiver = loop.create_task(incoming.receive(context, first))
            await self._converse(connection, receiver, sender)
            if receiver.done():
                receiver.result()
        except ConnectionResetError as error:
            # The stream ends with its data connection, and the worker opens both again. It may not know why otherwise:
            # what is between the two may have ended this side's connection only.
            why = f" ({error})"
            connection.queue.clear()
            context.set_code(grpc.StatusCode[DATA_CONNECTION_BROKE])
            context.set_details(str(error))
        except (FaultError, ProtocolError) as error:
            why = " (it broke the protocol, and was told so)"
            self._refuse(error, context.peer(), joined, connection)
        except BaseException:
            gone = True
            raise
        finally:
            if candidate is not None and (job_joined := self._joining.withdraw(candidate)) is not None:
                # It was let in, and its stream has ended at once.
                joined = job_joined, candidate.hello.rank
            if joined is not None:
                self._depart(*joined, connection, why)
            self._descriptors.end(connection.descriptors)
            try:
                await self._send_rest(connection, sender, gone=gone)
                if connection.recalled and receiver is not None:
                    receiver.cancel()
                    await asyncio.gather(receiver, return_exceptions=True)
                elif receiver is not None or (unread and not gone):
                    await self._await_end(receiver)
            finally:
                # gRPC may cancel the lines above when the peer is gone.
                self._data_port.uninvite(connection)
                connection.close()
                self._descriptors.give(connection.descriptors, ended=True)
                if first is not None and receiver is None:
                    first.cancel()
                # Exceptions of these tasks refer to this frame. Without this, a reference cycle would keep the
                # connection and its memory.
                del receiver, sender, first

    async def _await_admission(
        self, candidate: Candidate, reading: "asyncio.Task[Any]", sender: "asyncio.Task[None]"
    ) -> Job | None:
        """Waits until a process is admitted, refused, or gone.

        Args:
            candidate: The process.
            reading: Reads its next message, which only a member may send.
            sender: Ends when this process of the aggregator is about to end.

        Returns:
            The job that it has joined; None if the stream has ended.

        Raises:
            FaultError: It is refused.
            ProtocolError: It did not wait.
        """
        decision = self._joining.decision(candidate)
        await asyncio.wait((decision, reading, sender), return_when=asyncio.FIRST_COMPLETED)
        if decision.done():
            decided = decision.result()
            if isinstance(decided, FaultError):
                raise decided
            self._joining.withdraw(candidate)
            return decided
        if reading.done() and reading.result() is not grpc.aio.EOF:
            raise ProtocolError(f"{candidate} sent a message while it waited to join job {candidate.hello.job!r}")
        return None

    def _refuse(
        self, error: FaultError | ProtocolError, peer: str, joined: tuple[Job, int] | None, connection: WorkerConnection
    ) -> None:
        """Queues an error as the last message to a peer."""
        if isinstance(error, ProtocolError):
            _log.warning("peer %s: %s", peer, error, extra=_subjects(joined))
        fault = error if isinstance(error, FaultError) else InvalidError(str(error))
        faults = self._registries.fleet.counters.refusals if joined is None else joined[0].counters.faults
        faults[fault.kind] += 1
        connection.finish(pb.ExchangeResponse(fault=fault.to_message()))

    async def _converse(
        self, connection: WorkerConnection, receiver: "asyncio.Task[None]", sender: "asyncio.Task[None]"
    ) -> None:
        """Waits until either direction ends, or a worker does not read its last messages within the hello timeout."""
        while True:
            closing = connection.closing
            # If the job fails, the sender ends first, and nothing more needs to be received.
            done, _ = await asyncio.wait(
                (receiver, sender), timeout=self._settings.hello_timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if done or closing:
                return

    async def _send_rest(self, connection: WorkerConnection, sender: "asyncio.Task[None]", *, gone: bool) -> None:
        """Sends the messages that are still queued, such as a fault or the farewell, unless the peer is gone."""
        connection.finish()
        if gone:
            sender.cancel()
        try:
            async with asyncio.timeout(self._settings.hello_timeout):
                await sender
        except (TimeoutError, asyncio.CancelledError):
            sender.cancel()
        except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError, ConnectionResetError) as error:
            _log.debug("the last messages to a peer could not be sent: %r", error)
        except Exception as error:
            _log.log(logging.DEBUG if gone else logging.ERROR, "sending to a peer failed: %r", error)

    @staticmethod
    async def _await_end(receiver: "asyncio.Task[None] | None") -> None:
        """Waits until the peer ends the stream after the last message, but only for a short time.

        If this side ended the stream while the peer sends, gRPC would report a broken stream to the peer, and not
        deliver the last message. A worker that has left would take that for a lost connection and come back, and a
        refused one would not know why, and try again. From a peer without a token nothing is read; gRPC cancels this
        call when that peer ends the stream.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_MESSAGE_SECONDS):
                if receiver is None:
                    await asyncio.get_running_loop().create_future()
                else:
                    await asyncio.gather(receiver, return_exceptions=True)

    def _depart(self, job: Job, rank: int, connection: WorkerConnection, why: str) -> None:
        """Tells the job that a worker's stream has ended, unless the worker has another one already."""
        if not self._connections.remove(job, rank, connection):
            return
        worker, now = job.workers[rank], self._clock()
        closed = job.members.was_closed(worker, now, self._settings.keepalive)
        actions = job.lost(rank, now, closed=closed)
        ranks = rank_names(worker.ranks)
        if worker.left or job.failure is not None:
            pass
        elif self._draining.begun:
            _log.info("job %s: %s, %s, was disconnected, to go on with the next process here", job.name, ranks, worker)
        else:
            _log.warning(
                "job %s: %s, %s, vanished%s; its place is kept for %g s",
                job.name,
                ranks,
                worker,
                why,
                job.members.kept_seconds(worker),
            )
        self._runner.perform(job, actions)
        self._registries.settle(job, now)


def _subjects(joined: tuple[Job, int] | None) -> dict[str, object]:
    """The job and rank that a log line is about, as fields for programs."""
    return {} if joined is None else {"job": joined[0].name, "rank": joined[1]}
