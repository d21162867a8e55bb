"""Fuzzes whole clients with a real gRPC server that sends invalid answers."""

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
from psum.client import client_loop, fleet
from psum.client.transport import conversation, data_dialer
from psum.client.transport.loop_thread import LoopThread
from psum.planes import SECRET_BYTES, DataConnection
from psum.v1 import aggregator_pb2 as pb
from psum.wire import encode
from psum.wire.errors import ProtocolError
from tests.fuzz.harness import LogMonitor, ViolationError
from tests.fuzz.mutation import Mutator
from tests.fuzz.session import FakeAggregator
from tests.fuzz.switch import Switch

PATIENCE_SECONDS: Final = 30.0

#: The time-outs of the clients under test.
_TIMEOUT_SECONDS: Final = 0.15


class SharedThread:
    """A LoopThread that one client after another uses, because gRPC keeps every event loop that it ever saw."""

    def __init__(self, thread: LoopThread) -> None:
        self.run = thread.run
        self.call = thread.call
        self._thread = thread

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return self._thread.is_current

    def stop(self) -> None:
        """Cancel the tasks that the client has left running."""
        self.run(self._end_all(), PATIENCE_SECONDS)

    @staticmethod
    async def _end_all() -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class ClientTarget:
    """Clients that talk to an aggregator which breaks the protocol.

    Args:
        log: Monitors the log.
    """

    def __init__(self, log: LogMonitor) -> None:
        self.outcomes: Counter[str] = Counter()
        self._log = log
        self._random = Random()
        self._switches: dict[bytes, Switch] = {}
        """The streams of the present client that may turn to a data connection, by its secret."""
        self._data_tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the faulty aggregator in its own thread."""
        self._patches = contextlib.ExitStack()
        for name in ("_EXPIRY_MARGIN_SECONDS", "_EXPIRY_SECONDS"):
            self._patches.enter_context(mock.patch.object(client_loop, name, 0.05))
        self._patches.enter_context(mock.patch.object(data_dialer, "_PATIENCE_SECONDS", 0.05))
        self._patches.enter_context(mock.patch.object(conversation, "_FOLLOWS_SECONDS", 0.05))
        self._clients_thread = LoopThread("fuzzed-clients")
        self._thread = LoopThread("fuzzed-client")
        self._address = await asyncio.to_thread(self._thread.run, self._serve(), PATIENCE_SECONDS)

    async def feed(self, random: Random) -> None:
        """Run one client, from connect to close, with the faulty aggregator."""
        self._random = random
        self._switches = {}
        await asyncio.wait_for(asyncio.to_thread(self._run_client, random.randrange(5)), PATIENCE_SECONDS)
        self._log.check()

    async def settle(self) -> None:
        """Do nothing: no client outlives its input."""

    async def stop(self) -> None:
        """Stop the aggregator."""
        self._patches.close()
        await asyncio.to_thread(self._thread.run, self._end(), PATIENCE_SECONDS)
        await asyncio.to_thread(self._thread.stop)
        await asyncio.to_thread(self._clients_thread.stop)

    def _run_client(self, operations: int) -> None:
        settings = psum.Settings(
            aggregators=(self._address,),
            num_workers=2,
            connect_timeout=_TIMEOUT_SECONDS,
            reconnect_timeout=_TIMEOUT_SECONDS,
            round_timeout=_TIMEOUT_SECONDS,
            partition_bytes=1024,
        )
        try:
            with contextlib.ExitStack() as patches:
                for module in (client_loop, fleet):
                    shared = SharedThread(self._clients_thread)
                    patches.enter_context(mock.patch.object(module, "LoopThread", return_value=shared))
                client = psum.connect(settings)
        except psum.PsumError as error:
            self.outcomes[f"client: {type(error).__name__}"] += 1
            return
        try:
            if client.planes not in [("inline",), ("direct",), ()]:
                raise ViolationError(f"the client reports the planes {client.planes}")
            store = client.store()
            futures = []
            arrays = [np.ones(700, np.float32) for _ in range(operations)]
            with contextlib.suppress(psum.PsumError):
                for i, array in enumerate(arrays):
                    futures.append(store.push_pull_async(i % 2, array))
                    futures.append(store.broadcast_async(i % 2, np.ones(3, np.int8)))
            for future in futures:
                failure = future.exception(PATIENCE_SECONDS / 2)
                if failure is not None and not isinstance(failure, psum.PsumError):
                    raise ViolationError(f"an operation ended with {failure!r}")
                self.outcomes[f"client: operation {'done' if failure is None else type(failure).__name__}"] += 1
            for switch in self._switches.values():
                switch.check(array.tobytes() for array in arrays)
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
        self._data_server = await asyncio.get_running_loop().create_server(self._accept_data, "127.0.0.1", 0)
        return f"127.0.0.1:{port}"

    async def _end(self) -> None:
        self._data_server.close()
        for task in self._data_tasks:
            task.cancel()
        await asyncio.gather(*self._data_tasks, return_exceptions=True)
        await self._server.stop(0)

    async def _exchange(self, requests: AsyncIterator[bytes], context: Any) -> None:
        random = self._random
        fake = FakeAggregator(random)
        error_rate = random.choice((0.0, 0.05, 0.3))
        async for data in requests:
            for answer in self._answer(fake, data, error_rate, context):
                await context.write(answer)
            if random.random() < error_rate / 4:
                code = random.choice((None, *grpc.StatusCode))
                if code is None:
                    return
                if code is not grpc.StatusCode.OK:
                    await context.abort(code, "fuzzed \n\0é")

    def _answer(self, fake: FakeAggregator, data: bytes, error_rate: float, context: Any = None) -> Iterator[bytes]:
        """Yield the answers to a message. Some are mutated or left out.

        Args:
            fake: Makes the answers.
            data: The message.
            error_rate: The fraction of mutated answers.
            context: The stream, if the message came there.
        """
        random = self._random
        message = pb.ExchangeRequest.FromString(data)
        kind = message.WhichOneof("kind")
        if kind == "hello":
            fake.waiting.append((pb.ExchangeResponse(welcome=self._welcome(context)), b""))
        elif kind == "goodbye":
            fake.waiting.append((pb.ExchangeResponse(farewell=pb.Farewell()), b""))
        else:
            fake.receive(data)
        if kind != "hello" and random.random() < 0.1:
            fake.send_unsolicited()
        if random.random() < error_rate / 10:
            fake.waiting.append((pb.ExchangeResponse(farewell=pb.Farewell()), b""))
        while fake.waiting:
            answer, payload = fake.waiting.popleft()
            fake.recent = [*fake.recent[-8:], answer]
            if random.random() < error_rate:
                yield Mutator(random, fake.recent).mutate(answer, payload)
            elif random.random() >= error_rate / 4:
                yield encode(answer, payload)

    def _welcome(self, context: Any) -> pb.Welcome:
        """Return a welcome message for a stream, at random with a data port or without."""
        random = self._random
        welcome = pb.Welcome(incarnation=5, plane=pb.PLANE_INLINE, max_message_bytes=1 << 20)
        if random.random() < 0.5:
            welcome.plane = pb.PLANE_DIRECT
            welcome.data_port = self._data_server.sockets[0].getsockname()[1]
            welcome.data_secret = random.randbytes(SECRET_BYTES)
            welcome.data_answers = random.random() < 0.8
            welcome.data_follows = random.random() < 0.8
            self._switches[welcome.data_secret] = Switch(random, context, follows=welcome.data_follows)
        return welcome

    def _accept_data(self) -> asyncio.BaseProtocol:
        """Accept a data connection."""
        shown: list[bytes] = []

        def admit(secret: bytes) -> bool:
            shown.append(secret)
            return True

        connection = DataConnection(1 << 20, admit, keepalive=5)
        task = asyncio.get_running_loop().create_task(self._serve_data(connection, shown))
        self._data_tasks.add(task)
        task.add_done_callback(self._data_tasks.discard)
        return connection

    async def _serve_data(self, connection: DataConnection, shown: list[bytes]) -> None:
        """Serve a data connection: close it, stay silent, or answer as another service or as a faulty aggregator.

        Args:
            connection: The connection.
            shown: Receives the client's secret.
        """
        random = self._random
        behaviour = random.choice(("closes", "is silent", "belongs to another service", "answers", "answers"))
        self.outcomes[f"client: a data connection that {behaviour}"] += 1
        fake = FakeAggregator(random)
        error_rate = random.choice((0.0, 0.05, 0.3))
        try:
            with contextlib.suppress(ConnectionResetError, ProtocolError):
                if behaviour == "closes":
                    return
                if behaviour == "is silent":
                    await connection.discard()
                if behaviour == "belongs to another service":
                    await asyncio.sleep(0.01)
                    connection.send_secret(random.randbytes(random.choice((1, 5, 300))))
                    await connection.discard()
                await asyncio.sleep(0.01)
                await connection.send(encode(pb.ExchangeResponse(taken=pb.Taken())))
                switch: Switch | None = None
                while True:
                    kind, frame = await connection._next()
                    if switch is None:
                        # Of an earlier client nothing is kept.
                        if (switch := self._switches.get(shown[0])) is None:
                            return
                        self.outcomes[f"client: an aggregator that {switch.how}"] += 1
                        await switch.turn(connection)
                    for answer in self._answer(fake, bytes(frame), error_rate) if kind == b"m" else ():
                        await switch.send(connection, answer)
                    if random.random() < error_rate / 4:
                        return
        finally:
            connection.close()
