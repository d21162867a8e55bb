"""The gRPC service: moves messages between streams and jobs."""

import asyncio
import contextlib
import copy
import logging
import random
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from importlib import metadata
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from psum.aggregator.access.admission import Admission
from psum.aggregator.access.handshakes import Handshakes
from psum.aggregator.core.job import Job
from psum.aggregator.core.registry import Registry
from psum.aggregator.observe.loop_monitor import LoopMonitor
from psum.aggregator.service.action_runner import ActionRunner
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.data_port import DataPort
from psum.aggregator.service.descriptor_budget import DescriptorBudget, Watch
from psum.aggregator.service.receiver import Receiver
from psum.aggregator.service.shared_memory import SharedMemories
from psum.aggregator.settings import Settings
from psum.aggregator.sums.pool import PriorityPool
from psum.runtime import descriptor_limit, open_descriptors
from psum.v1 import aggregator_pb2 as pb
from psum.wire import MAX_MESSAGE_BYTES, ShardRound, decode, to_columns
from psum.wire.errors import (
    DeniedError,
    ExhaustedError,
    FaultError,
    InternalError,
    InvalidError,
    ProtocolError,
    TakenError,
)

_log = logging.getLogger(__name__)

_SERVICE = pb.DESCRIPTOR.services_by_name["AggregatorService"].full_name

# How often time-outs are looked for, and how soon credit is returned while some is held.
_TICK_SECONDS = 0.25
_CREDIT_TICK_SECONDS = 0.01

#: The longest hello: room for the addresses of thousands of aggregators.
_MAX_HELLO_BYTES = 1 << 20


# How long a peer may take to end the stream after the last word to it.
_LAST_WORD_SECONDS = 2.0

try:
    VERSION = metadata.version("psum")
except metadata.PackageNotFoundError:
    VERSION = "unknown"

_Context = Any  # grpc.aio.ServicerContext, whose stubs know no streams of bytes


class Service:
    """The aggregator's service, to be registered with one gRPC server on the running event loop.

    Args:
        settings: The settings.
        data_port: Where workers may open data connections.
        handshakes: Who has begun a handshake of TLS, and is to be told who has made a call.

    Raises:
        ConfigurationError: The token file cannot be used.
    """

    def __init__(self, settings: Settings, data_port: DataPort, handshakes: Handshakes) -> None:
        self._data_port = data_port
        self._handshakes = handshakes
        self._admission = Admission(settings)
        self.settings = settings
        self.incarnation = random.SystemRandom().getrandbits(64)
        self.draining = False
        """Whether it is about to end, and takes no new streams."""
        self.serving = False
        """Whether its server has been started."""
        self.addresses: Sequence[str] = ()
        """Where the server listens, once it does; for the status."""
        self.descriptors = DescriptorBudget(descriptor_limit(), open_descriptors())
        """The file descriptors of this process, and which of them workers have."""
        self._watch = Watch()
        self._sharing = SharedMemories(settings.shm_directory, self.descriptors, settings.shm_limit)
        self._registry = Registry(settings, self._sharing.release)
        self._lines: dict[tuple[int, int], WorkerConnection] = {}
        """The lines of connected workers by identity of their job and rank."""
        self._incomplete: weakref.WeakSet[Job] = weakref.WeakSet()
        """Jobs whose workers were told that a rank of theirs was refused."""
        self._pool = PriorityPool(settings.threads)
        self._delivery = ActionRunner(
            self._pool,
            lambda job, rank: self._lines.get((id(job), rank)),
            self._sharing.arena,
        )
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self.pulse = LoopMonitor(self._registry.tallies.totals)
        self._ticker = self._loop.create_task(self._tick())
        self._wake_ticker = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server is given. The messages of Exchange stay bytes: framing.py takes them apart."""
        return grpc.method_handlers_generic_handler(
            _SERVICE,
            {
                "Exchange": grpc.stream_stream_rpc_method_handler(self._exchange),
                "GetStatus": grpc.unary_unary_rpc_method_handler(
                    self._get_status,
                    request_deserializer=_parse_status_request,
                    response_serializer=pb.GetStatusResponse.SerializeToString,
                ),
            },
        )

    def status(self) -> pb.GetStatusResponse:
        """The state of the aggregator with all its jobs."""
        return self._status(*self._registry.status(self._loop.time(), lambda name: True))

    def queued_messages(self) -> Counter[str]:
        """How many messages wait to be sent, by the name of the job."""
        jobs = {id(job): job.name for job in self._registry.jobs.values()}
        queued: Counter[str] = Counter()
        for (job_id, _), line in self._lines.items():
            if job_id in jobs:
                queued[jobs[job_id]] += len(line.outbox)
        return queued

    def refused_connections(self) -> dict[tuple[str, str], int]:
        """How many connections were ended before they belonged to a worker, by port ("grpc", "data") and kind."""
        ports = {"grpc": self._handshakes.refused, "data": self._data_port.refused}
        return {(port, kind): count for port, refused in ports.items() for kind, count in refused.counts.items()}

    @property
    def ready(self) -> bool:
        """Whether workers may come."""
        return self.serving and not self.draining and not self.full

    @property
    def full(self) -> bool:
        """Whether there is no file descriptor for another worker."""
        return not self.descriptors.left

    @property
    def connected(self) -> int:
        """How many workers have a stream open."""
        return len(self._lines)

    @property
    def registry(self) -> Registry:
        """The jobs."""
        return self._registry

    @property
    def waiting_sums(self) -> int:
        """How many sums wait for a thread."""
        return self._pool.waiting

    async def drain(self, grace: float) -> None:
        """Finishes the rounds that are open, and begins no others: workers keep them for the next process.

        Args:
            grace: Seconds that this may take.
        """
        self.draining = True
        begin = self._loop.time()
        open_rounds = {id(job): job.open_rounds() for job in self._registry.jobs.values()}
        if jobs := {job_id for job_id, _ in self._lines}:
            _log.info(
                "draining for up to %g s (PSUM_GRACE): %d open rounds of %d jobs are finished, all others wait for the"
                " next process",
                grace,
                sum(map(len, open_rounds.values())),
                len(jobs),
            )
        for (job_id, _), line in self._lines.items():
            open_here = to_columns([ShardRound(*place) for place in open_rounds.get(job_id, ())])
            line.outbox.put_control(pb.ExchangeResponse(drain=pb.Drain(grace_seconds=grace, open=open_here)))
            line.filled.set()

        def unfinished() -> int:
            jobs = self._registry.jobs.values()
            return sum(len(set(job.open_rounds()) & set(open_rounds.get(id(job), ()))) for job in jobs)

        def busy() -> bool:
            return any(line.outbox for line in self._lines.values()) or unfinished() > 0

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                # Polled, since it changes in many places, and is waited for once in the life of the process.
                while busy():  # noqa: ASYNC110
                    await asyncio.sleep(_CREDIT_TICK_SECONDS)
        if left := unfinished():
            _log.warning("drained for %g s; %d rounds are not finished, the next process makes them again", grace, left)
        elif jobs:
            _log.info("drained in %.1f s", self._loop.time() - begin)

    async def close(self) -> None:
        """Ends the service after its server has stopped."""
        self.pulse.close()
        self._watch.close()
        self._ticker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._ticker
        await self._loop.run_in_executor(None, self._pool.close)
        self._sharing.close()

    async def _exchange(self, _requests: AsyncIterator[bytes], context: _Context) -> None:
        self._handshakes.called(context.peer())
        if self.draining:
            # The code for which a client tries again, until the next process is there.
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this aggregator is about to end")
        if (refusal := self._admission.enter(context.peer())) is not None:
            self._registry.tallies.refusals["exhausted"] += 1
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, refusal)
        try:
            await self._serve(context)
        finally:
            self._admission.leave(context.peer())

    async def _serve(self, context: _Context) -> None:
        line = WorkerConnection()
        sender = self._loop.create_task(line.send(context))
        receiver: asyncio.Task[None] | None = None
        joined: tuple[Job, int] | None = None
        gone, unread, why = False, True, ""
        try:
            # Before anything is read: strangers cannot make the aggregator take in what they send.
            token = self._admission.token(context.invocation_metadata() or (), context.peer())
            unread = False
            hello = await self._receive_hello(context)
            self._admission.permit(token, hello, context.peer())
            await self._admit(hello, line, context)
            job = self._join(hello, line, context.peer())
            joined = job, hello.rank
            listener = Receiver(
                job,
                hello.rank,
                line,
                self._delivery,
                clock=self._loop.time,
                uncredited=self._wake_ticker.set,
            )
            receiver = self._loop.create_task(listener.listen(context))
            await self._converse(line, receiver, sender)
            if receiver.done():
                receiver.result()
        except ConnectionResetError as error:
            # The stream ends with it, and the worker opens both anew.
            why = f" ({error})"
            line.outbox.clear()
        except (FaultError, ProtocolError) as error:
            why = " (it broke the protocol, and was told so)"
            self._refuse(error, context.peer(), joined, line)
        except BaseException:
            gone = True
            raise
        finally:
            if joined is not None:
                self._depart(*joined, line, why)
            try:
                await self._close_line(line, sender, gone=gone)
                if receiver is not None or (unread and not gone):
                    await self._hear_out(receiver)
            finally:
                # Also where gRPC cancels this, since the peer is gone.
                self._data_port.uninvite(line)
                line.close()
                self.descriptors.give(line.descriptors)
                # What they raised holds this frame, which must not hold them: it would be a circle with the line in it.
                del receiver, sender

    def _refuse(
        self, error: FaultError | ProtocolError, peer: str, joined: tuple[Job, int] | None, line: WorkerConnection
    ) -> None:
        """A peer did what it may not do, or is not to go on: that is the last that it is told."""
        if isinstance(error, ProtocolError):
            _log.warning("peer %s: %s", peer, error, extra=_subjects(joined))
        fault = error if isinstance(error, FaultError) else InvalidError(str(error))
        faults = self._registry.tallies.refusals if joined is None else joined[0].tally.faults
        faults[fault.kind] += 1
        line.outbox.clear()
        line.outbox.put_control(pb.ExchangeResponse(fault=fault.to_message()))

    async def _admit(self, hello: pb.Hello, line: WorkerConnection, context: _Context) -> None:
        """Takes a file descriptor for a worker's stream.

        Raises:
            ExhaustedError: There is none. One that comes back is told to try again: some may leave before it gives up.
        """
        replaced = (id(self._registry.jobs.get(hello.job)), hello.rank) in self._lines
        # The stream that another one replaces is about to end.
        if self.descriptors.fits(0 if replaced else 1):
            line.descriptors += 1
            self.descriptors.take(1)
            return
        text = self.descriptors.lack(
            f"rank {hello.rank} of job {hello.job!r} ({hello.worker or context.peer()}) was refused, {len(self._lines)}"
            " workers are connected"
        )
        if hello.resuming:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        _log.warning("%s", text)
        self._tell_peers(hello, text)
        raise ExhaustedError(text, ranks=[hello.rank])

    def _tell_peers(self, hello: pb.Hello, text: str) -> None:
        """A job is going to wait for a rank that was refused: its other workers hear of it, and of the first such rank
        only."""
        job = self._registry.jobs.get(hello.job)
        if job is None or hello.rank in job.workers or job in self._incomplete:
            return
        self._incomplete.add(job)
        for (job_id, _), line in self._lines.items():
            if job_id == id(job):
                line.outbox.put_control(pb.ExchangeResponse(notice=pb.Notice(text=text)))
                line.filled.set()

    async def _converse(
        self, line: WorkerConnection, receiver: "asyncio.Task[None]", sender: "asyncio.Task[None]"
    ) -> None:
        """Waits until there is no more to hear or to say, or a worker does not read the last that it is told."""
        while True:
            closing = line.closing
            # The sender ends first where the job fails: then nothing more is to be heard.
            done, _ = await asyncio.wait(
                (receiver, sender), timeout=self.settings.hello_timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if done or closing:
                return

    def _join(self, hello: pb.Hello, line: WorkerConnection, peer: str) -> Job:
        job, actions, refusal = self._registry.join(hello, peer, self._loop.time())
        for about, action in actions:
            self._delivery.perform(about, [action])
        if job is None or refusal is not None:
            if job is not None and refusal is job.failure:
                # Which was logged when it failed.
                who = hello.worker or "an unnamed worker"
                _log.warning("job %s: refused rank %d, %s (%s), for that reason", job.name, hello.rank, who, peer)
            else:
                # A worker that waits for the end of another process comes again each second.
                again = job is not None and isinstance(refusal, TakenError) and not job.turn_away(hello)
                level = logging.DEBUG if again else logging.WARNING
                _log.log(level, "job %s: refused rank %d: %s", hello.job, hello.rank, refusal)
            # A job keeps why it failed: that must not hold the frames through which it is raised here.
            raise copy.copy(refusal or InternalError("refused without a reason"))
        if (replaced := self._lines.get((id(job), hello.rank))) is not None:
            # The same worker on a new connection, before the end of the old one was noticed.
            replaced.outbox.clear()
            replaced.closing = True
            replaced.filled.set()
        self._lines[id(job), hello.rank] = line
        job.tally.reconnects += hello.resuming
        did = "came back" if hello.resuming else "joined"
        worker = job.workers[hello.rank]
        _log.info("job %s: rank %d of %d %s, %s", job.name, hello.rank, job.num_workers, did, worker)
        welcome = self._welcome()
        lack = self._choose_plane(job, hello, line, welcome)
        line.outbox.put_control(pb.ExchangeResponse(welcome=welcome))
        if lack is not None:
            _log.warning("job %s: %s", job.name, lack)
            line.outbox.put_control(pb.ExchangeResponse(notice=pb.Notice(text=lack)))
        line.filled.set()
        return job

    def _choose_plane(self, job: Job, hello: pb.Hello, line: WorkerConnection, welcome: pb.Welcome) -> str | None:
        """The best that both sides have; the welcome tells the worker what it needs for it.

        Returns:
            What this process lacks for a better one, None where it lacks nothing.
        """
        if not set(hello.planes) - {pb.PLANE_INLINE}:
            return None
        # Rather all workers in messages than some of them not at all.
        awaited = max(0, sum(job.num_workers for job in self._registry.jobs.values()) - len(self._lines))
        needed = self._sharing.needs(job, hello) + bool(self._data_port.port)
        if not self.descriptors.fits(needed, leaving=awaited):
            return self.descriptors.lack(
                f"rank {hello.rank} has only its stream to {', '.join(self.addresses)}, which is slower"
            )
        if self._sharing.accept(job, hello, line, welcome):
            welcome.plane = pb.PLANE_SHM
        elif pb.PLANE_DIRECT in hello.planes and self._data_port.port:
            welcome.plane = pb.PLANE_DIRECT
        if welcome.plane != pb.PLANE_INLINE and self._data_port.port:
            welcome.data_port, welcome.data_secret = self._data_port.port, self._data_port.invite(line)
            welcome.data_answers = True
            line.descriptors += 1
            self.descriptors.take(1)
        return None

    async def _close_line(self, line: WorkerConnection, sender: "asyncio.Task[None]", *, gone: bool) -> None:
        """Lets what is left to say, such as a fault or the farewell, still be said, unless the peer has gone."""
        line.closing = True
        line.filled.set()
        if gone:
            sender.cancel()
        try:
            async with asyncio.timeout(self.settings.hello_timeout):
                await sender
        except (TimeoutError, asyncio.CancelledError):
            sender.cancel()
        except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError, ConnectionResetError) as error:
            _log.debug("the last messages to a peer could not be sent: %r", error)
        except Exception as error:
            _log.log(logging.DEBUG if gone else logging.ERROR, "sending to a peer failed: %r", error)

    @staticmethod
    async def _hear_out(receiver: "asyncio.Task[None] | None") -> None:
        """Leaves it to the peer to end the stream after the last word.

        Were it ended from here while the peer sends, gRPC would tell the peer of the broken sending, and not deliver
        the last word: a worker that has left would take it for a lost connection, and come back; one that was refused
        would not know why, and try again. Of one without a token nothing is read: when it ends the stream, gRPC cancels
        this.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                if receiver is None:
                    await asyncio.get_running_loop().create_future()
                else:
                    await asyncio.gather(receiver, return_exceptions=True)

    async def _receive_hello(self, context: _Context) -> pb.Hello:
        try:
            async with asyncio.timeout(self.settings.hello_timeout):
                data = await context.read()
        except TimeoutError:
            raise InvalidError(f"no hello within {self.settings.hello_timeout:g} s of connecting") from None
        if data is grpc.aio.EOF:
            raise ProtocolError("the stream ended before hello")
        if len(data) > _MAX_HELLO_BYTES:
            raise ProtocolError(f"a first message of {len(data)} bytes; a hello has at most {_MAX_HELLO_BYTES}")
        request, _ = decode(pb.ExchangeRequest, data)
        if request.WhichOneof("kind") != "hello":
            raise ProtocolError(f"the first message of a stream is hello, not {request.WhichOneof('kind')}")
        return request.hello

    def _depart(self, job: Job, rank: int, line: WorkerConnection, why: str) -> None:
        """A worker's stream has ended."""
        if self._lines.get((id(job), rank)) is not line:
            # It has another one already.
            return
        del self._lines[id(job), rank]
        worker, now = job.workers[rank], self._loop.time()
        # Probes find out later than this that nobody is there.
        closed = now - worker.last_heard < self.settings.keepalive
        actions = job.lost(rank, now, closed=closed)
        if worker.left or job.failure is not None:
            pass
        elif self.draining:
            _log.info(
                "job %s: rank %d, %s, was disconnected, to go on with the next process here", job.name, rank, worker
            )
        else:
            _log.warning(
                "job %s: rank %d, %s, vanished%s; its place is kept for %g s",
                job.name,
                rank,
                worker,
                why,
                job.kept_seconds(worker),
            )
        self._delivery.perform(job, actions)
        self._registry.settle(job, now)

    async def _tick(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._wake_ticker.wait()
                    await asyncio.sleep(_CREDIT_TICK_SECONDS)
            try:
                for job, action in self._registry.tick(self._loop.time()):
                    self._delivery.perform(job, [action])
                self._handshakes.tick()
            except Exception:
                # Without it no time-out would come any more, in any job.
                _log.exception("time-outs could not be looked for")
            if not self._registry.uncredited:
                self._wake_ticker.clear()

    def _welcome(self) -> pb.Welcome:
        return pb.Welcome(
            incarnation=self.incarnation,
            max_message_bytes=MAX_MESSAGE_BYTES,
            plane=pb.PLANE_INLINE,
            worker_timeout_seconds=self.settings.worker_timeout,
            round_timeout_seconds=self.settings.round_timeout,
        )

    async def _get_status(self, request: pb.GetStatusRequest | None, context: _Context) -> pb.GetStatusResponse:
        self._handshakes.called(context.peer())
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "these bytes are not a psum.v1.GetStatusRequest")
            raise AssertionError("abort raises")
        now = self._loop.time()
        try:
            token = self._admission.token(context.invocation_metadata() or (), context.peer())
        except DeniedError as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        opens = self._admission.opens(token)
        jobs, ended = self._registry.status(
            now, lambda name: not request.without_jobs and request.job in ("", name) and opens(name)
        )
        return self._status(jobs, ended)

    def _status(self, jobs: Sequence[pb.JobStatus], ended: Sequence[pb.EndedJob]) -> pb.GetStatusResponse:
        for job in jobs:
            about = self._registry.jobs.get(job.name)
            for worker in job.workers:
                if (line := self._lines.get((id(about), worker.rank))) is not None:
                    worker.plane, worker.data_connection = line.plane, line.pipe is not None
        return pb.GetStatusResponse(
            version=VERSION,
            incarnation=self.incarnation,
            addresses=self.addresses,
            uptime_seconds=self._loop.time() - self._started,
            cpu_seconds=time.process_time(),
            jobs=jobs,
            ended=ended,
            draining=self.draining,
            memory_reserved_bytes=self._registry.budget.reserved_bytes,
            memory_budget_bytes=self._registry.budget.limit_bytes,
            loop_lag_seconds=self.pulse.recent_lag_seconds,
        )


def _parse_status_request(data: bytes) -> pb.GetStatusRequest | None:
    """A request, None where the bytes are none: an exception here would be a traceback in the log."""
    try:
        return pb.GetStatusRequest.FromString(data)
    except DecodeError:
        return None


def _subjects(joined: tuple[Job, int] | None) -> dict[str, object]:
    """Whom a line of the log is about, for those that are read by programs."""
    return {} if joined is None else {"job": joined[0].name, "rank": joined[1]}
