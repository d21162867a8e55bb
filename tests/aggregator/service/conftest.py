"""A client of a test's server that speaks the protocol by hand."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest_asyncio

from psum.aggregator import Server
from psum.v1 import aggregator_pb2_grpc as rpc


@pytest_asyncio.fixture
async def stub(server: Server) -> AsyncIterator[Any]:
    """The service of the fixture `server`. All calls must end within 30 s."""
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel, asyncio.timeout(30):
        yield rpc.AggregatorServiceStub(channel)
