"""A server to which workers can connect, and which does not answer hello."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import grpc.aio

from psum.client.transport.loop_thread import LoopThread

_SECONDS = 10.0


@contextlib.contextmanager
def silent_server(address: str = "127.0.0.1:0") -> Iterator[str]:
    """Run a gRPC server that accepts Exchange and says nothing, and that has no GetStatus. Give its address."""
    thread = LoopThread("silent server")
    try:
        server, port = thread.run(_start(address), _SECONDS)
        try:
            yield f"{address.rpartition(':')[0]}:{port}"
        finally:
            thread.run(server.stop(0), _SECONDS)
    finally:
        thread.stop()


async def _start(address: str) -> tuple[grpc.aio.Server, int]:
    async def wait(*_: object) -> None:
        await asyncio.Event().wait()

    server = grpc.aio.server()
    handler: Any = grpc.stream_stream_rpc_method_handler(wait)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("psum.v1.AggregatorService", {"Exchange": handler}),)
    )
    port = server.add_insecure_port(address)
    await server.start()
    return server, port
