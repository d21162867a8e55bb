"""A TCP proxy that injects network faults."""

import asyncio
import contextlib
import functools
import random

from psum.client.transport.loop_thread import LoopThread

PATIENCE_SECONDS = 30.0


class Proxy:
    """Forwards TCP connections to an aggregator and injects faults on request.

    Args:
        target: The aggregator's address. Its host must not be 127.0.0.1, where the proxy listens.
        data_port: The aggregator's port for data connections. The proxy uses the same port, because the aggregator
            tells its number to the workers.
        seed: Seed for random faults.

    Attributes:
        address: The proxy's address, for workers to connect to.
        connections: Number of connections accepted.
        cuts: Number of connections cut after a random number of bytes.
        dead_ends: Number of data connections that were not forwarded.
    """

    def __init__(self, target: str, data_port: int, seed: int = 0) -> None:
        self._host, _, port = target.rpartition(":")
        self._ports = {0: int(port), data_port: data_port}
        self._target_data_port = data_port
        self._random = random.Random(seed)
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = LoopThread("proxy")
        self.connections = self.cuts = self.dead_ends = 0
        self.cut_after: tuple[int, int] | None = None
        """If set, cut each connection after a random number of bytes in this range, counted over both directions."""
        self.delay_seconds = 0.0
        """Maximum delay of each piece of data."""
        self.data_port = "open"
        """Handling of new data connections: forward ("open"), accept and close ("closed"), do not answer ("silent")."""
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._servers = self._thread.run(self._start(), PATIENCE_SECONDS)
        self.address = "{}:{}".format(*self._servers[0].sockets[0].getsockname())

    def cut(self) -> None:
        """Cut all connections now."""

        async def close() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        self._thread.run(close(), PATIENCE_SECONDS)

    def stall(self) -> None:
        """Stop forwarding without closing connections, as if a cable were pulled."""
        self._thread.call(self._flowing.clear)

    def flow(self) -> None:
        """Resume forwarding."""
        self._thread.call(self._flowing.set)

    def close(self) -> None:
        self.cut()
        for server in self._servers:
            self._thread.call(server.close)
        self._thread.stop()

    async def _start(self) -> list[asyncio.Server]:
        return [
            await asyncio.start_server(functools.partial(self._serve, target_port), "127.0.0.1", port)
            for port, target_port in self._ports.items()
        ]

    async def _serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if port == self._target_data_port and self.data_port != "open":
            await self._serve_dead_end(reader, writer)
            return
        try:
            other_reader, other_writer = await asyncio.open_connection(self._host, port)
        except OSError:
            writer.transport.abort()
            return
        left = [self._random.randint(*self.cut_after)] if self.cut_after else None
        pair = {writer, other_writer}
        self._writers |= pair
        forwarding = [
            asyncio.create_task(self._forward(reader, other_writer, left)),
            asyncio.create_task(self._forward(other_reader, writer, left)),
        ]
        await asyncio.wait(forwarding, return_when=asyncio.FIRST_COMPLETED)
        for task in forwarding:
            task.cancel()
        self._writers -= pair
        for each in pair:
            each.transport.abort()

    async def _serve_dead_end(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Behave as a port-forward or load balancer without a backend."""
        self.dead_ends += 1
        if self.data_port == "silent":
            self._writers.add(writer)
            with contextlib.suppress(OSError):
                while await reader.read(1 << 16):
                    pass
            self._writers.discard(writer)
        writer.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int] | None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._flowing.wait()
                if self.delay_seconds:
                    await asyncio.sleep(self._random.uniform(0, self.delay_seconds))
                if left is not None:
                    data = data[: left[0]]
                    left[0] -= len(data)
                writer.write(data)
                await writer.drain()
                if left is not None and left[0] == 0:
                    self.cuts += 1
                    return
