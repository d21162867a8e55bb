"""An aggregator that relays forward to, and that breaks the protocol: a real gRPC server with mutated answers."""

import asyncio
import dataclasses
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from random import Random
from typing import Any, Final

import grpc.aio
from google.protobuf.message import DecodeError

from psum.v1 import aggregator_pb2 as pb
from psum.wire import encode, to_rows
from tests.fuzz.columns import pieces_of
from tests.fuzz.harness import ViolationError
from tests.fuzz.mutation import Mutator
from tests.fuzz.session import FakeAggregator

#: Texts of failures: empty, forged log lines, terminal codes, long ones.
_TEXTS: Final = ("", "no", "\n2026-01-01 ERROR forged", "\x1b[31m\0", "%s{0}", "é" * 400, "x" * 20_000)

Place = tuple[int, int, int]
"""(key's id, shard, round)."""


@dataclasses.dataclass(slots=True)
class Run:
    """What the owner does for one group, and what it has seen of it.

    Attributes:
        random: Generator of all decisions.
        error_rate: The fraction of answers that are mutated.
        sums: For each round of a shard the sum that the relay must forward; empty for one that it must pull.
        results: The payloads of well-formed results that were sent.
        reported_fault: Whether a failure was sent.
        gone: Set when the owner is not there any more.
        problems: What the relay did wrong.
    """

    random: Random
    error_rate: float
    sums: dict[Place, bytes]
    results: defaultdict[Place, set[bytes]] = dataclasses.field(default_factory=lambda: defaultdict(set))
    reported_fault: bool = False
    gone: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    problems: list[BaseException] = dataclasses.field(default_factory=list)


class FaultyOwner:
    """The server. Relays of groups that it does not know are refused."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        """By the job's name."""
        self.outcomes: Counter[str] = Counter()
        self.addresses: tuple[str, ...] = ()
        """Two addresses, as of two aggregators."""
        self.answers = Random(0)
        """Decides how questions about processes are answered."""
        self.received = 0
        """Number of messages of relays."""

    async def start(self) -> None:
        """Listen."""
        self._server = grpc.aio.server()
        handlers: dict[str, Any] = {
            "Exchange": grpc.stream_stream_rpc_method_handler(self._exchange),
            "GetStatus": grpc.unary_unary_rpc_method_handler(self._get_status),
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("psum.v1.AggregatorService", handlers),)
        )
        self.addresses = tuple(f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}" for _ in range(2))
        await self._server.start()

    async def stop(self) -> None:
        """End all connections."""
        await self._server.stop(0)

    async def _get_status(self, data: bytes, context: Any) -> bytes:
        """Answer a question about processes."""
        random = self.answers
        process = pb.Process(addresses=["127.0.0.1:5", random.choice(_TEXTS)])
        inquiry = pb.Inquiry(processes=[process], problem=random.choice(_TEXTS), address="127.0.0.1:5")
        answer = pb.GetStatusResponse(incarnation=5, processes=[process, process], inquiries=[inquiry])
        if random.random() < 0.1:
            await context.abort(random.choice(list(grpc.StatusCode)[1:]), "fuzzed \n\0é")
        if random.random() < 0.2:
            return answer.SerializeToString()
        return Mutator(random, (answer,)).mutate(answer, b"")

    async def _exchange(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        if (first := await anext(requests, None)) is None:
            return
        hello = pb.ExchangeRequest.FromString(first).hello
        run = self.runs.get(hello.job)
        if run is None or run.gone.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "it has ended")
        assert run is not None
        try:
            async for answer in self._converse(run, hello, requests, context):
                yield answer
        except ViolationError as error:
            run.problems.append(error)

    async def _converse(
        self, run: Run, hello: pb.Hello, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[bytes]:
        random, fake = run.random, FakeAggregator(run.random)
        welcome = pb.Welcome(
            incarnation=5, plane=pb.PLANE_INLINE, max_message_bytes=1 << 20, relays=hello.group_size > 0
        )
        fake.waiting.append((pb.ExchangeResponse(welcome=welcome), b""))
        for answer in self._answers(run, fake):
            yield answer
        while (data := await _next(requests, run.gone)) is not None:
            self._receive(run, fake, data)
            for answer in self._answers(run, fake):
                yield answer
            if random.random() < run.error_rate / 4:
                code = random.choice((None, *grpc.StatusCode))
                if code is None or code is grpc.StatusCode.OK:
                    return
                await context.abort(code, "fuzzed \n\0é")

    def _receive(self, run: Run, fake: FakeAggregator, data: bytes) -> None:
        """Take a message of the relay, which must be right whatever it was sent.

        Raises:
            ViolationError: It is not.
        """
        random = run.random
        self.received += 1
        message = pb.ExchangeRequest.FromString(data)
        match message.WhichOneof("kind"):
            case "push":
                for where, piece in pieces_of(message.push.shards, message.payload):
                    if run.sums.get(where) != piece:
                        raise ViolationError(f"the relay forwards a wrong sum of {where}: {piece[:50]!r}")
                fake.receive(data)
            case "pull":
                for row in to_rows(message.pull.shards):
                    if run.sums.get((row.id, row.shard, row.round)) != b"":
                        raise ViolationError(f"the relay pulls {row}, to which its group contributes")
                fake.receive(data)
            case "goodbye" if not message.goodbye.ranks:
                fake.waiting.append((pb.ExchangeResponse(farewell=pb.Farewell()), b""))
            case "goodbye" | "lacking":
                pass
            case _:
                fake.receive(data)
        if random.random() < 0.1:
            fake.send_unsolicited()
        if random.random() < run.error_rate / 5:
            fault = pb.Fault(
                code=random.choice(pb.FaultCode.values()),
                text=random.choice(_TEXTS),
                ranks=[random.choice((0, 1 << 31))],
            )
            fake.waiting.append((pb.ExchangeResponse(fault=fault), b""))
        if random.random() < run.error_rate / 5:
            notice = pb.Notice(text=random.choice(_TEXTS))
            fake.waiting.append((pb.ExchangeResponse(notice=notice), b""))
        if random.random() < run.error_rate / 5:
            fake.waiting.append((pb.ExchangeResponse(farewell=pb.Farewell()), b""))

    def _answers(self, run: Run, fake: FakeAggregator) -> Iterator[bytes]:
        """Yield what waits to be sent. Some of it is mutated, repeated, left out, or in another order."""
        random = run.random
        while fake.waiting:
            if random.random() < run.error_rate / 2:
                fake.waiting.rotate(1)
            answer, payload = fake.waiting[0] if random.random() < run.error_rate / 4 else fake.waiting.popleft()
            fake.recent = [*fake.recent[-8:], answer]
            if random.random() < run.error_rate:
                data = Mutator(random, fake.recent).mutate(answer, payload)
            elif random.random() < run.error_rate / 4:
                continue
            else:
                data = encode(answer, payload)
            self._record(run, data)
            yield data

    def _record(self, run: Run, data: bytes) -> None:
        """Note what a message says, parsed by protobuf and not by psum."""
        try:
            message = pb.ExchangeResponse.FromString(data)
        except DecodeError:
            return
        kind = message.WhichOneof("kind")
        self.outcomes[f"owner: sends {kind}"] += 1
        run.reported_fault |= kind == "fault"
        for where, piece in pieces_of(message.result.shards, message.payload):
            run.results[where].add(piece)


async def _next(requests: AsyncIterator[bytes], gone: asyncio.Event) -> bytes | None:
    """Return the next message; None at the end of the stream, and if the owner is gone before."""
    reading = asyncio.ensure_future(anext(requests, None))
    leaving = asyncio.ensure_future(gone.wait())
    await asyncio.wait((reading, leaving), return_when=asyncio.FIRST_COMPLETED)
    for task in (reading, leaving):
        task.cancel()
    await asyncio.wait((reading, leaving))
    return None if gone.is_set() or reading.cancelled() else reading.result()
