"""Hears one worker: takes its messages apart, and hands what they say to its job."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio

from psum.aggregator.core.actions import Action
from psum.aggregator.core.job import Job
from psum.aggregator.service.action_runner import ActionRunner
from psum.aggregator.service.connection import WorkerConnection
from psum.planes import DataConnection
from psum.runtime import first_completed
from psum.v1 import aggregator_pb2 as pb
from psum.wire import MAX_SHARDS_PER_PAYLOAD, decode, encode, split, to_rows
from psum.wire.errors import ProtocolError

_log = logging.getLogger(__name__)

#: The answer on a data connection: a message that says nothing, from which the worker knows where the connection leads.
_HERE: Final = encode(pb.ExchangeResponse(taken=pb.Taken()))


class Receiver:
    """Hears a worker over its stream and, once there is one, over its data connection.

    Args:
        job: The worker's job.
        rank: Its rank.
        line: The way to it.
        delivery: Carries out what follows.
        clock: The time, as the job is given it elsewhere too.
        uncredited: Called where something counts against a worker's credit that may have to be returned soon.
    """

    def __init__(
        self,
        job: Job,
        rank: int,
        line: WorkerConnection,
        delivery: ActionRunner,
        *,
        clock: Callable[[], float],
        uncredited: Callable[[], None],
    ) -> None:
        self._job = job
        self._rank = rank
        self._line = line
        self._delivery = delivery
        self._clock = clock
        self._uncredited = uncredited

    async def listen(self, context: Any) -> None:
        """Hears the worker until its stream ends.

        Args:
            context: The stream's grpc.aio.ServicerContext.

        Raises:
            ProtocolError: It said what it must not say.
            FaultError: It is not to go on.
            ConnectionResetError: Its data connection broke.
        """
        await first_completed(self._hear_stream(context), self._hear_pipe())

    async def _hear_stream(self, context: Any) -> None:
        while True:
            await self._line.room.wait()
            data = await context.read()
            if data is grpc.aio.EOF:
                return
            # What comes after the last word to the worker is left aside.
            if not self._line.closing:
                await self._hear(data, None)

    async def _hear_pipe(self) -> None:
        pipe = await self._line.offered()
        if (data := await self._first_on(pipe)) is None:
            # The answer has not reached the worker in time, or at all: it says everything on the stream.
            await asyncio.Event().wait()
            return
        self._line.use_pipe()
        while True:
            if self._line.closing:
                await pipe.discard()
                return
            await self._hear(data, pipe)
            await self._line.room.wait()
            data = await pipe.receive()

    async def _first_on(self, pipe: DataConnection) -> memoryview | None:
        """Answers on a data connection; the worker's first message there, None where the connection ends before."""
        try:
            await pipe.send(_HERE)
            return await pipe.receive()
        except ConnectionResetError as error:
            _log.debug("job %s: rank %d does not use its data connection: %s", self._job.name, self._rank, error)
            return None

    async def _hear(self, data: bytes | memoryview, pipe: DataConnection | None) -> None:
        """The worker says something, over its data connection or else over the stream."""
        job, rank, line = self._job, self._rank, self._line
        worker = job.workers[rank]
        now = worker.last_heard = self._clock()
        request, payload = decode(pb.ExchangeRequest, data)
        match request.WhichOneof("kind"):
            case "push":
                entries = to_rows(request.push.shards, MAX_SHARDS_PER_PAYLOAD)
                actions: list[Action] = []
                try:
                    for entry, value in zip(entries, split(payload, entries), strict=True):
                        if entry.placed and line.segment is not None:
                            value = line.placed(entry)
                        elif entry.placed:
                            if pipe is None:
                                raise ProtocolError(
                                    "a payload was announced that comes neither in the message nor elsewhere"
                                )
                            # It may have to be waited for; what is complete does not wait with it.
                            self._delivery.perform(job, actions)
                            actions = []
                            value = await pipe.receive_payload(entry.placed)
                        worker.received_bytes += len(value)
                        actions += job.contribute(rank, entry, value, now, len(data))
                finally:
                    # What came before something wrong counts.
                    self._delivery.perform(job, actions)
            case "pull":
                entries = to_rows(request.pull.shards, MAX_SHARDS_PER_PAYLOAD)
                actions = []
                try:
                    # Nothing to cut, but to be held to the same limits.
                    for entry, _ in zip(entries, split(payload, entries), strict=True):
                        actions += job.contribute(rank, entry, None, now)
                finally:
                    self._delivery.perform(job, actions)
            case "declare":
                for key in request.declare.keys:
                    self._delivery.perform(job, job.declare(rank, key, now))
            case "restore":
                entries = to_rows(request.restore.shards, MAX_SHARDS_PER_PAYLOAD)
                for entry, piece in zip(entries, split(payload, entries), strict=True):
                    self._delivery.perform(job, job.restore(rank, entry, piece))
            case "abort":
                self._delivery.perform(job, job.abort(rank, request.abort))
            case "goodbye":
                if request.goodbye.HasField("fault"):
                    self._delivery.perform(job, job.leave_early(rank, request.goodbye, now))
                    return
                if not worker.left:
                    # Else it has come back, to hear that it may go.
                    _log.info("job %s: rank %d left", job.name, rank)
                self._delivery.perform(job, job.leave(rank, now))
            case "synced":
                self._delivery.perform(job, job.synced(rank, request.synced.number, now))
            case kind:
                raise ProtocolError(f"rank {rank} of job {job.name!r} sent {kind}, which nobody asked it for")
        if job.credit.pending:
            self._uncredited()
        if line.outbox.crowded:
            line.room.clear()
