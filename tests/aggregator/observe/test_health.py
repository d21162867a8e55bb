"""The standard gRPC health service, and reflection."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from psum import client as psum
from psum.aggregator import Server, Settings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

SERVICE = "psum.v1.AggregatorService"

#: How long anything in these tests may take.
PATIENCE_SECONDS = 30.0


def stub(channel: grpc.aio.Channel) -> Any:
    """A stub of the health service; its methods are made at run time."""
    return health_pb2_grpc.HealthStub(channel)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """An aggregator on the test's event loop."""
    server = Server(Settings(listen=("127.0.0.1:0",), reflection=True))
    await server.start()
    yield server
    await server.stop(0)


@pytest.mark.parametrize("name", ["", SERVICE])
async def test_it_serves_once_it_was_started(server: Server, name: str) -> None:
    """Both the empty name and the name of its service report SERVING, as Kubernetes' gRPC probes expect."""
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
        response = await stub(channel).Check(health_pb2.HealthCheckRequest(service=name))
    assert response.status == SERVING


async def test_an_unknown_service_is_not_found(server: Server) -> None:
    """The health protocol requires NOT_FOUND."""
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub(channel).Check(health_pb2.HealthCheckRequest(service="psum.Other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_who_watches_hears_of_the_drain_while_rounds_are_finished(server: Server) -> None:
    """A watcher is told of the drain before the streams of the workers end."""
    fast, slow = await asyncio.gather(
        *(
            asyncio.to_thread(psum.connect, psum.Settings(aggregators=server.addresses, rank=rank, num_workers=2))
            for rank in range(2)
        )
    )
    result = fast.store().push_pull_async("w", np.ones(5, np.float32))
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel, asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if (await asyncio.to_thread(psum.fetch_status, server.addresses[0])).jobs[0].rounds_waiting:
                break
            await asyncio.sleep(0.01)
        watch = stub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        stopping = asyncio.create_task(server.stop(PATIENCE_SECONDS))
        assert (await watch.read()).status == NOT_SERVING
        assert not stopping.done()
        slow.store().push_pull_async("w", np.ones(5, np.float32))
        await asyncio.to_thread(result.result, PATIENCE_SECONDS)
        await stopping
        watch.cancel()
    for client in (fast, slow):
        client.fail(psum.ClosedError("the test is over"))
        await asyncio.to_thread(client.close, 0.1)


async def test_reflection_names_the_services(server: Server) -> None:
    """With the setting, tools such as grpcurl find the services."""

    def ask() -> list[str]:
        with grpc.insecure_channel(server.addresses[0]) as channel:
            return list(ProtoReflectionDescriptorDatabase(channel).get_services())

    assert set(await asyncio.to_thread(ask)) >= {SERVICE, "grpc.health.v1.Health"}


async def test_by_default_there_is_no_reflection() -> None:
    """Reflection is off by default."""
    server = Server(Settings(listen=("127.0.0.1:0",)))
    await server.start()

    def ask() -> None:
        with grpc.insecure_channel(server.addresses[0]) as channel:
            ProtoReflectionDescriptorDatabase(channel).get_services()

    with pytest.raises(grpc.RpcError) as caught:
        await asyncio.to_thread(ask)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await server.stop(0)
