"""A worker hears what was sent on the stream before it hears what was sent on the data connection."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from psum.aggregator.service.connection import WorkerConnection
from psum.client.core.session import Session
from psum.client.transport import conversation, data_dialer
from psum.client.transport.stream import Stream
from psum.planes import DataConnection
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode


@pytest.mark.parametrize("plane", ["direct", "shm"])
def test_what_was_sent_on_the_stream_is_handled_first(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, plane: str
) -> None:
    """The aggregator has said something before it knew of the data connection. It arrives late, when a sum is there
    already, and the worker hears it before the sum."""
    fleet = make_fleet(1)
    read, handle = Stream.read, Session.handle
    kinds: list[str | None] = []
    came = asyncio.Event()

    async def read_late(self: Stream) -> bytes | None:
        data = await read(self)
        if data is None or not decode(pb.ExchangeResponse, data)[0].HasField("welcome"):
            await came.wait()
        return data

    class Received(DataConnection):
        async def receive(self) -> memoryview:
            message = await super().receive()
            if decode(pb.ExchangeResponse, message)[0].HasField("result"):
                came.set()
            return message

    def note(self: Session, aggregator: int, message: pb.ExchangeResponse, *rest: Any) -> None:
        kinds.append(message.WhichOneof("kind"))
        handle(self, aggregator, message, *rest)

    def say_first(self: WorkerConnection, connection: DataConnection) -> None:
        self.say(pb.ExchangeResponse(notice=pb.Notice(text="said on the stream")))
        offer(self, connection)

    offer = WorkerConnection.offer
    monkeypatch.setattr(WorkerConnection, "offer", say_first)
    monkeypatch.setattr(data_dialer, "DataConnection", Received)
    monkeypatch.setattr(Stream, "read", read_late)
    monkeypatch.setattr(Session, "handle", note)
    with fleet.worker(0, 1, plane=plane) as client:
        client.store().push_pull("a", np.ones(100_000, np.float32))
    assert kinds.index("notice") < kinds.index("result")


def test_what_was_sent_on_the_stream_is_not_awaited_for_ever(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it does not come, the worker connects again, and gets its sum."""
    use = WorkerConnection.use_data_connection
    uses = 0

    def use_silently_at_first(self: WorkerConnection) -> None:
        nonlocal uses
        uses += 1
        use(self)
        if uses == 1:
            self.data_connection, self._upcoming = self._upcoming, None

    monkeypatch.setattr(WorkerConnection, "use_data_connection", use_silently_at_first)
    monkeypatch.setattr(conversation, "_FOLLOWS_SECONDS", 0.2)
    with make_fleet(1).worker(0, 1, plane="direct") as client:
        array = np.ones(100_000, np.float32)
        client.store().push_pull("a", array)
        assert array.tolist() == [1.0] * 100_000
    assert uses > 1
