"""An aggregator that breaks the protocol causes an error soon, and leaves nothing waiting."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import grpc.aio
import numpy as np
import pytest

from psum import client as psum
from psum.client.core.session import Session
from psum.client.fleet import Fleet
from psum.client.route import Route
from psum.client.transport.connection import AggregatorConnection
from psum.client.transport.credentials import Credentials
from psum.client.transport.opening import StreamOpener
from psum.client.transport.plane_offers import PlaneOffers
from psum.planes import DEFAULT_LIMIT
from psum.runtime import TlsFiles, open_descriptors
from psum.v1 import aggregator_pb2 as pb
from tests.scarcity import descriptors_left

WELCOME = pb.ExchangeResponse(welcome=pb.Welcome(plane=pb.PLANE_INLINE))
FAREWELL = pb.ExchangeResponse(farewell=pb.Farewell())


class Aggregator:
    """A server that answers hello with some messages and then is silent.

    Args:
        answers: The messages.
        statuses: Its answers to one GetStatus after the other; it then knows of no GetStatus.
    """

    def __init__(self, *answers: pb.ExchangeResponse, statuses: Sequence[pb.GetStatusResponse] = ()) -> None:
        self._answers = answers
        self._statuses = list(statuses)
        self.hellos: list[pb.Hello] = []
        self.questions: list[pb.GetStatusRequest] = []

    async def __aenter__(self) -> psum.Settings:
        self._server = grpc.aio.server()
        method: Any = grpc.stream_stream_rpc_method_handler(self._exchange)
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "psum.v1.AggregatorService",
                    {
                        "Exchange": method,
                        "GetStatus": grpc.unary_unary_rpc_method_handler(
                            self._get_status,
                            request_deserializer=pb.GetStatusRequest.FromString,
                            response_serializer=pb.GetStatusResponse.SerializeToString,
                        ),
                    },
                ),
            )
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return psum.Settings(aggregators=(f"127.0.0.1:{port}",), num_workers=2, connect_timeout=20.0)

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)

    async def _get_status(self, question: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        self.questions.append(question)
        if not self._statuses:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        return self._statuses.pop(0)

    async def _exchange(self, requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            self.hellos.append(pb.ExchangeRequest.FromString(request).hello)
            for answer in self._answers:
                yield answer.SerializeToString()
            await asyncio.Event().wait()


async def test_a_relay_is_told_its_group_and_what_is_behind_it() -> None:
    """The worker connects to nobody else, and agrees with the others on the list of aggregators, which the relay has
    asked for their processes. It asks again about those that did not answer."""
    statuses = [
        pb.GetStatusResponse(draining=True),
        pb.GetStatusResponse(inquiries=[pb.Inquiry(), pb.Inquiry(problem="it starts", address="b:1")]),
        pb.GetStatusResponse(inquiries=[pb.Inquiry(processes=[pb.Process(addresses=[f"x:{n}"]) for n in (1, 3)])]),
    ]
    welcome = pb.ExchangeResponse(welcome=pb.Welcome(plane=pb.PLANE_INLINE, relays=True))
    relay = Aggregator(welcome, statuses=statuses)
    async with relay as settings:
        (address,) = settings.aggregators
        settings = dataclasses.replace(
            settings, aggregators=("a:1", "b:1"), num_workers=8, local_size=2, relay=f"{address},rack:1/4"
        )
        client = await asyncio.to_thread(psum.connect, settings)
        await asyncio.to_thread(client.close, 0.2)
    assert client.planes == ("inline",)
    [hello] = relay.hellos
    assert (hello.rank, hello.num_workers, hello.group_size, hello.aggregator_index) == (0, 8, 2, 0)
    assert list(hello.aggregators) == ["a:1", "b:1", "b:3"]
    assert [list(question.hello.aggregators) for question in relay.questions] == [["a:1", "b:1"]] * 2 + [["b:1"]]
    for said in (hello, *(question.hello for question in relay.questions)):
        assert said.group_size == 2
        assert [(each.address, each.group_size) for each in said.next_relays] == [("rack:1", 4)]


@pytest.mark.parametrize("final", [False, True])
async def test_an_aggregator_that_the_relay_cannot_ask_is_named(final: bool) -> None:
    """With the relay and the cause: at once if nothing but a person can help, else after PSUM_CONNECT_TIMEOUT."""
    inquiries = [pb.Inquiry(), pb.Inquiry(problem="no route", address="b:1", final=final)]
    statuses = [pb.GetStatusResponse(inquiries=inquiries)]
    statuses += [pb.GetStatusResponse(inquiries=inquiries[1:])] * 99
    async with Aggregator(statuses=statuses) as settings:
        (address,) = settings.aggregators
        settings = dataclasses.replace(settings, aggregators=("a:1", "b:1"), relay=address, local_size=2)
        settings = dataclasses.replace(settings, connect_timeout=30 if final else 0.2)
        words = (
            f"at its relay {address}: no route" if final else rf"at aggregator b:1 within 0.2 s .*{address}.* no route"
        )
        with pytest.raises(psum.ConnectError, match=f"rank 0 c.* join the job {words}") as raised:
            await asyncio.to_thread(psum.connect, settings)
        assert raised.value.address == "b:1"


async def test_an_aggregator_that_knows_no_relays_is_refused_as_one() -> None:
    """It would take the worker for one that has no group, and wait for the other ranks of the host for ever."""
    async with Aggregator(WELCOME) as settings:
        (address,) = settings.aggregators
        settings = dataclasses.replace(settings, aggregators=("a:1", "b:1"), relay=address, local_size=2)
        with pytest.raises(psum.ConnectError, match=rf"{address} does not sum for a group of 2 ranks \(PSUM_RELAY\)"):
            await asyncio.to_thread(psum.connect, settings)


async def test_a_relay_that_the_worker_found_itself_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user did not ask for it, so the error says what it is and how to do without."""
    settings = psum.Settings(aggregators=("127.0.0.1:1", "a:1"), num_workers=4, local_size=2, connect_timeout=0.2)
    monkeypatch.setattr("psum.client.route._own_address_here", lambda addresses: addresses[0])
    with pytest.raises(psum.ConnectError, match=r"aggregator of this host, .* PSUM_RELAY=off on all of them goes"):
        await asyncio.to_thread(psum.connect, settings)


async def test_a_refusal_concerns_the_whole_job() -> None:
    """If it names a key, that is ignored: a relay would take it for the failure of the key, and its workers wait."""
    fault = pb.Fault(code=pb.FAULT_CODE_EXHAUSTED, text="full", id=0, round=3)
    async with Aggregator(pb.ExchangeResponse(fault=fault)) as settings:
        with pytest.raises(psum.ExhaustedError, match="full") as caught:
            await asyncio.to_thread(psum.connect, settings)
    assert (caught.value.key, caught.value.round) == (None, None)


async def test_a_farewell_that_nobody_asked_for_ends_the_operations() -> None:
    """Otherwise they would wait for their last deadline, ten minutes later."""
    async with Aggregator(WELCOME, FAREWELL) as settings:
        client = await asyncio.to_thread(psum.connect, settings)
        try:
            async with asyncio.timeout(10):
                with pytest.raises(psum.ProtocolError, match="said farewell to a worker that has not left"):
                    await asyncio.to_thread(client.store().push_pull, "w", np.ones(3, np.float32))
        finally:
            await asyncio.to_thread(client.close, 0.2)


@pytest.mark.parametrize("plane", [pb.PLANE_UNSPECIFIED, pb.PLANE_SHM, pb.Plane.ValueType(99)])
async def test_a_plane_that_was_not_offered_is_refused(plane: pb.Plane.ValueType) -> None:
    """The error says what was wrong with the aggregator's answer."""
    async with Aggregator(pb.ExchangeResponse(welcome=pb.Welcome(plane=plane))) as settings:
        settings = dataclasses.replace(settings, connect_timeout=0.5)
        with pytest.raises(psum.ConnectError, match=f"it chose plane {plane}, which it was not offered"):
            await asyncio.to_thread(psum.connect, settings)


async def test_a_worker_that_lacks_descriptors_says_so() -> None:
    """The error comes at once and names descriptors, not the aggregator, before anything is opened and later."""
    async with Aggregator(WELCOME) as settings:
        fleet = partial(Fleet, settings, Route(settings.aggregators), aggregators=(0,), by_roles=False)
        with (
            descriptors_left(18),
            pytest.raises(psum.ConnectError, match=r"rank 0 .* needs 19 file descriptors.*ulimit -n"),
        ):
            psum.Client(fleet(descriptors_before=open_descriptors()))
        client = psum.Client(fleet(descriptors_before=open_descriptors()))
        with (
            descriptors_left(0),
            pytest.raises(
                psum.ConnectError, match=r"rank 0 cannot connect to .*its limit of file descriptors.*ulimit -n"
            ),
        ):
            await asyncio.to_thread(client.connect)


async def test_a_refusal_is_told_though_grpc_loses_its_words_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC says only 'Internal error from Core' if the refusal overtakes hello; an earlier attempt knew the reason."""
    nothing = grpc.aio.Metadata()
    answers = [(grpc.StatusCode.RESOURCE_EXHAUSTED, "as many as one host may have (PSUM_MAX_STREAMS)")]

    async def refuse(*_: object) -> None:
        code, words = answers.pop() if answers else (grpc.StatusCode.INTERNAL, "Internal error from Core")
        raise grpc.aio.AioRpcError(code, nothing, nothing, words)

    monkeypatch.setattr(StreamOpener, "_introduce", refuse)
    async with Aggregator(WELCOME) as settings:
        settings = dataclasses.replace(settings, connect_timeout=0.5)
        with pytest.raises(psum.ConnectError, match="PSUM_MAX_STREAMS"):
            await asyncio.to_thread(psum.connect, settings)
    assert not answers


class Breaking(Aggregator):
    """A server that welcomes every worker, and then breaks every stream.

    Attributes:
        opened: When each stream was.
        eighth: Set with the eighth stream.
    """

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[float] = []
        self.eighth = asyncio.Event()

    async def _exchange(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.opened.append(time.monotonic())
        if len(self.opened) == 8:
            self.eighth.set()
        async for _ in requests:
            yield WELCOME.SerializeToString()
            await context.abort(grpc.StatusCode.INTERNAL, "no more")


async def test_streams_that_break_at_once_are_opened_ever_more_slowly() -> None:
    """Each can be opened, so a worker would otherwise open hundreds of them a second."""
    breaking = Breaking()
    async with breaking as settings:
        client = await asyncio.to_thread(psum.connect, settings)
        try:
            async with asyncio.timeout(20):
                await breaking.eighth.wait()
        finally:
            await asyncio.to_thread(client.close, 0.2)
    # The pauses are half to one and a half times as long as 50 ms, 80 ms …, 524 ms, 839 ms.
    assert breaking.opened[7] - breaking.opened[0] > 0.9


class Ended(Aggregator):
    """A server that loses the farewell of a worker, and when that comes back says that the job has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.streams = 0

    async def _exchange(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.streams += 1
        async for data in requests:
            request = pb.ExchangeRequest.FromString(data)
            if request.HasField("goodbye"):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection breaks")
            if request.hello.resuming:
                text = "job 'job' has ended, and rank 0 had left it"
                yield pb.ExchangeResponse(fault=pb.Fault(code=pb.FAULT_CODE_TAKEN, text=text)).SerializeToString()
            elif request.HasField("hello"):
                yield WELCOME.SerializeToString()


async def test_a_worker_that_has_left_may_find_that_its_job_has_ended() -> None:
    """That is no failure, which the worker would pass on to aggregators where others still need their sums."""
    ended = Ended()
    async with ended as settings:
        client = await asyncio.to_thread(psum.connect, settings)
        began = time.monotonic()
        await asyncio.to_thread(client.close, 20.0)
        assert time.monotonic() - began < 20.0
    assert ended.streams == 2
    assert isinstance(client._session.failure, psum.ClosedError)


class Reporting(Aggregator):
    """A server that says that the job has failed as soon as `fail` is set."""

    FAULT = pb.Fault(code=pb.FAULT_CODE_WORKER_LOST, text="rank 1 has ended", ranks=[1])

    def __init__(self) -> None:
        super().__init__()
        self.fail = asyncio.Event()

    async def _exchange(self, requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            yield WELCOME.SerializeToString()
            await self.fail.wait()
            yield pb.ExchangeResponse(fault=self.FAULT).SerializeToString()
            await asyncio.Event().wait()


class Forgetful(Aggregator):
    """A server that ends the first stream on which a worker says goodbye, as if it was killed and started again.

    Args:
        knows: Whether it then says that the job has failed. Otherwise it lets the worker go.
    """

    def __init__(self, *, knows: bool = False) -> None:
        super().__init__()
        self._knows = knows
        self.streams = 0
        self.goodbyes: list[pb.Goodbye] = []
        self.told = asyncio.Event()

    async def _exchange(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.streams += 1
        async for data in requests:
            request = pb.ExchangeRequest.FromString(data)
            if request.HasField("goodbye"):
                self.goodbyes.append(request.goodbye)
                if self.streams == 1:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection breaks")
                self.told.set()
                yield FAREWELL.SerializeToString()
            elif request.hello.resuming and self._knows:
                self.told.set()
                yield pb.ExchangeResponse(fault=Reporting.FAULT).SerializeToString()
            elif request.HasField("hello"):
                yield WELCOME.SerializeToString()


@contextlib.asynccontextmanager
async def two_aggregators(one: Aggregator, two: Aggregator) -> AsyncIterator[psum.Client]:
    """A client of both."""
    async with one as settings, two as others:
        addresses = (*settings.aggregators, *others.aggregators)
        client = await asyncio.to_thread(psum.connect, dataclasses.replace(settings, aggregators=addresses))
        try:
            yield client
        finally:
            await asyncio.to_thread(client.close, 0.2)


@pytest.mark.parametrize("knows", [False, True], ids=["started again", "the same"])
async def test_an_aggregator_that_forgets_why_the_job_has_failed_is_told_again(*, knows: bool) -> None:
    """A worker comes back for that, so that an aggregator that was started again does not wait for it and blame it."""
    reporting, forgetful = Reporting(), Forgetful(knows=knows)
    async with two_aggregators(reporting, forgetful) as client, asyncio.timeout(20):
        reporting.fail.set()
        await forgetful.told.wait()
        assert forgetful.streams == 2
        assert [goodbye.fault for goodbye in forgetful.goodbyes] == [Reporting.FAULT] * (1 if knows else 2)
        with pytest.raises(psum.WorkerLostError, match="rank 1 has ended"):
            await asyncio.to_thread(client.store().push_pull, "w", np.ones(3, np.float32))


async def test_an_aggregator_that_stays_away_delays_nothing_but_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """The operations fail at once with the cause, and closing waits no longer than it may for an aggregator that does
    not come back to hear of it."""
    reporting, gone = Reporting(), Aggregator(WELCOME)
    async with two_aggregators(reporting, gone) as client:
        pushed = asyncio.create_task(asyncio.to_thread(client.store().push_pull, "w", np.ones(1 << 20, np.float32)))
        await gone._server.stop(0)
        reporting.fail.set()
        async with asyncio.timeout(20):
            with pytest.raises(psum.WorkerLostError, match="rank 1 has ended"):
                await pushed
        began = time.monotonic()
        await asyncio.to_thread(client.close, 0.2)
        # psum gives aggregators at least 0.5 s for a goodbye. The rest is for a busy machine.
        assert time.monotonic() - began < 5.0
    assert "could not" not in caplog.text


@pytest.mark.parametrize(
    ("hello", "share"),
    [
        (pb.Hello(aggregators=["a:1", "b:1"]), 0.5),
        (pb.Hello(aggregators=["a:1", "b:1"], weights=[3, 1]), 0.75),
        (pb.Hello(aggregators=["a:1", "b:1"], weights=[3, 1], group_size=2), 1.0),
    ],
)
def test_a_connection_has_the_share_of_what_it_carries(hello: pb.Hello, share: float) -> None:
    """Everything goes to a relay, however many aggregators are behind it."""
    connection = AggregatorConnection(
        0,
        "a:1",
        Session(["a:1", "b:1"], (), rank=0, partition_bytes=1 << 10, credit_bytes=1 << 10, hand_over=print),
        credentials=Credentials(tls=TlsFiles("", "", ""), server_name=""),
        keepalive=1.0,
        hello=lambda _index, _resuming: hello,
        planes=PlaneOffers("rank 0", "inline", (), shm_directory="", shm_limit=DEFAULT_LIMIT, credit_bytes=1),
        settle=lambda: None,
    )
    assert connection._part() == share
