"""Fuzzes the aggregator's service: feeds whole streams of messages to the real handler while a healthy job runs."""

import asyncio
import traceback
from collections import Counter
from random import Random
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from psum.aggregator.access.handshakes import Handshakes
from psum.aggregator.core.job import Job
from psum.aggregator.core.small_rounds import MESSAGE_HOLD_SECONDS
from psum.aggregator.service import stream
from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.service.data_port import DataPort
from psum.aggregator.service.service import Service
from psum.aggregator.settings import Settings
from psum.v1 import aggregator_pb2 as pb
from tests.fuzz.conforming_worker import ConformingWorker
from tests.fuzz.conversations import ADDRESSES, Conversation, Step, foreign_messages, mutate_steps
from tests.fuzz.harness import LogMonitor, ViolationError
from tests.fuzz.healthy_job import HealthyJob
from tests.fuzz.in_memory_data import InMemoryData
from tests.fuzz.streams import AbortedStream, Attacker, Context

#: Time limit for everything that one input causes.
PATIENCE_SECONDS: Final = 20.0

_HEALTHY: Final = "healthy"
_WORKER_TIMEOUT: Final = 5.0
_ROUND_TIMEOUT: Final = 600.0


class AggregatorTarget:
    """A service that two healthy workers use throughout. The fuzzer controls its clock.

    Args:
        log: Monitors the log.
    """

    def __init__(self, log: LogMonitor) -> None:
        self.outcomes: Counter[str] = Counter()
        self.messages = 0
        """Number of messages fed."""
        self._log = log
        self._number = 0

    async def start(self) -> None:
        """Start the service and the healthy job."""
        # The fake clock does not shorten the service's wait for peers to end their streams.
        self._last_message_seconds, stream._LAST_MESSAGE_SECONDS = stream._LAST_MESSAGE_SECONDS, 0.01
        self._clock = Clock(asyncio.get_running_loop())
        self._service = Service(
            Settings(
                worker_timeout=_WORKER_TIMEOUT,
                round_timeout=_ROUND_TIMEOUT,
                hello_timeout=PATIENCE_SECONDS,
                memory_budget=1 << 30,
                threads=1,
                connect_timeout=0.1,
            ),
            DataPort((), 0, patience=PATIENCE_SECONDS, keepalive=10),
            Handshakes(PATIENCE_SECONDS),
            loop_lag=lambda: 0.0,
            clock=self._clock.time,
        )
        self._note_connections()
        self._registry = self._service.registry
        hello = pb.Hello(
            protocol_version=1,
            job=_HEALTHY,
            num_workers=2,
            partition_bytes=1 << 14,
            aggregators=ADDRESSES,
            planes=[pb.PLANE_INLINE],
        )
        self._healthy = HealthyJob(hello, self._open)
        self._healthy.begin_round()
        await self._healthy.finish_round()
        self._reserved = self._registry.budget.reserved_bytes

    async def feed(self, random: Random) -> None:
        """Feed a conversation with mistakes. In some, a conforming worker takes part and must not be affected."""
        self._number += 1
        with_conforming = random.random() < 0.35
        conversation = Conversation.make(random, f"fuzz{self._number}", order_independent=with_conforming)
        conforming_rank = random.choice(conversation.firsts) if with_conforming else -1
        ranks = [rank for rank in conversation.firsts if rank != conforming_rank]
        steps = conversation.steps(random, ranks)
        # Without mistakes, the conforming worker must have its sums.
        mutated = random.random() < (0.8 if with_conforming else 0.95)
        if mutated:
            mutate_steps(random, steps, foreign_messages(_HEALTHY) + foreign_messages("other"))
        elif with_conforming:
            # A rank that vanishes or aborts rightly makes the conforming worker's operations fail.
            steps = [s for s in steps if not s.end and not s.seconds and (s.message is None or s.message.abort.id == 0)]
        never_reads = random.random() < 0.02
        try:
            await self.converse(conversation, steps, conforming_rank, random, never_reads=never_reads, mutated=mutated)
        except BaseException as error:
            error.add_note("\n".join(map(str, [conversation, f"conforming worker: rank {conforming_rank}", *steps])))
            raise

    async def converse(
        self,
        conversation: Conversation,
        steps: list[Step],
        conforming_rank: int = -1,
        random: Random | None = None,
        *,
        never_reads: bool = False,
        mutated: bool = True,
    ) -> None:
        """Execute a conversation with the service, then check what must hold.

        Args:
            conversation: The conversation that the steps are made from.
            steps: The attackers' steps.
            conforming_rank: Rank of the conforming worker, or -1 for none.
            random: Decides before each message whether to wait until the service is idle. None means always.
            never_reads: Whether the attackers never read an answer.
            mutated: Whether the steps contain mistakes.

        Raises:
            ViolationError: A check failed.
        """
        healthy = self._number % 8 == 0
        if healthy:
            self._healthy.begin_round()
        conforming = ConformingWorker(conversation, conforming_rank) if conforming_rank >= 0 else None
        conforming_task = self._open(conforming.worker) if conforming else None
        streams: dict[int, tuple[Attacker, asyncio.Task[None]]] = {}
        tasks: list[asyncio.Task[None]] = []
        sent: list[bytes] = []
        offered: dict[int, InMemoryData | None] = {}
        """The data connections of streams, None if they have none."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            for step in steps:
                if step.seconds:
                    self._pass_time(step.seconds)
                data = step.encoded()
                if step.stream not in streams or streams[step.stream][1].done():
                    if data is None:
                        continue
                    attacker = Attacker(never_reads=never_reads)
                    offered.pop(step.stream, None)
                    streams[step.stream] = attacker, self._open(attacker)
                    tasks.append(streams[step.stream][1])
                attacker, task = streams[step.stream]
                if data is not None:
                    if random is not None and step.stream not in (conforming_rank, *offered):
                        self._offer_data(conversation, step.stream, attacker, random, offered)
                    channel = offered.get(step.stream)
                    if channel is None or random is None:
                        attacker.put(data)
                    elif step.data is not None or step.message is None:
                        channel.put(data)
                    else:
                        data = channel.put_moved(random, step.message, step.payload, mistakes=mutated)
                    sent.append(data)
                    self.messages += 1
                if step.end:
                    self._end_stream(attacker, task, step.end)
                    del streams[step.stream]
                if random is None or random.random() < 0.8:
                    await self._wait_until_read(attacker, task)
                if not mutated and conforming is not None and conforming_task is not None:
                    await self._operations_ended(conforming, conforming_task)
                if self._number % 16 == 0:
                    await self._query_status()
            for attacker, task in streams.values():
                self._end_stream(attacker, task, "ended")
            await asyncio.gather(*tasks, return_exceptions=True)
            if conforming is not None and conforming_task is not None:
                await self._leave_after_peers(conforming, conforming_task, healthy=healthy)
                conforming.check(sent, mutated=mutated)
            if healthy:
                await self._healthy.finish_round()
        for task in tasks:
            self._check_ended(task)
        self._count(streams, sent)
        await self.settle()

    async def settle(self) -> None:
        """Check that nothing is left of earlier inputs."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._pool_idle()
            # Until then, contributions may be views of their message.
            self._pass_time(2 * MESSAGE_HOLD_SECONDS)
            for job in self._service.registries.jobs():
                job.check()
                check_held(job)
            # The first pass declares vanished workers lost. The second one forgets the jobs that failed for that.
            for _ in range(2):
                self._pass_time(_WORKER_TIMEOUT + 1)
            await self._pool_idle()
        self._log.check()
        if [job.name for job in self._service.registries.jobs()] != [_HEALTHY]:
            raise ViolationError(f"jobs are left: {list(self._service.registries.jobs())}")
        if self._registry.budget.reserved_bytes != self._reserved:
            raise ViolationError(f"{self._registry.budget!r} after the input, {self._reserved} before")
        if len(self._service.connections) != 2:
            raise ViolationError(f"connections are left: {self._service.connections}")

    async def stop(self) -> None:
        """End the healthy job and the service."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._healthy.end()
            await self._service.close()
        stream._LAST_MESSAGE_SECONDS = self._last_message_seconds

    def _offer_data(
        self,
        conversation: Conversation,
        rank: int,
        attacker: Attacker,
        random: Random,
        offered: dict[int, InMemoryData | None],
    ) -> None:
        """Let an attacker that has joined turn to a data connection, in half of the cases."""
        own = attacker.connection
        # The end of an earlier stream of this rank may not have been noticed yet.
        if own is None or own is not self._service.connections.get(self._registry.jobs.get(conversation.job), rank):
            return
        if attacker.waiting_for_input.is_set() and attacker.last is not None:
            offered[rank] = InMemoryData(attacker, own) if random.random() < 0.5 else None
            self.outcomes["stream: with a data connection"] += offered[rank] is not None

    def _note_connections(self) -> None:
        """Let attackers know which connection of the service is theirs."""
        joining = self._service._joining
        join = joining.join

        async def noting(token: bytes, connection: WorkerConnection, context: Context) -> Any:
            if isinstance(context, Attacker):
                context.connection = connection
            return await join(token, connection, context)

        joining.join = noting  # type: ignore[method-assign]

    def _open(self, context: Context) -> "asyncio.Task[None]":
        return asyncio.get_running_loop().create_task(self._service._exchange(iter(()), context))  # type: ignore[arg-type]

    @staticmethod
    def _end_stream(attacker: Attacker, task: "asyncio.Task[None]", how: str) -> None:
        if how == "cut" or attacker.never_reads:
            task.cancel()
        else:
            attacker.put(grpc.aio.EOF)

    def _check_ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, AbortedStream):
            raise ViolationError("a stream ended with an exception:\n" + "".join(traceback.format_exception(error)))

    def _count(self, streams: dict[int, tuple[Attacker, "asyncio.Task[None]"]], sent: list[bytes]) -> None:
        for attacker, _ in streams.values():
            answer = pb.ExchangeResponse.FromString(attacker.last) if attacker.last else pb.ExchangeResponse()
            kind: str | None = answer.WhichOneof("kind")
            if kind == "fault":
                kind = pb.FaultCode.Name(answer.fault.code).removeprefix("FAULT_CODE_").lower()
                if answer.fault.code == pb.FAULT_CODE_INTERNAL and not _is_passed_on(answer.fault, sent):
                    raise ViolationError(f"the service reports an internal error: {answer.fault.text}")
            self.outcomes[f"stream: {kind or 'not answered'}"] += 1

    def _pass_time(self, seconds: float) -> None:
        self._clock.ahead += seconds
        for job, action in self._service.registries.tick(self._clock.time()):
            self._service._runner.perform(job, [action])

    async def _wait_until_read(self, attacker: Attacker, task: "asyncio.Task[None]") -> None:
        """Wait until the service has handled all input of a stream and waits for more."""
        turns = 0
        while not (task.done() or attacker.waiting_for_input.is_set()):
            turns += 1
            if attacker.never_reads and turns > 20:
                break
            await asyncio.sleep(0 if turns < 100 else 0.001)
        await self._pool_idle()

    async def _pool_idle(self) -> None:
        pool = self._service._pool
        while pool._idle < self._service.settings.threads or pool.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.0002)

    async def _leave_after_peers(
        self, conforming: "ConformingWorker", task: "asyncio.Task[None]", *, healthy: bool
    ) -> None:
        """Let the conforming worker leave after its peers. Its operations must end with a sum or an error in time."""
        worker = conforming.worker
        if not await self._operations_ended(conforming, task):
            self._pass_time(_WORKER_TIMEOUT + 1)
        if not await self._operations_ended(conforming, task):
            job = self._registry.jobs.get(conforming.job)
            if job is not None and job.complete:
                raise ViolationError(f"{worker.pending} operations wait for ranks that have gone, in {job!r}")
            # If a rank has never joined, only the round time-out ends the operations.
            if healthy:
                await self._healthy.finish_round()
            self._pass_time(_ROUND_TIMEOUT + 1)
            if healthy:
                self._healthy.begin_round()
        if not await self._operations_ended(conforming, task):
            raise ViolationError(f"{worker.pending} operations never end")
        worker.leave()
        while not task.done():
            self._pass_time(4.0)
            await asyncio.sleep(0)
        worker.connection_lost()
        self._check_ended(task)

    async def _operations_ended(self, conforming: "ConformingWorker", task: "asyncio.Task[None]") -> bool:
        """Wait until the service is idle. Return whether all operations of the conforming worker have ended."""
        for _ in range(10):
            await asyncio.sleep(0)
            await self._pool_idle()
        return task.done() or not conforming.worker.pending

    async def _query_status(self) -> None:
        response = await self._service._get_status(pb.GetStatusRequest(), Context())
        pb.GetStatusResponse.FromString(response.SerializeToString())


def check_held(job: Job) -> None:
    """Check that contributions that have waited for a while do not keep much larger messages in memory.

    What waits is at least half of a message's payload, and the payload at least half of the message.

    Raises:
        ViolationError: They do.
    """
    kept: dict[int, tuple[memoryview, int]] = {}
    for key in job.keys.values():
        for shard in key.shards.values():
            for contribution in shard.contributions.values():
                message, size = kept.get(id(contribution.obj), (memoryview(contribution.obj), 0))
                kept[id(contribution.obj)] = message, size + contribution.nbytes
    for message, size in kept.values():
        if message.nbytes > 4 * size:
            raise ViolationError(f"{size} bytes of contributions keep a message of {message.nbytes} alive")


class Clock:
    """An event loop whose clock can be advanced."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ahead = 0.0
        """Seconds that this clock is ahead of the loop's."""
        self._loop = loop

    def time(self) -> float:
        """Return the current time in seconds."""
        return self._loop.time() + self.ahead


def _is_passed_on(fault: pb.Fault, sent: list[bytes]) -> bool:
    """Return whether one of these messages asked the service to tell all ranks of an internal error, as relays do."""
    for data in sent:
        try:
            message = pb.ExchangeRequest.FromString(data)
        except DecodeError:
            continue
        if fault.code in (message.goodbye.fault.code, message.abort.fault.code):
            return True
    return False
