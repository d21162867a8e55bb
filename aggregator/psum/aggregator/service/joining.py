"""The begin of a stream: the token, the hello, and the welcome that makes the peer a worker of a job."""

import asyncio
import copy
import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc

from psum.aggregator.access.admission import Admission
from psum.aggregator.core.actions import Admit, Refuse
from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.error_texts import either
from psum.aggregator.core.job import Job
from psum.aggregator.core.roster import ranks_of
from psum.aggregator.service.action_runner import ActionRunner
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.connections import Connections
from psum.aggregator.service.descriptor_budget import DescriptorBudget
from psum.aggregator.service.plane_choice import PlaneChoice
from psum.aggregator.service.registries import Registries
from psum.aggregator.service.waiting import Decision, Waiting
from psum.aggregator.settings import Settings
from psum.runtime import rank_names
from psum.v1 import aggregator_pb2 as pb
from psum.wire import MAX_MESSAGE_BYTES, decode
from psum.wire.errors import (
    DeniedError,
    DisagreementError,
    ExhaustedError,
    FaultError,
    InternalError,
    InvalidError,
    ProtocolError,
    TakenError,
)

_log = logging.getLogger(__name__)

#: The longest hello: it has room for the addresses of thousands of aggregators.
_MAX_HELLO_BYTES: Final = 1 << 20


class Joining:
    """Lets peers join jobs.

    Args:
        settings: The aggregator's settings.
        incarnation: The number that identifies this process to workers.
        admission: Checks tokens.
        registries: The jobs.
        connections: The connections of workers; those of new workers are added.
        runner: Carries out the jobs' actions.
        descriptors: The process's file descriptors.
        plane_choice: Chooses how payloads travel.
        clock: The time in seconds that jobs are given.
    """

    def __init__(
        self,
        settings: Settings,
        incarnation: int,
        *,
        admission: Admission,
        registries: Registries,
        connections: Connections,
        runner: ActionRunner,
        descriptors: DescriptorBudget,
        plane_choice: PlaneChoice,
        clock: Callable[[], float],
    ) -> None:
        self.addresses: Sequence[str] = ()
        """Where the server listens; empty before it does."""
        self._settings = settings
        self._incarnation = incarnation
        self._admission = admission
        self._registries = registries
        self._connections = connections
        self._runner = runner
        self._descriptors = descriptors
        self._plane_choice = plane_choice
        self._clock = clock
        self._waiting = Waiting()
        self._incomplete: weakref.WeakSet[Job] = weakref.WeakSet()
        """Jobs whose workers were told that one of their ranks was refused."""

    def token(self, context: Any) -> bytes:
        """The token that a peer brings. Reads nothing from the stream.

        Raises:
            DeniedError: The token opens no job here.
        """
        return self._admission.token(context.invocation_metadata() or (), context.peer())

    async def join(self, token: bytes, connection: WorkerConnection, context: Any) -> tuple[Job, int] | Candidate:
        """Reads the hello of a stream, and lets its worker join the job. Queues the welcome.

        A process that asks to join a running job waits instead: see `decision`.

        Args:
            token: The peer's token.
            connection: The worker's connection.
            context: The stream's grpc.aio.ServicerContext.

        Returns:
            The job, and the worker's rank; of a relay, the first of its ranks. Or the process that waits.

        Raises:
            FaultError: The worker is refused.
            ProtocolError: There is no valid hello.
        """
        hello = await self._receive_hello(context)
        peer = context.peer()
        await self._admit(token, hello, peer)
        await self._take_descriptor(hello, connection, context)
        if hello.joining:
            return self._wait(hello, token, connection, peer)
        return self._enter(hello, token, connection, peer), hello.rank

    def decision(self, candidate: Candidate) -> "asyncio.Future[Decision]":
        """What is decided about a process that waits, as soon as it is: the job that it has joined, or a fault."""
        return self._waiting.decision(candidate)

    def withdraw(self, candidate: Candidate) -> Job | None:
        """Ends the wait of a process: it was decided about, or its stream has ended.

        Returns:
            The job that it has joined, if any.
        """
        if (job := self._waiting.remove(candidate)) is None:
            for about, action in self._registries.of(candidate.hello).withdraw(candidate, self._clock()):
                self._runner.perform(about, [action])
        return job

    def decide(self, job: Job | None, action: Admit | Refuse) -> None:
        """Carries out what a job has decided about a process that waits. `job` may be None if it is refused."""
        candidate = action.candidate
        hello = candidate.hello
        if isinstance(action, Refuse):
            if self._waiting.decide(candidate, copy.copy(action.fault)) is not None:
                _log.warning("job %s: refused rank %d: %s", hello.job, hello.rank, action.fault)
            return
        assert job is not None
        if (connection := self._waiting.decide(candidate, job)) is not None:
            self._let_in(job, hello, connection)

    def end_waiting(self) -> None:
        """Ends the streams of all who wait: this process is about to end. They wait at the next one."""
        for connection in self._waiting:
            connection.finish()

    def refuse_overdue(self) -> None:
        """Refuses those who have waited too long for a job that has no members here. To be called regularly."""
        for registry in self._registries:
            for refusal in registry.refusals(self._clock()):
                self.decide(None, refusal)

    def _wait(self, hello: pb.Hello, token: bytes, connection: WorkerConnection, peer: str) -> Candidate:
        candidate = Candidate(hello, peer, self._clock())
        self._waiting.add(candidate, connection)
        registry = self._registries.of(hello)
        actions, refusal = registry.wait(candidate, candidate.since)
        if (job := registry.jobs.get(hello.job)) is not None:
            self._bring_token(job, hello, token)
        for about, action in actions:
            self._runner.perform(about, [action])
        if refusal is not None:
            self._waiting.remove(candidate)
            _log.warning("job %s: refused rank %d: %s", hello.job, hello.rank, refusal)
            raise copy.copy(refusal)
        if not self._waiting.decision(candidate).done():
            _log.info("job %s: %s waits to join as rank %d", hello.job, candidate, hello.rank)
        return candidate

    async def _admit(self, token: bytes, hello: pb.Hello, peer: str, level: int = logging.WARNING) -> None:
        """Checks whether a peer may join a job here, and makes this process ready to relay if it asks for that.

        Args:
            token: The peer's token.
            hello: What it says.
            peer: Its address.
            level: How important it is that this process does not relay for it.

        Raises:
            FaultError: It may not join.
        """
        self._admission.permit(token, hello, peer)
        if hello.group_size:
            if (refusal := self._relays_not(hello, peer)) is not None:
                _log.log(level, "job %s: refused rank %d: %s", hello.job, hello.rank, refusal)
                raise refusal
            await self._registries.begin_relaying()

    async def inquire(self, token: bytes, hello: pb.Hello, peer: str, patience: float | None) -> Sequence[pb.Inquiry]:
        """Asks other aggregators for their processes, for a worker that will join as one of a group.

        Args:
            token: Its token.
            hello: What it will say, as far as it matters here.
            peer: Its address.
            patience: How long it waits for the answer, in seconds; None if it does not say.

        Raises:
            FaultError: It may not join.
        """
        if not hello.group_size or hello.ByteSize() > _MAX_HELLO_BYTES:
            raise InvalidError("expected the hello of a worker of a group")
        # A worker that is refused joins all the same, to be told why. That is soon enough for the log.
        await self._admit(token, hello, peer, logging.DEBUG)
        assert self._registries.relays is not None, "admitted"
        return await self._registries.relays.inquire(hello, token, patience)

    def _relays_not(self, hello: pb.Hello, peer: str) -> FaultError | None:
        """Why this process does not relay for a worker, None if it does."""
        who = f"rank {hello.rank} of job {hello.job!r}, {hello.worker or 'an unnamed worker'} ({peer})"
        here = ", ".join(self.addresses)
        if not self._settings.relaying:
            return DeniedError(
                f"{who} asks the aggregator at {here} to forward the sum of its group, which is turned off there"
                " (PSUM_RELAYING=0); turn it on, or give the workers PSUM_RELAY=off"
            )
        if self._incarnation in hello.forwarded_by:
            following = ", ".join(relay.address for relay in hello.next_relays) or "the owners of the shards"
            return DisagreementError(
                f"the relays of job {hello.job!r} form a circle: what comes from {who} has passed the aggregator at"
                f" {here} before, which would forward it to {following} again. Name each relay once in PSUM_RELAY, by"
                " one address that leads to it alone",
                ranks=list(hello.ranks) or [hello.rank],
            )
        return None

    async def _receive_hello(self, context: Any) -> pb.Hello:
        try:
            async with asyncio.timeout(self._settings.hello_timeout):
                data = await context.read()
        except TimeoutError:
            raise InvalidError(f"no hello within {self._settings.hello_timeout:g} s of connecting") from None
        if data is grpc.aio.EOF:
            raise ProtocolError("the stream ended before hello")
        if len(data) > _MAX_HELLO_BYTES:
            raise ProtocolError(f"a first message of {len(data)} bytes; a hello has at most {_MAX_HELLO_BYTES}")
        request, _ = decode(pb.ExchangeRequest, data)
        if request.WhichOneof("kind") != "hello":
            raise ProtocolError(f"the first message of a stream is hello, not {request.WhichOneof('kind')}")
        return request.hello

    async def _take_descriptor(self, hello: pb.Hello, connection: WorkerConnection, context: Any) -> None:
        """Takes a file descriptor for a worker's stream.

        Raises:
            ExhaustedError: There is none. A worker that comes back is told to try again instead: others may leave
                before it gives up.
        """
        # The next job must not be refused because the last messages to the workers of the one before are being sent.
        await self._descriptors.await_room(1, self._settings.hello_timeout)
        job = self._registries.of(hello).jobs.get(hello.job)
        # The number of a relay in an elastic job is not its rank.
        holders = [] if job is None else job.members.holders(hello)
        replaced = any(self._connections.get(job, holder.hello.rank) is not None for holder in holders)
        # A replaced stream is about to end, and frees its descriptor.
        if self._descriptors.fits(0 if replaced else 1):
            connection.descriptors += 1
            self._descriptors.take(1)
            return
        text = self._descriptors.lack(
            f"{rank_names(ranks_of(hello))} of job {hello.job!r} ({hello.worker or context.peer()})"
            f" {either(ranks_of(hello), 'was', 'were')} refused, {len(self._connections)} workers are connected"
        )
        if hello.resuming:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        _log.warning("%s", text)
        if not hello.joining:
            self._notify_others(hello, text)
        raise ExhaustedError(text, ranks=ranks_of(hello))

    def _notify_others(self, hello: pb.Hello, text: str) -> None:
        """Tells a job's workers that a rank was refused, because they will wait for it; once for each job."""
        job = self._registries.of(hello).jobs.get(hello.job)
        if job is None or job.members.holders(hello) or job in self._incomplete:
            return
        self._incomplete.add(job)
        self._connections.send_to_all(job, pb.ExchangeResponse(notice=pb.Notice(text=text)))

    def _enter(self, hello: pb.Hello, token: bytes, connection: WorkerConnection, peer: str) -> Job:
        now = self._clock()
        if (refusal := self._registries.goes_on_without(hello, peer, now)) is not None:
            _log.warning("job %s: refused rank %d: %s", hello.job, hello.rank, refusal)
            raise refusal
        job, actions, refusal = self._registries.of(hello).join(hello, peer, now)
        if job is not None:
            self._bring_token(job, hello, token)
        ranks = rank_names(ranks_of(hello))
        for about, action in actions:
            self._runner.perform(about, [action])
        if job is None or refusal is not None:
            if job is not None and refusal is job.failure:
                # The failure itself was logged when it happened.
                who = hello.worker or "an unnamed worker"
                _log.warning("job %s: refused %s, %s (%s), for that reason", job.name, ranks, who, peer)
            else:
                # A worker that waits for the end of another process comes again each second.
                again = job is not None and isinstance(refusal, TakenError) and not job.members.turn_away(hello)
                level = logging.DEBUG if again else logging.WARNING
                _log.log(level, "job %s: refused %s: %s", hello.job, ranks, refusal)
            # A copy: the job keeps its failure, whose traceback would keep the frames of this stream alive.
            raise copy.copy(refusal or InternalError("refused without a reason"))
        self._let_in(job, hello, connection)
        return job

    def _bring_token(self, job: Job, hello: pb.Hello, token: bytes) -> None:
        """Notes the token of a worker of a group, for the aggregators that this process forwards to."""
        if self._registries.relays is not None and hello.group_size:
            self._registries.relays.bring_token(job, token)

    def _let_in(self, job: Job, hello: pb.Hello, connection: WorkerConnection) -> None:
        """Gives a member its connection, and queues the welcome."""
        ranks, admission = rank_names(ranks_of(hello)), job.admission(hello.rank)
        self._connections.add(job, hello.rank, connection)
        job.counters.reconnects += hello.resuming
        did = "came back" if hello.resuming else "joined"
        if hello.group_size:
            did += f" to be relayed in a group of {hello.group_size}"
        if admission is not None:
            did += f" as process {admission.generation} of this rank"
        worker = job.workers[hello.rank]
        _log.info("job %s: %s of %d %s, %s", job.name, ranks, hello.num_workers, did, worker)
        welcome = self._welcome(job)
        welcome.relays = bool(hello.group_size)
        welcome.departures.extend(job.departures())
        welcome.losses.extend(job.losses(self._clock(), hello.rank))
        if admission is not None:
            welcome.admission.CopyFrom(admission)
            welcome.admissions.extend(job.other_admissions(hello.rank))
        lack = self._choose_plane(job, hello, connection, welcome)
        connection.say(pb.ExchangeResponse(welcome=welcome))
        if lack is not None:
            _log.warning("job %s: %s", job.name, lack)
            connection.say(pb.ExchangeResponse(notice=pb.Notice(text=lack)))
        if candidates := job.candidates():
            connection.say(pb.ExchangeResponse(candidates=pb.Candidates(candidates=candidates)))

    def _choose_plane(self, job: Job, hello: pb.Hello, connection: WorkerConnection, welcome: pb.Welcome) -> str | None:
        """Gives a worker the best plane that both sides have. Returns what this process lacks for a better one."""
        workers_to_come = max(
            0, sum(job.members.roster.most_members for job in self._registries.jobs()) - len(self._connections)
        )
        if self._plane_choice.choose(job, hello, connection, welcome, workers_to_come=workers_to_come):
            return None
        return self._descriptors.lack(
            f"{rank_names(ranks_of(hello))} {either(ranks_of(hello), 'has only its', 'have only their')} stream to"
            f" {', '.join(self.addresses)}, which is slower"
        )

    def _welcome(self, job: Job) -> pb.Welcome:
        return pb.Welcome(
            incarnation=self._incarnation,
            max_message_bytes=MAX_MESSAGE_BYTES,
            plane=pb.PLANE_INLINE,
            worker_timeout_seconds=job.members.worker_timeout,
            round_timeout_seconds=self._settings.round_timeout,
        )
