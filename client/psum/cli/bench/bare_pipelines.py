"""The pipelines of psum's planes without psum: bare processes move and add bytes. Nothing is scheduled or reported.

Each pipeline starts its server and its workers. What a process does returns its processor time in the timed steps.
"""

import asyncio
import contextlib
import ctypes
import functools
import itertools
import mmap
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from psum.cli.bench.bare_plan import Plan

#: Three and more contributions are added in blocks that fit in a cache, as in an aggregator.
_BLOCK_BYTES: Final = 128 << 10

#: How long the server of gRPC waits until its workers have read all sums.
_GRACE_SECONDS: Final = 30.0

_GRPC_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.http2.max_frame_size", (16 << 20) - 1),
    ("grpc.http2.lookahead_bytes", 64 << 20),
    ("grpc.http2.bdp_probe", 0),
)

Array = npt.NDArray[Any]


class Start(Protocol):
    """Starts a process that does some work, which returns its processor seconds."""

    def __call__(self, work: Callable[[], float], *, is_server: bool) -> None: ...


class _Stopwatch:
    """The processor time of this process from the first timed piece on."""

    def __init__(self, plan: Plan) -> None:
        self._first = plan.first_timed
        self._begin = 0.0

    def at(self, piece: int) -> None:
        """Says that a piece begins."""
        if piece == self._first:
            self._begin = time.process_time()

    @property
    def seconds(self) -> float:
        """The time until now."""
        return time.process_time() - self._begin


class _Tensors:
    """The tensors of a worker, and its sums: cut into pieces that follow each other."""

    def __init__(self, plan: Plan) -> None:
        self._ends = np.cumsum([0, *plan.pieces]).tolist()
        self._source = np.ones(self._ends[-1] // 4, np.float32).view(np.uint8).data
        self._sums = np.zeros(self._ends[-1] // 4, np.float32).view(np.uint8).data

    def value(self, piece: int) -> memoryview:
        """What is sent of a piece, by its number within the step."""
        return self._source[self._ends[piece] : self._ends[piece + 1]]

    def sum(self, piece: int) -> memoryview:
        """Where its sum is written."""
        return self._sums[self._ends[piece] : self._ends[piece + 1]]

    def check(self, workers: int) -> None:
        """Raise if not all sums are right."""
        if not (np.frombuffer(self._sums, np.float32) == workers).all():
            raise RuntimeError("the bare pipeline has made wrong sums")


def add(contributions: Sequence[Array], out: Array) -> None:
    """Write the sum of arrays of float32 to another one."""
    first, *others = contributions
    if not others:
        out[:] = first
        return
    step = len(out) if len(others) == 1 else _BLOCK_BYTES // out.itemsize
    for start in range(0, len(out), step):
        block = slice(start, start + step)
        np.add(first[block], others[0][block], out=out[block])
        for other in others[1:]:
            np.add(out[block], other[block], out=out[block])


def _shared(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size)


def _shm(plan: Plan, start: Start) -> None:
    slot = max(plan.pieces)
    segments = [_shared(slot * plan.window) for _ in range(plan.workers)]
    arena, number = _shared(sum(plan.pieces)), len(plan.pieces)
    offsets = np.cumsum([0, *plan.pieces]).tolist()
    # A byte announces a piece, or its sum.
    pairs = [socket.socketpair() for _ in segments]

    def worker(segment: mmap.mmap, control: socket.socket) -> float:
        tensors, watch, sent = _Tensors(plan), _Stopwatch(plan), 0
        view, sums = memoryview(segment), memoryview(arena)
        for piece in range(plan.total):
            watch.at(piece)
            step_end = (piece // number + 1) * number
            while sent < min(piece + plan.window, step_end):
                value = tensors.value(sent % number)
                offset = sent % plan.window * slot
                view[offset : offset + len(value)] = value
                control.sendall(b"x")
                sent += 1
            control.recv(1)
            which = piece % number
            tensors.sum(which)[:] = sums[offsets[which] : offsets[which + 1]]
        used = watch.seconds
        tensors.check(plan.workers)
        return used

    def server() -> float:
        watch, total = _Stopwatch(plan), np.frombuffer(arena, np.float32)
        received = [np.frombuffer(segment, np.float32) for segment in segments]
        for piece in range(plan.total):
            watch.at(piece)
            for _, control in pairs:
                control.recv(1)
            which, first = piece % number, piece % plan.window * slot // 4
            elements = plan.pieces[which] // 4
            begin = offsets[which] // 4
            add([values[first : first + elements] for values in received], total[begin : begin + elements])
            for _, control in pairs:
                control.sendall(b"x")
        return watch.seconds

    start(server, is_server=True)
    for segment, (control, _) in zip(segments, pairs, strict=True):
        start(functools.partial(worker, segment, control), is_server=False)
    # The processes have their own.
    for control in itertools.chain.from_iterable(pairs):
        control.close()


def _receive(connection: socket.socket, memory: memoryview) -> None:
    got = 0
    while got < len(memory):
        count = connection.recv_into(memory[got:])
        if not count:
            raise RuntimeError("a connection of the bare pipeline ended early")
        got += count


def _tcp() -> socket.socket:
    connection = socket.socket()
    # As psum does between processes that are close to each other. Some machines do not have it.
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    return connection


def _direct(plan: Plan, start: Start) -> None:
    listener = _tcp()
    listener.bind(("127.0.0.1", 0))
    listener.listen(plan.workers)
    with listener:
        start(functools.partial(_direct_server, plan, listener), is_server=True)
        for _ in range(plan.workers):
            start(functools.partial(_direct_worker, plan, listener.getsockname()), is_server=False)


def _direct_worker(plan: Plan, address: tuple[str, int]) -> float:
    number = len(plan.pieces)
    tensors, watch, connection = _Tensors(plan), _Stopwatch(plan), _tcp()
    connection.connect(address)
    # The sender may begin a piece of a step if it has credit and the previous step has ended.
    credit, steps = threading.Semaphore(plan.window), threading.Semaphore(1)

    def send() -> None:
        for piece in range(plan.total):
            if piece % number == 0:
                steps.acquire()
            credit.acquire()
            connection.sendall(tensors.value(piece % number))

    threading.Thread(target=send, daemon=True).start()
    for piece in range(plan.total):
        watch.at(piece)
        _receive(connection, tensors.sum(piece % number))
        credit.release()
        if (piece + 1) % number == 0:
            steps.release()
    used = watch.seconds
    tensors.check(plan.workers)
    return used


def _direct_server(plan: Plan, listener: socket.socket) -> float:
    number = len(plan.pieces)
    watch = _Stopwatch(plan)
    connections = [listener.accept()[0] for _ in range(plan.workers)]
    slots = [[np.empty(max(plan.pieces), np.uint8) for _ in range(plan.window)] for _ in connections]
    totals = [np.empty(size // 4, np.float32) for size in plan.pieces]
    empty = [threading.Semaphore(plan.window) for _ in connections]
    full, made = ([threading.Semaphore(0) for _ in connections] for _ in range(2))

    def receive(which: int) -> None:
        for piece in range(plan.total):
            empty[which].acquire()
            memory = slots[which][piece % plan.window]
            _receive(connections[which], memory.data[: plan.pieces[piece % number]])
            full[which].release()

    def send(which: int) -> None:
        for piece in range(plan.total):
            made[which].acquire()
            connections[which].sendall(totals[piece % number].data)

    threads = [
        threading.Thread(target=work, args=(which,), daemon=True)
        for which in range(plan.workers)
        for work in (receive, send)
    ]
    for thread in threads:
        thread.start()
    for piece in range(plan.total):
        watch.at(piece)
        for semaphore in full:
            semaphore.acquire()
        size = plan.pieces[piece % number]
        values = [memory[piece % plan.window][:size].view(np.float32) for memory in slots]
        add(values, totals[piece % number])
        for which in range(plan.workers):
            empty[which].release()
            made[which].release()
    for thread in threads:
        thread.join()
    return watch.seconds


def _inline(plan: Plan, start: Start) -> None:
    # Holds the port in every process until the server listens there too.
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    probe.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{probe.getsockname()[1]}"
    with probe:
        start(lambda: asyncio.run(_inline_server(plan, address)), is_server=True)
        for _ in range(plan.workers):
            start(lambda: asyncio.run(_inline_worker(plan, address)), is_server=False)


async def _inline_worker(plan: Plan, address: str) -> float:
    import grpc.aio

    number, tensors, watch = len(plan.pieces), _Tensors(plan), _Stopwatch(plan)
    credit, steps = asyncio.Semaphore(plan.window), asyncio.Semaphore(1)
    async with grpc.aio.insecure_channel(address, options=_GRPC_OPTIONS) as channel:
        call: Any = channel.stream_stream("/bare/sum")(wait_for_ready=True)

        async def send() -> None:
            for piece in range(plan.total):
                if piece % number == 0:
                    await steps.acquire()
                await credit.acquire()
                await call.write(bytes(tensors.value(piece % number)))

        sender = asyncio.ensure_future(send())
        for piece in range(plan.total):
            watch.at(piece)
            received: bytes = await call.read()
            tensors.sum(piece % number)[:] = received
            credit.release()
            if (piece + 1) % number == 0:
                steps.release()
        used = watch.seconds
        await sender
    tensors.check(plan.workers)
    return used


async def _inline_server(plan: Plan, address: str) -> float:
    import grpc.aio

    watch, ended = _Stopwatch(plan), asyncio.Semaphore(0)
    waiting: dict[int, list[bytes]] = {}
    sums: list[asyncio.Queue[bytes]] = []

    async def handle(_: object, context: Any) -> None:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        sums.append(queue)

        async def send() -> None:
            for _ in range(plan.total):
                await context.write(await queue.get())

        sender = asyncio.ensure_future(send())
        try:
            for piece in range(plan.total):
                contributions = waiting.setdefault(piece, [])
                contributions.append(await context.read())
                if len(contributions) == plan.workers:
                    watch.at(piece)
                    total = _sum(waiting.pop(piece))
                    for each in sums:
                        each.put_nowait(total)
            await sender
        finally:
            # A worker that has all sums ends the call, perhaps before the last write is known to be done.
            sender.cancel()
            ended.release()

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.stream_stream_rpc_method_handler(handle)

    server = grpc.aio.server(options=_GRPC_OPTIONS)
    server.add_generic_rpc_handlers((Handler(),))
    server.add_insecure_port(address)
    await server.start()
    for _ in range(plan.workers):
        await ended.acquire()
    used = watch.seconds
    await server.stop(_GRACE_SECONDS)
    return used


def _sum(contributions: Sequence[bytes]) -> bytes:
    """Return a sum in new bytes, which are written in place."""
    size = len(contributions[0])
    total = bytes(size)
    memory = (ctypes.c_char * size).from_address(id(total) + bytes.__basicsize__ - 1)
    add(
        [np.frombuffer(value, np.float32) for value in contributions],
        np.frombuffer(memoryview(memory).cast("B"), np.float32),
    )
    return total


PIPELINES: Final[Mapping[str, Callable[[Plan, Start], None]]] = MappingProxyType(
    {"shm": _shm, "direct": _direct, "inline": _inline}
)
