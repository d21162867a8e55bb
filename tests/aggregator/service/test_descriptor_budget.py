"""An aggregator knows how many workers its file descriptors are enough for, and tells the next one so."""

import asyncio
import logging
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from psum.aggregator.service import descriptor_budget
from psum.aggregator.service.descriptor_budget import DescriptorBudget, DescriptorMonitor, reserve
from psum.v1 import aggregator_pb2 as pb
from psum.v1 import aggregator_pb2_grpc as rpc
from tests.process_stat import processor_seconds
from tests.processes import with_descriptors

#: Each channel has a connection of its own.
_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


@pytest.mark.parametrize(("limit", "kept"), [(16, 8), (48, 8), (1024, 64), (20_000, 512), (2**63 - 1, 512)])
def test_some_are_kept_back(limit: int, kept: int) -> None:
    """A part of the limit within bounds: few for small limits, and never more than hundreds."""
    assert reserve(limit) == kept
    assert DescriptorBudget(limit, 10).left == max(0, limit - 10 - kept)


def test_what_was_promised_is_not_promised_again() -> None:
    """Until they are given back; `leaving` is respected too."""
    budget = DescriptorBudget(limit=48, used=20)
    budget.recount(30)
    assert budget.left == 10
    assert budget.fits(4, leaving=6)
    assert not budget.fits(4, leaving=7)
    budget.take(4)
    budget.take(6)
    assert budget.left == 0
    assert not budget.fits(1)
    budget.take(1)
    assert budget.left == 0
    budget.give(2)
    assert budget.left == 1


async def test_descriptors_of_streams_that_have_ended_are_awaited_and_others_are_not() -> None:
    """A new worker is refused at once if all descriptors belong to connected workers, and not because the last messages
    to others are being sent."""
    budget = DescriptorBudget(limit=48, used=36)
    budget.take(4)
    async with asyncio.timeout(10):
        await budget.await_room(1, 3600)
        assert not budget.fits(1)
        budget.end(2)
        waiting = asyncio.create_task(budget.await_room(2, 3600))
        await asyncio.sleep(0)
        budget.give(1, ended=True)
        await asyncio.sleep(0)
        assert not waiting.done()
        budget.give(1, ended=True)
        await waiting
        assert budget.fits(2)
        budget.end(2)
        await budget.await_room(3, 0.01)
        assert not budget.fits(3)


async def test_an_aggregator_that_ran_out_nevertheless_says_so_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The libraries that accept connections do not log it."""
    monkeypatch.setattr(descriptor_budget, "_LOOK_SECONDS", 0.01)
    looks: asyncio.Queue[int] = asyncio.Queue()

    def open_descriptors() -> int:
        looks.put_nowait(1)
        return 47

    monkeypatch.setattr(descriptor_budget, "descriptor_limit", lambda: 48)
    monkeypatch.setattr(descriptor_budget, "open_descriptors", open_descriptors)
    monitor = DescriptorMonitor()
    async with asyncio.timeout(10):
        for _ in range(5):
            await looks.get()
    monitor.close()
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("47 of 48 file descriptors are in use: new connections wait or are closed")


@asynccontextmanager
async def stream(
    address: str, rank: int, *, resuming: bool = False, planes: tuple[int, ...] = (1,)
) -> AsyncIterator[Any]:
    """A worker's stream on a connection of its own, after hello."""
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        call: Any = rpc.AggregatorServiceStub(channel).Exchange()
        hello = pb.Hello(
            protocol_version=1,
            job="many",
            rank=rank,
            num_workers=64,
            incarnation=rank,
            partition_bytes=1 << 20,
            planes=planes,  # type: ignore[arg-type]
            resuming=resuming,
            worker=f"host pid {rank}",
        )
        await call.write(pb.ExchangeRequest(hello=hello))
        yield call


async def get(http: str, path: str) -> tuple[int, str]:
    """Status and text of an HTTP answer."""

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{http}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


async def capacity(http: str) -> int:
    """How many workers fit, including the connected ones."""
    _, text = await get(http, "/metrics")
    found = re.search(r"^psum_worker_capacity (\S+)", text, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


async def test_as_many_as_fit_are_taken_and_the_next_is_refused_in_words(
    start_process: Callable[..., Any],
) -> None:
    """At once, without processor time, and visible to operators. After one has left, another can connect."""
    served = start_process(descriptors=48)
    async with asyncio.timeout(60):
        fits = await capacity(served.http)
        assert 10 <= fits <= 25
        assert await get(served.http, "/readyz") == (200, "ready\n")
        streams = [stream(served.address, rank) for rank in range(fits)]
        calls = [await one.__aenter__() for one in streams]
        for call in calls:
            assert (await call.read()).welcome.plane == pb.PLANE_INLINE
        assert await capacity(served.http) == fits
        status, why = await get(served.http, "/readyz")
        assert status == 503
        assert "may have 48 files and connections open (its limit of file descriptors)" in why

        for rank in range(40, 50):
            async with stream(served.address, rank) as call:
                fault = (await call.read()).fault
            assert fault.code == pb.FAULT_CODE_EXHAUSTED
            assert list(fault.ranks) == [rank]
            assert re.search(
                rf"rank {rank} of job 'many' \(host pid {rank}\) was refused, {fits} workers are connected: the"
                r" aggregator on \S+ may have 48 files .* each worker takes 1 to 4; raise it with ulimit -n,",
                fault.text,
            )
        # The workers that wait for it are told why, once.
        assert (await calls[0].read()).notice.text.startswith("rank 40 of job 'many' (host pid 40) was refused")
        # A worker that comes back may try again: a fault would end its training.
        async with stream(served.address, 50, resuming=True) as call:
            with pytest.raises(grpc.aio.AioRpcError, match="was refused") as refusal:
                await call.read()
            assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        # A worker whose old stream is still open here replaces it.
        async with stream(served.address, 3, resuming=True) as call:
            assert (await call.read()).HasField("welcome")

            before = processor_seconds(served.pid)
            # The processor time of an idle aggregator is measured.
            await asyncio.sleep(1)
            assert processor_seconds(served.pid) - before < 0.2

        for one in streams:
            await one.__aexit__(None, None, None)
        async with stream(served.address, 1, resuming=True) as call:
            assert (await call.read()).HasField("welcome")
        # A stream that ends keeps its descriptors until its last messages are sent.
        while await capacity(served.http) != fits:
            pass


async def test_rather_all_in_messages_than_some_not_at_all(start_process: Callable[..., Any]) -> None:
    """Data connections and shared memory are not offered where descriptors would not be enough for all ranks then; each
    worker is told why."""
    served = start_process(descriptors=80)
    assert 30 < await capacity(served.http) < 64
    async with asyncio.timeout(30), stream(served.address, 0, planes=(1, 3)) as call:
        welcome = (await call.read()).welcome
        assert (welcome.plane, welcome.data_port) == (pb.PLANE_INLINE, 0)
        notice = (await call.read()).notice.text
    assert notice.startswith(f"rank 0 has only its stream to {served.address}, which is slower: the aggregator on ")
    assert "may have 80 files and connections open" in notice


@pytest.mark.parametrize("limit", [14, 20, 30])
def test_a_limit_that_is_enough_for_nothing_is_told_in_words_alone(limit: int) -> None:
    """gRPC would abort the process without a message."""
    done = subprocess.run(
        with_descriptors(limit, [sys.executable, "-m", "psum.cli", "aggregator", "--listen", "127.0.0.1:0"]),
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert f"may have no more than {limit} files and connections open (its limit of file descriptors)" in done.stderr
    assert "An aggregator needs 32 for itself, and up to 4 for each worker" in done.stderr
    assert "Traceback" not in done.stderr
