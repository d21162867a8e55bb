"""Fuzzes whole clients with a real gRPC server that answers wrongly."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from random import Random
from typing import Any, Final
from unittest import mock

import grpc.aio
import numpy as np

from psum import client as psum
from psum.client import client as _client
from psum.client.transport import data_dialer
from psum.client.transport.loop_thread import LoopThread
from psum.planes import SECRET_BYTES, DataConnection
from psum.v1 import aggregator_pb2 as pb
from psum.wire import encode
from psum.wire.errors import ProtocolError
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
        self._talks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Starts the wrong aggregator, in a thread of its own."""
        self._patches = contextlib.ExitStack()
        for name in ("_EXPIRY_MARGIN_SECONDS", "_EXPIRY_SECONDS"):
            self._patches.enter_context(mock.patch.object(_client, name, 0.05))
        self._patches.enter_context(mock.patch.object(data_dialer, "_PATIENCE_SECONDS", 0.05))
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
        await asyncio.to_thread(self._thread.run, self._end(), PATIENCE_SECONDS)
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
            if client.planes not in [("inline",), ("direct",), ()]:
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
        self._data_server = await asyncio.get_running_loop().create_server(self._take, "127.0.0.1", 0)
        return f"127.0.0.1:{port}"

    async def _end(self) -> None:
        self._data_server.close()
        for task in self._talks:
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)
        await self._server.stop(0)

    async def _exchange(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        random = self._random
        answers = Answers(random)
        sloppy = random.choice((0.0, 0.05, 0.3))
        async for data in requests:
            for answer in self._answer(answers, data, sloppy):
                yield answer
            if random.random() < sloppy / 4:
                code = random.choice((None, *grpc.StatusCode))
                if code is None:
                    return
                if code is not grpc.StatusCode.OK:
                    await context.abort(code, "fuzzed \n\0é")

    def _answer(self, answers: Answers, data: bytes, sloppy: float) -> Iterator[bytes]:
        """What it says to a message, some of it changed or left out."""
        random = self._random
        message = pb.ExchangeRequest.FromString(data)
        kind = message.WhichOneof("kind")
        if kind == "hello":
            answers.waiting.append((pb.ExchangeResponse(welcome=self._welcome()), b""))
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
                yield Mutator(random, answers.said).mutate(answer, payload)
            elif random.random() >= sloppy / 4:
                yield encode(answer, payload)

    def _welcome(self) -> pb.Welcome:
        """With a data connection or without; what becomes of that is left to chance."""
        random = self._random
        welcome = pb.Welcome(incarnation=5, plane=pb.PLANE_INLINE, max_message_bytes=1 << 20)
        if random.random() < 0.5:
            welcome.plane = pb.PLANE_DIRECT
            welcome.data_port = self._data_server.sockets[0].getsockname()[1]
            welcome.data_secret = random.randbytes(SECRET_BYTES)
            welcome.data_answers = random.random() < 0.8
        return welcome

    def _take(self) -> asyncio.BaseProtocol:
        """Somebody opens a data connection."""
        pipe = DataConnection(1 << 20, lambda _: True, keepalive=5)
        task = asyncio.get_running_loop().create_task(self._talk(pipe))
        self._talks.add(task)
        task.add_done_callback(self._talks.discard)
        return pipe

    async def _talk(self, pipe: DataConnection) -> None:
        """It is closed, silent, somebody else's, or an aggregator's, which may make mistakes there too."""
        random = self._random
        habit = random.choice(("closes", "is silent", "is another's", "answers", "answers"))
        self.outcomes[f"link: a data connection that {habit}"] += 1
        answers = Answers(random)
        sloppy = random.choice((0.0, 0.05, 0.3))
        try:
            with contextlib.suppress(ConnectionResetError, ProtocolError):
                if habit == "closes":
                    return
                if habit == "is silent":
                    await pipe.discard()
                if habit == "is another's":
                    await asyncio.sleep(0.01)
                    pipe.show(random.randbytes(random.choice((1, 5, 300))))
                    await pipe.discard()
                await asyncio.sleep(0.01)
                await pipe.send(encode(pb.ExchangeResponse(taken=pb.Taken())))
                while True:
                    kind, frame = await pipe._next()
                    for answer in self._answer(answers, bytes(frame), sloppy) if kind == b"m" else ():
                        await pipe.send(answer)
                    if random.random() < sloppy / 4:
                        return
        finally:
            pipe.close()
