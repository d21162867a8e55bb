"""The service speaks plain protobuf: any generated stub can use it, and no message from a client does harm."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from psum.aggregator import Server, Settings
from psum.v1 import aggregator_pb2 as pb
from psum.v1 import aggregator_pb2_grpc as rpc
from psum.wire import ShardRound, to_columns, to_rows
from tests.aggregator.keys import key


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    server = Server(Settings(listen=("127.0.0.1:0",), hello_timeout=2.0))
    await server.start()
    yield server
    await server.stop(0.1)


def hello(rank: int = 0, num_workers: int = 1, ranks: Sequence[int] = ()) -> pb.ExchangeRequest:
    return pb.ExchangeRequest(
        hello=pb.Hello(
            protocol_version=1,
            job="foreign",
            rank=rank,
            num_workers=num_workers,
            ranks=ranks,
            partition_bytes=1 << 20,
            planes=[pb.PLANE_INLINE],
        )
    )


def declare(elements: int) -> pb.ExchangeRequest:
    return pb.ExchangeRequest(declare=pb.Declare(keys=[key(5, elements=elements)]))


def push(payload: bytes, round: int = 0) -> pb.ExchangeRequest:
    return pb.ExchangeRequest(
        push=pb.Push(shards=to_columns([ShardRound(id=5, round=round, length=len(payload))])), payload=payload
    )


def lacking(*ranks: Sequence[int]) -> pb.ExchangeRequest:
    """Says for which ranks round 0 waits."""
    lists = [pb.Ranks(ranks=each) for each in ranks]
    return pb.ExchangeRequest(lacking=pb.Lacking(shards=to_columns([ShardRound(id=5)]), ranks=lists))


@pytest.mark.parametrize("size", [1, 1000, 200_000])
async def test_a_client_of_generated_classes_gets_its_sum(stub: Any, size: int) -> None:
    """Hello, declare, push, result, goodbye, sync, farewell: all by the generated stub, small and large."""
    calls = [stub.Exchange() for _ in range(2)]
    for rank, call in enumerate(calls):
        await call.write(hello(rank, 2))
        assert (await call.read()).WhichOneof("kind") == "welcome"
        await call.write(declare(size))
    for round in range(2):
        for rank, call in enumerate(calls):
            await call.write(push(bytes([rank + 1]) * size, round))
        for call in calls:
            answer = await call.read()
            while answer.WhichOneof("kind") == "taken":
                answer = await call.read()
            assert answer.payload == bytes([3]) * size
            assert [(s.id, s.round, s.length) for s in to_rows(answer.result.shards)] == [(5, round, size)]
    await calls[0].write(pb.ExchangeRequest(goodbye=pb.Goodbye()))
    sync = (await calls[1].read()).sync
    await calls[1].write(pb.ExchangeRequest(synced=pb.Synced(number=sync.number)))
    await calls[1].write(pb.ExchangeRequest(goodbye=pb.Goodbye()))
    for call in calls:
        assert (await call.read()).WhichOneof("kind") == "farewell"
        if size > 1:
            # The worker ends the stream. If it does not, the aggregator does after a while.
            await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    assert [e.name for e in (await stub.GetStatus(pb.GetStatusRequest())).ended] == ["foreign"]


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([push(b"abc")], "the first message of a stream is hello, not push"),
        ([pb.ExchangeRequest()], "the first message of a stream is hello, not None"),
        ([hello(), push(b"abc")], "which it has not declared"),
        ([hello(), declare(3), push(b"abcd")], "contributed 4 bytes to shard 0 of key 'w'; expected 3"),
        ([hello(), declare(3), push(b"abc", 7)], "round 7 .* which is at round 0"),
        (
            [hello(), pb.ExchangeRequest(push=pb.Push(shards=pb.ShardRounds(ids=[5, 6, 7, 8], rounds=[0, 0, 0])))],
            "3 rounds for 4 ids; expected the same number, two, one, or none",
        ),
        ([hello(), hello()], "sent hello, which nobody asked it for"),
        ([hello(), pb.ExchangeRequest()], "sent None"),
        ([hello(rank=1)], "rank 1 of 1 workers"),
        ([hello(num_workers=0)], "of 0 workers"),
        ([hello(1, 4, [1, 3, 2])], r"rank 1 that stands for ranks \[1, 3, 2\] of 4 workers; expected each rank once"),
        ([hello(1, 4, [1, 1])], r"rank 1 that stands for ranks \[1, 1\]"),
        ([hello(1, 4, [0, 1])], r"rank 1 that stands for ranks \[0, 1\]"),
        ([hello(2, 4, [2, 3, 4])], r"rank 2 that stands for ranks \[2, 3, 4\] of 4 workers"),
        ([hello(0, 5000, range(4500))], "rank 0 of 5000 workers; a job has 1 to 4096 workers"),
        ([hello(0, 4, [0, 1]), pb.ExchangeRequest(goodbye=pb.Goodbye(ranks=[2]))], "ranks 0-1 .* goodbye for rank 2"),
        ([hello(0, 4, [0, 1]), declare(3), lacking([2])], "ranks 0-1 of job 'foreign' waits for rank 2, which it does"),
        ([hello(0, 4, [0, 1]), declare(3), lacking()], "told what 1 rounds lack, in 0 lists of ranks"),
        ([hello(0, 4), declare(3), lacking([1])], "rank 0 of job 'foreign' waits for rank 1"),
    ],
)
async def test_what_breaks_the_protocol_is_answered_in_words_and_ends_the_stream(
    stub: Any, messages: list[pb.ExchangeRequest], complaint: str
) -> None:
    """The fault says what was wrong, and the next worker is served as usual."""
    call = stub.Exchange()
    for message in messages:
        await call.write(message)
    answers = [m async for m in call]
    assert answers[-1].fault.code == pb.FAULT_CODE_INVALID
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(answers[-1].fault.text)
    other = stub.Exchange()
    greeting = hello()
    greeting.hello.job = "another"
    await other.write(greeting)
    assert (await other.read()).WhichOneof("kind") == "welcome"
    other.cancel()


async def test_a_connection_that_says_nothing_is_ended(stub: Any) -> None:
    """A stream without a hello is ended."""
    call = stub.Exchange()
    answers = [m async for m in call]
    assert "no hello within 2 s" in answers[-1].fault.text


async def test_the_last_word_reaches_a_worker_that_still_sends(server: Server, stub: Any) -> None:
    """The stream stays open after the farewell until the worker ends it, although the job is over."""
    call = stub.Exchange()
    await call.write(hello())
    await call.write(pb.ExchangeRequest(goodbye=pb.Goodbye()))
    while not (await stub.GetStatus(pb.GetStatusRequest())).ended:
        pass
    await call.write(pb.ExchangeRequest(synced=pb.Synced(number=0)))
    assert [(await call.read()).WhichOneof("kind") for _ in range(2)] == ["welcome", "farewell"]
    call.cancel()


async def test_bytes_that_are_no_message_end_the_stream_only(server: Server) -> None:
    """Garbage is answered with a fault."""
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel, asyncio.timeout(30):
        call: Any = channel.stream_stream("/psum.v1.AggregatorService/Exchange")()
        await call.write(hello().SerializeToString())
        await call.read()
        await call.write(b"\xff\xff\xff garbage")
        answer = pb.ExchangeResponse.FromString(await call.read())
        assert answer.fault.code == pb.FAULT_CODE_INVALID


async def test_bytes_that_are_no_question_are_refused(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """GetStatus answers garbage with INVALID_ARGUMENT, and without a traceback in the log."""
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel, asyncio.timeout(30):
        call: Any = channel.unary_unary("/psum.v1.AggregatorService/GetStatus")
        with pytest.raises(grpc.aio.AioRpcError, match=r"INVALID_ARGUMENT[^$]*not a psum.v1.GetStatusRequest"):
            await call(b"\x0a\x02\xff\xff")
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_contribution_does_not_keep_the_rest_of_its_message(server: Server, stub: Any) -> None:
    """A message may be padded to any size; until the round is complete, only its contribution is kept."""
    call = stub.Exchange()
    for message in (hello(0, 2), declare(3)):
        await call.write(message)
    padded = push(b"abc")
    padded.padding = bytes(1 << 20)
    await call.write(padded)
    answers = [await call.read() for _ in range(2)]
    assert [answer.WhichOneof("kind") for answer in answers] == ["welcome", "taken"]
    [job] = server._service.registry.jobs.values()
    [kept] = job.keys[5].shards[0].contributions.values()
    assert memoryview(kept.obj).nbytes == 3
    call.cancel()


async def test_who_takes_no_answers_is_not_listened_to(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cheap requests with large answers do not fill the memory of an aggregator."""
    monkeypatch.setattr("psum.aggregator.service.send_queue._MAX_CONTROL", 10)
    taken, read = asyncio.Event(), 0
    again = pb.ExchangeRequest(declare=pb.Declare(keys=[pb.Key(id=5, name="other", type=pb.ELEMENT_TYPE_UINT8)]))

    class Deaf:
        def peer(self) -> str:
            return "deaf"

        def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
            return ()

        async def read(self) -> bytes:
            nonlocal read
            read += 1
            await asyncio.sleep(0)
            return ([hello(), declare(3)][read - 1] if read <= 2 else again).SerializeToString()

        async def write(self, data: bytes) -> None:
            await taken.wait()

    service = server._service
    task = asyncio.create_task(service._exchange(None, Deaf()))  # type: ignore[arg-type]
    async with asyncio.timeout(30):
        while not service.connections or len(next(iter(service.connections)).queue) <= 10:  # noqa: ASYNC110
            await asyncio.sleep(0)
        before = read
        for _ in range(100):
            await asyncio.sleep(0)
        assert read == before
        taken.set()
        while read < before + 100:  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_status_shows_rounds_that_wait_and_for_whom(stub: Any) -> None:
    """GetStatus lists the job, its workers, and the rank that a round waits for."""
    call = stub.Exchange()
    await call.write(hello(0, 2))
    await call.read()
    await call.write(declare(3))
    await call.write(push(b"abc"))
    assert (await call.read()).WhichOneof("kind") == "taken"
    status = await stub.GetStatus(pb.GetStatusRequest(job="foreign"))
    [job] = status.jobs
    assert [(w.rank, w.connected, w.received_bytes) for w in job.workers] == [(0, True, 3)]
    assert [(r.key, list(r.waiting_for)) for r in job.rounds] == [("w", [1])]
    assert status.cpu_seconds > 0
    assert not (await stub.GetStatus(pb.GetStatusRequest(job="other"))).jobs
    call.cancel()


async def test_what_came_before_something_wrong_in_a_message_counts(stub: Any) -> None:
    """The first shard of a message completes a round, although the second one ends the sender's stream."""
    calls = [stub.Exchange() for _ in range(2)]
    for rank, call in enumerate(calls):
        await call.write(hello(rank, 2))
        await call.read()
        await call.write(declare(3))
    await calls[0].write(push(b"abc"))
    assert (await calls[0].read()).WhichOneof("kind") == "taken"
    both = pb.Push(shards=to_columns([ShardRound(5, length=3), ShardRound(6, length=3)]))
    await calls[1].write(pb.ExchangeRequest(push=both, payload=bytes(6)))
    assert (await calls[0].read()).payload == b"abc"
    while not (answer := await calls[1].read()).HasField("fault"):
        assert answer.payload == b"abc"
    assert "which it has not declared" in answer.fault.text


async def test_a_contribution_that_waits_does_not_keep_the_rest_of_its_message(stub: Any) -> None:
    """Four bytes in a message of megabytes keep only four bytes, as the budget counts them."""
    call = stub.Exchange()
    await call.write(hello(0, 2))
    await call.read()
    tracemalloc.start()
    try:
        for id in range(4):
            declared = declare(4)
            declared.declare.keys[0].id = id
            await call.write(declared)
            pushed = pb.Push(shards=to_columns([ShardRound(id=id, length=4)]))
            await call.write(pb.ExchangeRequest(push=pushed, padding=bytes(3 << 20), payload=b"abcd"))
            # Credit is returned after the contribution was copied.
            assert (await call.read()).WhichOneof("kind") == "taken"
        assert tracemalloc.get_traced_memory()[0] < 6 << 20
    finally:
        tracemalloc.stop()


async def test_a_job_that_failed_ends_though_a_worker_does_not_read() -> None:
    """The worker's stream is ended after a while, and its job's name and memory are free again."""
    settings = Settings(listen=("127.0.0.1:0",), hello_timeout=1.0, max_shards=1)
    server = Server(settings)
    await server.start()
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel, asyncio.timeout(30):
        stub: Any = rpc.AggregatorServiceStub(channel)
        calls = [stub.Exchange() for _ in range(2)]
        size = 1 << 20
        for rank, call in enumerate(calls):
            await call.write(hello(rank, 2))
            await call.read()
            await call.write(declare(size))
        # One worker reads its results. The other does not, until its connection is full.
        for round in range(12):
            for call in calls:
                await call.write(push(bytes(size), round))
            while (await calls[0].read()).WhichOneof("kind") != "result":
                pass
        too_much = declare(1)
        too_much.declare.keys[0].id = 6
        await calls[0].write(too_much)
        while (answer := await calls[0].read()).WhichOneof("kind") != "fault":
            pass
        assert "PSUM_MAX_SHARDS" in answer.fault.text
        # There is no event to wait for: nobody is told of the end of a job.
        while (await stub.GetStatus(pb.GetStatusRequest())).jobs:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await server.stop(0.1)


@pytest.mark.parametrize("size", [4, 200_000])
async def test_a_sum_that_cannot_be_made_fails_the_job_on_every_rank(
    stub: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both on the event loop and in a thread."""

    def out_of_memory(*_arguments: object) -> None:
        raise MemoryError

    for module in ("service.summation", "sums.small_sums"):
        monkeypatch.setattr(f"psum.aggregator.{module}.add_up", out_of_memory)
    calls = [stub.Exchange() for _ in range(2)]
    for rank, call in enumerate(calls):
        await call.write(hello(rank, 2))
        await call.read()
        await call.write(declare(size))
        await call.write(push(bytes(size)))
    for call in calls:
        while (answer := await call.read()).WhichOneof("kind") != "fault":
            assert answer.WhichOneof("kind") == "taken"
        assert answer.fault.code == pb.FAULT_CODE_INTERNAL
        assert "could not sum key 'w' round 0 of job 'foreign': MemoryError()" in answer.fault.text
