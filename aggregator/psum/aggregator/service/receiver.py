"""Receives from one worker: takes its messages apart, and hands what they say to the worker's job."""

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
from psum.planes import DataConnection, usual_share
from psum.runtime import first_completed, rank_names
from psum.v1 import aggregator_pb2 as pb
from psum.wire import FAR_BATCH_BYTES, MAX_SHARDS_PER_PAYLOAD, Codec, ShardRound, decode, encode, split, to_rows
from psum.wire.errors import ProtocolError

_log = logging.getLogger(__name__)

#: The answer on a data connection. It says nothing; the worker sees from it where the connection leads.
_HERE: Final = encode(pb.ExchangeResponse(taken=pb.Taken()))


class Receiver:
    """Receives from a worker on its stream and on its data connection, as soon as there is one.

    Args:
        job: The worker's job.
        rank: The worker's rank; of a relay, the first of its ranks.
        connection: The connection to the worker.
        runner: Carries out what follows from the messages.
        clock: The time now, by the clock that the job is given elsewhere.
        uncredited: Called when a contribution counts against the worker's credit, which may have to be returned soon.
    """

    def __init__(
        self,
        job: Job,
        rank: int,
        connection: WorkerConnection,
        runner: ActionRunner,
        *,
        clock: Callable[[], float],
        uncredited: Callable[[], None],
    ) -> None:
        self._job = job
        self._rank = rank
        self._connection = connection
        self._runner = runner
        self._clock = clock
        self._uncredited = uncredited
        self._ranks = len(job.workers[rank].hello.ranks) or 1
        """For how many ranks the worker stands."""
        self._codecs: dict[int, Codec] = {}
        """The codecs of the worker's keys by id, without those that change nothing."""

    async def receive(self, context: Any, first: "asyncio.Task[Any] | None" = None) -> None:
        """Receives until the worker's stream ends.

        Args:
            context: The stream's grpc.aio.ServicerContext.
            first: Reads the first message, if the stream is being read already.

        Raises:
            ProtocolError: The worker did not keep to the protocol.
            FaultError: The worker must not go on.
            ConnectionResetError: The worker's data connection broke.
        """
        await first_completed(self._receive_on_stream(context, first), self._receive_on_data_connection())

    async def _receive_on_stream(self, context: Any, first: "asyncio.Task[Any] | None") -> None:
        while True:
            await self._make_room()
            data = await (context.read() if first is None else first)
            first = None
            if data is grpc.aio.EOF:
                return
            # What comes after the last message to the worker is ignored.
            if not self._connection.closing:
                await self.handle(data, None)

    async def _receive_on_data_connection(self) -> None:
        data_connection = await self._connection.offered()
        if (data := await self._first_on(data_connection)) is None:
            # The answer did not reach the worker in time, or at all. The worker goes on with the stream.
            await asyncio.Event().wait()
            return
        self._connection.use_data_connection()
        # Each member gets all sums. Most stand for as many ranks as this one.
        data_connection.share_links(usual_share(self._ranks / self._job.num_workers))
        if data_connection.far:
            self._connection.queue.following_bytes = FAR_BATCH_BYTES
        while True:
            if self._connection.closing:
                await data_connection.discard()
                return
            await self.handle(data, data_connection)
            await self._make_room()
            data = await data_connection.receive()

    async def _make_room(self) -> None:
        """Waits while the worker takes too little of what is sent to it."""
        if not self._connection.room.is_set():
            await self._connection.room.wait()
            # It was not listened to meanwhile, so it was not silent. Room shows that it lives.
            self._job.workers[self._rank].last_heard = self._clock()

    async def _first_on(self, data_connection: DataConnection) -> memoryview | None:
        """Answers on a data connection; returns the worker's first message there, None if the connection ends first."""
        try:
            await data_connection.send(_HERE)
            return await data_connection.receive()
        except ConnectionResetError as error:
            _log.debug("job %s: rank %d does not use its data connection: %s", self._job.name, self._rank, error)
            return None

    async def handle(self, data: bytes | memoryview, data_connection: DataConnection | None) -> None:
        """Handles one message, and the payloads that follow it.

        Args:
            data: The message.
            data_connection: Where it came, and payloads may follow; None: on the stream.

        Raises:
            ProtocolError: The worker did not keep to the protocol.
            FaultError: The worker must not go on.
            ConnectionResetError: The data connection broke.
        """
        job, rank, connection = self._job, self._rank, self._connection
        worker = job.workers[rank]
        now = worker.last_heard = self._clock()
        request, payload = decode(pb.ExchangeRequest, data)
        match request.WhichOneof("kind"):
            case "push":
                await self._push(request.push.shards, payload, data_connection, len(data), now)
            case "pull":
                self._pull(request.pull.shards, payload, now)
            case "declare":
                if data_connection is not None and 0 < request.declare.share <= 1:
                    data_connection.share_links(request.declare.share)
                for key in request.declare.keys:
                    self._declare(key, now)
            case "restore":
                rows = to_rows(request.restore.shards, MAX_SHARDS_PER_PAYLOAD)
                for row, piece in zip(rows, split(payload, rows), strict=True):
                    self._runner.perform(job, job.restore(rank, row, piece))
            case "abort":
                self._runner.perform(job, job.abort(rank, request.abort))
            case "goodbye":
                self._leave(request.goodbye, now)
            case "synced":
                self._runner.perform(job, job.synced(rank, request.synced.number, now))
            case "losses":
                self._runner.perform(job, job.learn_losses(rank, request.losses.losses, now))
            case "reach":
                self._runner.perform(job, job.reaches(rank, now, all_of_them=request.reach.all))
            case "admit":
                self._runner.perform(job, job.admit(rank, request.admit.admission, now))
            case "candidates":
                self._runner.perform(job, job.wait_at(rank, request.candidates.candidates, now))
            case "lacking":
                self._note_lacking(request.lacking)
            case kind:
                raise ProtocolError(f"rank {rank} of job {job.name!r} sent {kind}, which nobody asked it for")
        if job.credit.pending:
            self._uncredited()
        # After the last message to the worker, what it sends is ignored: that needs no room.
        if connection.queue.crowded and not connection.closing:
            connection.room.clear()

    async def _push(
        self,
        shards: pb.ShardRounds,
        payload: memoryview,
        data_connection: DataConnection | None,
        message_bytes: int,
        now: float,
    ) -> None:
        """Gives the job the contributions of a message, in its order.

        Args:
            shards: The shards and their rounds.
            payload: The values in the message, one after the other. Others are outside, on the worker's plane.
            data_connection: Where the message came, and values may follow; None: on the stream.
            message_bytes: The size of the message.
            now: When it came.
        """
        job, rank, plane, codecs = self._job, self._rank, self._connection.plane, self._codecs
        worker = job.workers[rank]
        actions: list[Action] = []
        try:
            if not (shards.placed or shards.timed or codecs) and job.takes_together:
                job.contribute_together(rank, shards, payload, now, message_bytes, actions)
                worker.received_bytes += len(payload)
                return
            rows = to_rows(shards, MAX_SHARDS_PER_PAYLOAD)
            for row, value in zip(rows, split(payload, rows), strict=True):
                if row.outside_size:
                    outside = plane.get(row)
                    if outside is None:
                        # It may not be here yet. What is complete does not wait for it.
                        self._runner.perform(job, actions)
                        actions = []
                        outside = await plane.receive(row, data_connection)
                        if self._connection.closing:
                            # Meanwhile another process may have its rank.
                            return
                    value = outside
                if codecs and (codec := codecs.get(row.id)) is not None:
                    value = self._decoded(codec, row, value)
                worker.received_bytes += len(value)
                actions += job.contribute(rank, row, value, now, message_bytes)
        finally:
            # What came before something wrong counts.
            self._runner.perform(job, actions)

    def _pull(self, shards: pb.ShardRounds, payload: memoryview, now: float) -> None:
        """Asks the job for the values of broadcasts."""
        rows = to_rows(shards, MAX_SHARDS_PER_PAYLOAD)
        actions: list[Action] = []
        try:
            # There is no payload to split, but the same limits apply.
            for row, _ in zip(rows, split(payload, rows), strict=True):
                actions += self._job.contribute(self._rank, row, None, now)
        finally:
            self._runner.perform(self._job, actions)

    def _declare(self, key: pb.Key, now: float) -> None:
        """Declares a key, and notes how its values are coded."""
        self._runner.perform(self._job, self._job.declare(self._rank, key, now))
        known = self._job.keys.get(key.id)
        if known is not None and known.codec is not None:
            self._codecs[key.id] = known.codec

    def _leave(self, goodbye: pb.Goodbye, now: float) -> None:
        """Lets the worker leave, in order or before its work is done; or some ranks of a relay, which goes on."""
        job, rank = self._job, self._rank
        worker = job.workers[rank]
        if goodbye.HasField("fault"):
            actions = job.leave_early(rank, goodbye, now)
        elif goodbye.ranks:
            actions = job.leave_partly(rank, goodbye.ranks)
        else:
            if not worker.left:
                # Otherwise it has come back to hear that it may leave.
                _log.info("job %s: %s left", job.name, rank_names(worker.ranks))
            actions = job.leave(rank, now)
        self._runner.perform(job, actions)

    def _note_lacking(self, lacking: pb.Lacking) -> None:
        """Notes for which of its ranks a relay waits, in each of some rounds."""
        job, rank = self._job, self._rank
        rows = to_rows(lacking.shards, MAX_SHARDS_PER_PAYLOAD)
        if len(rows) != len(lacking.ranks):
            raise ProtocolError(
                f"{rank_names(job.workers[rank].ranks)} of job {job.name!r} told what {len(rows)} rounds lack, in"
                f" {len(lacking.ranks)} lists of ranks"
            )
        for row, lacks in zip(rows, lacking.ranks, strict=True):
            job.lacking(rank, row, lacks.ranks)

    def _decoded(self, codec: Codec, row: ShardRound, data: memoryview) -> memoryview:
        """A contribution as its key's elements. The job refuses it if its key or shard is not declared."""
        key = self._job.keys.get(row.id)
        size = None if key is None else key.sizes.get(row.shard)
        return data if size is None else codec.decode(data, size)
