"""Fuzzes a real aggregator over real connections: mutated streams through gRPC, and invalid HTTP/2 on plain sockets."""

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from random import Random
from typing import Any, Final

import grpc.aio
import numpy as np

from psum import client as psum
from psum.aggregator import Server, Settings
from psum.client.transport.loop_thread import LoopThread
from psum.v1 import aggregator_pb2 as pb
from tests.fuzz.conversations import Conversation, foreign_messages, mutate_steps
from tests.fuzz.harness import LogMonitor, ViolationError
from tests.fuzz.mutation import Mutator
from tests.fuzz.turning import TurningWorker, offering

PATIENCE_SECONDS: Final = 30.0

_SERVICE: Final = "/psum.v1.AggregatorService/"
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _END_HEADERS = 0, 1, 4, 4

_BROKEN: Final = (grpc.aio.UsageError, grpc.aio.AioRpcError, asyncio.InvalidStateError)

#: How long a plain socket waits for the server's answer.
_READ_SECONDS: Final = 0.02


class ServerTarget:
    """An aggregator with two healthy workers, whose sums are checked after each input.

    Args:
        log: Monitors the log.
    """

    def __init__(self, log: LogMonitor) -> None:
        self.outcomes: Counter[str] = Counter()
        self._log = log
        self._number = 0

    async def start(self) -> None:
        """Start the aggregator in its own thread, and the workers."""
        self._thread = LoopThread("fuzzed-server")
        self._server = Server(Settings(listen=("127.0.0.1:0",), worker_timeout=0.2, hello_timeout=1.0))
        await asyncio.to_thread(self._thread.run, self._server.start(), PATIENCE_SECONDS)
        self._address = self._server.addresses[0]
        self._channel = grpc.aio.insecure_channel(self._address)
        settings = [
            psum.Settings(job="healthy", rank=rank, num_workers=2, aggregators=(self._address,)) for rank in range(2)
        ]
        self._clients = await asyncio.gather(*(asyncio.to_thread(psum.connect, s) for s in settings))
        self._stores = [client.store() for client in self._clients]
        self._kept = await self._left_of_inputs()

    async def feed(self, random: Random) -> None:
        """Feed mutated streams, also with data connections, a mutated status request, or invalid HTTP/2."""
        self._number += 1
        async with asyncio.timeout(PATIENCE_SECONDS):
            match random.randrange(10):
                case 0:
                    await self._query_status(random)
                case 1 | 2 | 3:
                    await self._converse(random)
                case 4 | 5 | 6:
                    await self._turn(random)
                case _:
                    await self._write_bytes(random)
            values = [np.full(5 + 3000 * (self._number % 2), rank + self._number, np.int32) for rank in range(2)]
            futures = [
                store.push_pull_async(f"healthy {self._number % 2}", value)
                for store, value in zip(self._stores, values, strict=True)
            ]
            await asyncio.gather(*map(asyncio.wrap_future, futures))
        if any((value != 2 * self._number + 1).any() for value in values):
            raise ViolationError("a sum of the healthy job is wrong")
        self._log.check()

    async def settle(self) -> None:
        """Check that the aggregator has only the healthy job, and nothing is left of others."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (left := await self._left_of_inputs()) != self._kept:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise ViolationError(f"{left} is left, expected {self._kept}") from None
        self._log.check()

    async def stop(self) -> None:
        """Stop the workers and the aggregator."""
        await self._channel.close()
        for client in self._clients:
            await asyncio.to_thread(client.close)
        await asyncio.to_thread(self._thread.run, self._server.stop(0.1), PATIENCE_SECONDS)
        await asyncio.to_thread(self._thread.stop)

    async def _left_of_inputs(self) -> dict[str, object]:
        """Return what must be the same before and after an input."""

        async def left() -> dict[str, object]:
            service = self._server._service
            return {
                "jobs": list(service.registry.jobs),
                "connections": len(service.connections),
                "descriptors left": service.descriptors.left,
                "invited": len(service._data_port._invited),
                "unidentified": len(service._data_port._unidentified),
            }

        return await asyncio.to_thread(self._thread.run, left(), PATIENCE_SECONDS)

    async def _query_status(self, random: Random) -> None:
        request = pb.GetStatusRequest(job=random.choice(("", "healthy", "\n")))
        data = Mutator(random, ()).mutate(request, b"")
        try:
            call: Any = self._channel.unary_unary(f"{_SERVICE}GetStatus")
            answer = await call(data, timeout=10, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            self.outcomes[f"server: status refused with {error.code().name}"] += 1
        else:
            pb.GetStatusResponse.FromString(answer)
            self.outcomes["server: status given"] += 1

    async def _converse(self, random: Random) -> None:
        conversation = Conversation.make(random, f"fuzz{self._number}")
        steps = conversation.steps(random, conversation.firsts)
        mutate_steps(random, steps, foreign_messages("healthy"))
        calls: dict[int, Any] = {}
        broken: set[int] = set()
        for step in steps:
            data = step.encoded()
            if data is not None and step.stream not in calls:
                calls[step.stream] = self._channel.stream_stream(f"{_SERVICE}Exchange")(wait_for_ready=True)
            call = calls.get(step.stream)
            try:
                if call is not None and data is not None:
                    await call.write(data)
                if call is not None and step.end == "cut":
                    calls.pop(step.stream).cancel()
            except _BROKEN:
                broken.add(step.stream)
        for rank, call in calls.items():
            await self._read_to_end(call, broken=rank in broken)

    async def _turn(self, random: Random) -> None:
        """Feed the streams of workers that turn to data connections in wrong ways, half of them with mutations."""
        conversation = Conversation.make(random, f"fuzz{self._number}")
        steps = conversation.steps(random, conversation.firsts)
        if random.random() < 0.5:
            mutate_steps(random, steps, foreign_messages("healthy"))
        host, _, _ = self._address.rpartition(":")
        workers: dict[int, TurningWorker] = {}
        try:
            for step in steps:
                if (data := step.encoded()) is None:
                    continue
                if (worker := workers.get(step.stream)) is not None:
                    await worker.send(data)
                    continue
                call: Any = self._channel.stream_stream(f"{_SERVICE}Exchange")(wait_for_ready=True)
                worker = workers[step.stream] = TurningWorker(random, call, host)
                await worker.begin(offering(data))
            for worker in workers.values():
                self.outcomes[f"server: a worker that {worker.how if worker.turned else 'does not turn'}"] += 1
                await self._read_to_end(worker.call, broken="cut" in worker.how)
        finally:
            for worker in workers.values():
                worker.close()

    async def _read_to_end(self, call: Any, *, broken: bool) -> None:
        last = None
        try:
            await call.done_writing()
            while (data := await call.read()) is not grpc.aio.EOF:
                last = pb.ExchangeResponse.FromString(data).WhichOneof("kind")
        except _BROKEN:
            broken = True
        code = await call.code()
        # After a write to an ended stream, gRPC's client reports its own status instead of the server's.
        self.outcomes[f"server: {last}, then {'a broken stream' if broken else code.name}"] += 1
        ended = last is None and code is grpc.StatusCode.UNAVAILABLE
        if code is not grpc.StatusCode.OK and not broken and not ended:
            raise ViolationError(f"the stream ended with {code.name}: {await call.details()}")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            try:
                return await asyncio.open_connection(*self._address.split(":"))
            except ConnectionRefusedError:
                # A method name that is not valid text makes gRPC's server end. The aggregator soon starts a new one.
                await asyncio.sleep(0.02)

    async def _write_bytes(self, random: Random) -> None:
        data = _broken_http2(random, f"fuzz{self._number}")
        reader, writer = await self._connect()
        try:
            writer.write(data)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_READ_SECONDS):
                    while await reader.read(65536):
                        pass
                    self.outcomes["server: connection ended"] += 1
            if random.random() < 0.5:
                # Close with a reset.
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except ConnectionError:
            self.outcomes["server: connection reset"] += 1
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def _broken_http2(random: Random, job: str) -> bytes:
    """Return the bytes of an HTTP/2 connection with one stream, with mistakes."""
    conversation = Conversation.make(random, job)
    messages = [data for step in conversation.steps(random, [0]) if (data := step.encoded()) is not None]
    path = random.choice((b"Exchange", b"Exchange", b"Exchange", b"GetStatus", b"Nothing", b"\xff", b"x" * 5000))
    headers = (
        (b":method", random.choice((b"POST", b"POST", b"POST", b"GET"))),
        (b":scheme", b"http"),
        (b":path", _SERVICE.encode() + path),
        (b":authority", b"fuzzed"),
        (b"content-type", random.choice((b"application/grpc", b"application/grpc", b"text/plain"))),
        (b"te", b"trailers"),
        (b"grpc-timeout", random.choice((b"1S", b"0n", b"99999999H", b"\xff"))),
    )
    block = b"".join(b"\0" + _hpack_text(name) + _hpack_text(value) for name, value in headers)
    frames = [_frame(_SETTINGS, 0, 0, b""), _frame(_HEADERS, _END_HEADERS, 1, block)]
    for message in messages:
        compressed = random.choice((0, 0, 0, 0, 1, 2))
        length = random.choice((len(message),) * 5 + (0, len(message) + 1, 81 << 20, (1 << 32) - 1))
        frames.append(_frame(_DATA, 0, 1, struct.pack(">BI", compressed, length) + message))
    for _ in range(random.choice((0, 1, 1, 3))):
        stray = _frame(
            random.randrange(12),
            random.randrange(256),
            random.choice((0, 1, 1, 2, 3, (1 << 31) - 1)),
            random.randbytes(random.choice((0, 4, 5, 8, 100))),
        )
        frames.insert(random.randrange(len(frames) + 1), stray)
    data = _PREFACE + b"".join(frames)
    for _ in range(random.choice((0, 0, 1, 1, 4))):
        data = Mutator(random, ()).change_bytes(data)
    return data


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def _hpack_text(text: bytes) -> bytes:
    """Encode a string as an uncompressed HPACK literal."""
    if len(text) < 127:
        return bytes((len(text),)) + text
    rest, length = len(text) - 127, bytearray((127,))
    while rest > 0x7F:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    length.append(rest)
    return bytes(length) + text
