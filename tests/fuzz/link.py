"""Fuzzes whole clients with a real gRPC server that answers wrongly."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from random import Random
from typing import Any, Final
from unittest import mock

import grpc.aio
import numpy as np

from psum import client as psum
from psum.client import _client
from psum.client._thread import LoopThread
from psum.v1 import aggregator_pb2 as pb
from psum.wire import encode
from tests.fuzz.cases import LogWatch, ViolationError
from tests.fuzz.mutation import Mutator
from tests.fuzz.session import Answers

PATIENCE_SECONDS: Final = 30.0

#: What the clients under test are told to wait at most, and their last resort on top of it.
_TIMEOUT_SECONDS: Final = 0.15


class Lent:
    """The thread of one client after another: gRPC keeps each event loop that it ever saw, as long as it is in use."""

    def __init__(self, thread: LoopThread) -> None:
        self.run = thread.run
        self.call = thread.call
        self._thread = thread

    @property
    def is_current(self) -> bool:
        """Whether it is this thread that asks."""
        return self._thread.is_current

    def stop(self) -> None:
        """Ends what the client has left running."""
        self.run(self._end_all(), PATIENCE_SECONDS)

    @staticmethod
    async def _end_all() -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class LinkTarget:
    """Clients that talk to an aggregator which does not keep to the protocol.

    Args:
        log: What watches the log.
    """

    def __init__(self, log: LogWatch) -> None:
        self.outcomes: Counter[str] = Counter()
        self._log = log
        self._random = Random()
        self._number = 0

    async def start(self) -> None:
        """Starts the wrong aggregator, in a thread of its own."""
        self._patches = contextlib.ExitStack()
        for name in ("_EXPIRY_MARGIN_SECONDS", "_EXPIRY_SECONDS"):
            self._patches.enter_context(mock.patch.object(_client, name, 0.05))
        self._clients_thread = LoopThread("fuzzed-clients")
        self._thread = LoopThread("fuzzed-link")
        self._address = await asyncio.to_thread(self._thread.run, self._serve(), PATIENCE_SECONDS)

    async def feed(self, random: Random) -> None:
        """A client's life with an aggregator that makes mistakes."""
        self._random = random
        await asyncio.wait_for(asyncio.to_thread(self._live, random.randrange(5)), PATIENCE_SECONDS)
        self._log.check()

    async def settle(self) -> None:
        """Nothing is left."""

    async def stop(self) -> None:
        """Ends the aggregator."""
        self._patches.close()
        await asyncio.to_thread(self._thread.run, self._server.stop(0), PATIENCE_SECONDS)
        await asyncio.to_thread(self._thread.stop)
        await asyncio.to_thread(self._clients_thread.stop)

    def _live(self, operations: int) -> None:
        settings = psum.Settings(
            aggregators=(self._address,),
            num_workers=2,
            connect_timeout=_TIMEOUT_SECONDS,
            reconnect_timeout=_TIMEOUT_SECONDS,
            round_timeout=_TIMEOUT_SECONDS,
            partition_bytes=1024,
        )
        try:
            with mock.patch.object(_client, "LoopThread", return_value=Lent(self._clients_thread)):
                client = psum.connect(settings)
        except psum.PsumError as error:
            self.outcomes[f"link: {type(error).__name__}"] += 1
            return
        try:
            if client.planes not in [("inline",), ()]:
                raise ViolationError(f"the client believes in the planes {client.planes}")
            store = client.store()
            futures = []
            with contextlib.suppress(psum.PsumError):
                for i in range(operations):
                    futures.append(store.push_pull_async(i % 2, np.ones(700, np.float32)))
                    futures.append(store.broadcast_async(i % 2, np.ones(3, np.int8)))
            for future in futures:
                failure = future.exception(PATIENCE_SECONDS / 2)
                if failure is not None and not isinstance(failure, psum.PsumError):
                    raise ViolationError(f"an operation ended with {failure!r}")
                self.outcomes[f"link: operation {'done' if failure is None else type(failure).__name__}"] += 1
        finally:
            client.close(timeout=0.2)

    async def _serve(self) -> str:
        self._server = grpc.aio.server()
        handler = grpc.method_handlers_generic_handler(
            "psum.v1.AggregatorService", {"Exchange": grpc.stream_stream_rpc_method_handler(self._exchange)}
        )
        self._server.add_generic_rpc_handlers((handler,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def _exchange(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        random = self._random
        answers = Answers(random)
        sloppy = random.choice((0.0, 0.05, 0.3))
        async for data in requests:
            message = pb.ExchangeRequest.FromString(data)
            kind = message.WhichOneof("kind")
            if kind == "hello":
                welcome = pb.Welcome(incarnation=5, plane=pb.PLANE_INLINE, max_message_bytes=1 << 20)
                answers.waiting.append((pb.ExchangeResponse(welcome=welcome), b""))
            elif kind == "goodbye":
                answers.waiting.append((pb.ExchangeResponse(farewell=pb.Farewell()), b""))
            else:
                answers.hear(data)
            if kind != "hello" and random.random() < 0.1:
                answers.chat()
            if random.random() < sloppy / 10:
                answers.waiting.append((pb.ExchangeResponse(farewell=pb.Farewell()), b""))
            while answers.waiting:
                answer, payload = answers.waiting.popleft()
                answers.said = [*answers.said[-8:], answer]
                if random.random() < sloppy:
                    mutator = Mutator(random, answers.said)
                    yield mutator.mutate(answer, payload)
                elif random.random() >= sloppy / 4:
                    yield encode(answer, payload)
            if random.random() < sloppy / 4:
                code = random.choice((None, *grpc.StatusCode))
                if code is None:
                    return
                if code is not grpc.StatusCode.OK:
                    await context.abort(code, "fuzzed \n\0é")
