"""The cost of scraping an aggregator, with many jobs of many workers on real streams."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import grpc.aio
import pytest

from psum.v1 import aggregator_pb2 as pb
from psum.v1 import aggregator_pb2_grpc as rpc
from psum.wire import PROTOCOL_VERSION, ShardRound, to_columns
from tests.aggregator.keys import key
from tests.process_stat import processor_seconds

JOBS = 50
WORKERS = 100

#: The interval of deploy/kubernetes/components/monitoring.
SCRAPE_INTERVAL_SECONDS = 15

#: How long all workers together may take to join, and any answer to come.
PATIENCE_SECONDS = 60.0


async def work(stub: Any, job: int, rank: int) -> Any:
    """One worker: joins, contributes to one round, and stays. Returns its stream once it has the sum."""
    hello = pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        job=f"job-{job}",
        rank=rank,
        num_workers=WORKERS,
        partition_bytes=1 << 20,
        planes=[pb.PLANE_INLINE],
        worker=f"host{rank} pid {rank}",
    )
    call = stub.Exchange()
    await call.write(pb.ExchangeRequest(hello=hello))
    await call.write(pb.ExchangeRequest(declare=pb.Declare(keys=[key(5, elements=1)])))
    await call.write(pb.ExchangeRequest(push=pb.Push(shards=to_columns([ShardRound(id=5, length=1)])), payload=b"1"))
    while (kind := (await call.read()).WhichOneof("kind")) != "result":
        assert kind in ("welcome", "taken")
    return call


@pytest.fixture
async def busy(start_process: Callable[..., Any]) -> AsyncIterator[Any]:
    """An aggregator with all workers of all jobs connected, each of which has had a sum."""
    served = await asyncio.to_thread(start_process, "--max-streams", str(2 * JOBS * WORKERS))
    # One job after another, so that no round waits long enough for a warning.
    room = asyncio.Semaphore(WORKERS)
    # A separate connection for each job: by default gRPC would share one.
    options = (("grpc.use_local_subchannel_pool", 1),)
    channels = [grpc.aio.insecure_channel(served.address, options) for _ in range(JOBS)]

    async def join(job: int, rank: int) -> Any:
        async with room:
            return await asyncio.wait_for(work(rpc.AggregatorServiceStub(channels[job]), job, rank), PATIENCE_SECONDS)

    joining = [asyncio.create_task(join(job, rank)) for job in range(JOBS) for rank in range(WORKERS)]
    streams = await asyncio.gather(*joining)
    yield served
    # The workers' orderly end is not part of this test.
    os.kill(served.pid, signal.SIGKILL)
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*(channel.close() for channel in channels))


@pytest.mark.once
@pytest.mark.timeout(150)
async def test_scraping_many_jobs_costs_little(busy: Any) -> None:
    """50 jobs of 100 connected workers, scraped as often as in the manifests: less than one percent of a processor."""
    times = 10
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE_SECONDS)) as session:

        async def scrape() -> str:
            async with session.get(f"http://{busy.http}/metrics") as response:
                return await response.text()

        text = await scrape()
        before = processor_seconds(busy.pid)
        for _ in range(times):
            await scrape()
        cost = (processor_seconds(busy.pid) - before) / times
    for job in range(JOBS):
        assert f'psum_workers_connected{{job_name="job-{job}"}} {WORKERS}.0' in text
        assert f'psum_round_duration_seconds_count{{job_name="job-{job}",operation="sum"}} 1.0' in text
    assert "rank=" not in text
    print(f"{len(text)} bytes, {cost * 1000:.1f} ms of processor time, {cost / SCRAPE_INTERVAL_SECONDS:.2%}")
    assert cost < 0.01 * SCRAPE_INTERVAL_SECONDS
