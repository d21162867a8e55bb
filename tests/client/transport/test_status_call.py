"""What else than an aggregator may answer a question about its state."""

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

from psum.aggregator.relay.core.introduction import Identity
from psum.aggregator.relay.inquiries import Inquiries
from psum.client import Settings
from psum.client.transport import process_lists, split_addresses
from psum.client.transport.credentials import Credentials
from psum.v1 import aggregator_pb2 as pb

PATIENCE_SECONDS = 10.0


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """The address of a server that answers with bytes that are not a message."""

    async def answer(request: bytes, context: object) -> bytes:
        return b"\xff"

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"GetStatus": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("psum.v1.AggregatorService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def test_bytes_that_are_not_a_status_are_an_answer_of_something_else(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Relays and workers take it as one process, and find out what it is when they join. Nothing logs a traceback."""
    settings = Settings(aggregators=(address,), connect_timeout=PATIENCE_SECONDS)
    credentials = Credentials.of(settings)
    relay = Inquiries(
        Identity(7, "here"),
        credentials,
        insecure=False,
        connect_timeout=PATIENCE_SECONDS,
        descriptors=lambda count: True,
    )
    assert await relay.ask(pb.Hello(job="night", group_size=2, aggregators=[address]), "", None) == [pb.Inquiry()]
    assert await process_lists._ask(address, settings, credentials) == ()
    assert await split_addresses._ask(lambda status: True, "night", address, credentials) is None
    assert not caplog.records
