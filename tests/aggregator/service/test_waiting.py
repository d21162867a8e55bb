"""Processes that wait to join an elastic job keep their stream without a welcome until the members admit them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from psum.aggregator import Server, Settings
from psum.v1 import aggregator_pb2 as pb
from psum.v1 import aggregator_pb2_grpc as rpc
from psum.wire import ShardRound, to_columns
from tests.aggregator.keys import key

SETTINGS = Settings(listen=("127.0.0.1:0",), hello_timeout=2.0, round_timeout=2.0)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    server = Server(SETTINGS)
    await server.start()
    yield server
    await server.stop(0.1)


async def enter(stub: Any, rank: int, **change: Any) -> Any:
    """Says hello on a new stream."""
    fields: dict[str, Any] = {
        "protocol_version": 1,
        "job": "foreign",
        "rank": rank,
        "num_workers": 2,
        "incarnation": 100 + rank,
        "partition_bytes": 1 << 20,
        "planes": [pb.PLANE_INLINE],
        "elastic": pb.Elastic(min=1, max=4),
        "worker": f"worker {rank}",
    }
    call = stub.Exchange()
    await call.write(pb.ExchangeRequest(hello=pb.Hello(**fields | change)))
    return call


async def members(stub: Any) -> list[Any]:
    """The streams of the two first ranks, after their welcome."""
    calls = [await enter(stub, rank) for rank in range(2)]
    for call in calls:
        assert (await call.read()).WhichOneof("kind") == "welcome"
    return calls


async def heard(call: Any, kind: str) -> Any:
    """The next message of a kind."""
    while (answer := await call.read()).WhichOneof("kind") != kind:
        pass
    return getattr(answer, kind)


def candidates(*ranks: int) -> pb.Candidates:
    return pb.Candidates(
        candidates=[pb.Candidate(rank=rank, incarnation=900 + rank, worker=f"worker {rank}") for rank in ranks]
    )


def admit(rank: int, generation: int = 0) -> pb.ExchangeRequest:
    admission = pb.Admission(rank=rank, generation=generation, incarnation=900 + rank, ids=[5], rounds=[0])
    return pb.ExchangeRequest(admit=pb.Admit(admission=admission))


def declare() -> pb.ExchangeRequest:
    return pb.ExchangeRequest(declare=pb.Declare(keys=[key(5, elements=3)]))


def push(value: int) -> pb.ExchangeRequest:
    return pb.ExchangeRequest(
        push=pb.Push(shards=to_columns([ShardRound(id=5, round=0, length=3)])), payload=bytes([value]) * 3
    )


async def test_a_newcomer_gets_its_welcome_when_all_members_have_admitted_it(stub: Any) -> None:
    """It has the admission, and the sum from then on is that of three ranks."""
    calls = await members(stub)
    newcomer = await enter(stub, 2, joining=True, incarnation=902)
    for call in calls:
        assert await heard(call, "candidates") == candidates(2)
        await call.write(admit(2))
    welcome = await heard(newcomer, "welcome")
    assert welcome.admission == admit(2).admit.admission
    for call in calls:
        assert await heard(call, "candidates") == candidates()
    calls.append(newcomer)
    for rank, call in enumerate(calls):
        await call.write(declare())
        await call.write(push(1 << rank))
    for call in calls:
        answer = await call.read()
        while answer.WhichOneof("kind") != "result":
            answer = await call.read()
        assert answer.payload == bytes([7]) * 3
        assert list(answer.result.shards.contributors) == [3]
    second = await enter(stub, 3, joining=True, incarnation=903)
    for call in calls:
        await call.write(admit(3))
    assert list((await heard(second, "welcome")).admissions) == [pb.Admission(rank=2, incarnation=902)]


async def test_members_are_told_who_waits_after_their_welcome(stub: Any) -> None:
    """A process may wait before any member is there, and goes away when its stream ends."""
    waiting = [await enter(stub, rank, joining=True, incarnation=900 + rank) for rank in (2, 3)]
    calls = await members(stub)
    assert await heard(calls[1], "candidates") == candidates(2, 3)
    waiting[0].cancel()
    assert await heard(calls[1], "candidates") == candidates(3)
    await waiting[1].done_writing()
    assert await heard(calls[1], "candidates") == candidates()


async def test_the_stream_of_the_process_before_ends_when_the_next_one_is_admitted(stub: Any) -> None:
    """It is told that it is excluded. What it sends afterwards belongs to nobody."""
    calls = await members(stub)
    newcomer = await enter(stub, 1, joining=True, incarnation=901)
    assert await heard(calls[0], "candidates") == candidates(1)
    await calls[0].write(admit(1, 1))
    assert (await heard(calls[1], "fault")).code == pb.FAULT_CODE_EXCLUDED
    assert (await heard(newcomer, "welcome")).admission.generation == 1
    await calls[0].write(declare())
    await calls[0].write(push(1))
    await newcomer.write(declare())
    await newcomer.write(push(2))
    answer = await newcomer.read()
    while answer.WhichOneof("kind") != "result":
        answer = await newcomer.read()
    assert answer.payload == bytes([3]) * 3
    assert await calls[1].read() is grpc.aio.EOF


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"partition_bytes": 77}, pb.FAULT_CODE_DISAGREEMENT, "PSUM_PARTITION_BYTES"),
        ({"rank": 4}, pb.FAULT_CODE_INVALID, "rank 4 of 4 workers"),
        ({"elastic": None}, pb.FAULT_CODE_INVALID, "not elastic"),
        ({"rank": 0}, pb.FAULT_CODE_WORKER_LOST, "its rank is that of worker 0"),
        ({"rank": 3}, pb.FAULT_CODE_WORKER_LOST, "the members have not admitted it"),
        ({"job": "other"}, pb.FAULT_CODE_WORKER_LOST, "no member of this job has come"),
    ],
)
async def test_a_process_is_told_why_it_cannot_join(stub: Any, change: dict[str, Any], code: int, text: str) -> None:
    """At once, or after the round timeout if that may still change. The members go on."""
    calls = await members(stub)
    call = await enter(stub, **{"rank": 3, "joining": True, "incarnation": 5} | change)
    fault = await heard(call, "fault")
    assert fault.code == code
    assert text in fault.text
    assert await call.read() is grpc.aio.EOF
    for rank, member in enumerate(calls):
        await member.write(declare())
        await member.write(push(1 << rank))
    answer = await calls[0].read()
    while answer.WhichOneof("kind") != "result":
        answer = await calls[0].read()
    assert answer.payload == bytes([3]) * 3


async def test_a_process_that_waits_may_not_send_anything(stub: Any) -> None:
    """Only a member may."""
    await members(stub)
    call = await enter(stub, 2, joining=True, incarnation=902)
    await call.write(declare())
    fault = await heard(call, "fault")
    assert fault.code == pb.FAULT_CODE_INVALID
    assert "sent a message while it waited to join job 'foreign'" in fault.text


async def test_a_first_hello_in_a_rank_that_was_not_there_is_excluded(stub: Any) -> None:
    """The code tells its client to ask to join."""
    await members(stub)
    assert (await heard(await enter(stub, 2), "fault")).code == pb.FAULT_CODE_EXCLUDED


async def test_an_aggregator_that_drains_ends_the_streams_of_those_who_wait() -> None:
    """Without a fault: they wait at its next process."""
    server = Server(SETTINGS)
    await server.start()
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel, asyncio.timeout(30):
        stub = rpc.AggregatorServiceStub(channel)
        calls = await members(stub)
        waiting = await enter(stub, 2, joining=True, incarnation=902)
        assert await heard(calls[0], "candidates") == candidates(2)
        stopping = asyncio.create_task(server.stop(5.0))
        assert await waiting.read() is grpc.aio.EOF
        await heard(calls[0], "drain")
        for call in calls:
            call.cancel()
        await stopping
