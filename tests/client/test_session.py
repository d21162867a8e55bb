"""A worker's side of the job, without any network."""

import numpy as np
import pytest

from psum.client import ElementType, Operation, Ticket
from psum.client._session import Session
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode, encode, to_columns, to_rows


@pytest.fixture
def session() -> Session:
    """A session with one aggregator, on which rank 0 has one operation under way that it has not sent yet."""
    handed_over: list[Ticket] = []
    session = Session(["aggregator:1"], (), rank=0, partition_bytes=64, credit_bytes=64, hand_over=handed_over.append)
    ticket = session.reserve(0, "w", (4,), ElementType.INT32, Operation.SUM, 0)
    view = np.zeros(4, np.int32).view(np.uint8).data
    ticket.start(view, view, lambda _: None)
    session.submit(handed_over.pop(), 0.0)
    return session


def sent(session: Session) -> list[pb.ExchangeRequest]:
    """All that may be sent now, without payloads."""
    messages = []
    while (data := session.next_message(0)) is not None:
        messages.append(decode(pb.ExchangeRequest, data)[0])
    return messages


def test_a_sync_is_answered_when_no_sum_is_lacking(session: Session) -> None:
    """Not before what is queued was sent, nor before its result came: only the rank that leaves may have that."""
    session.receive(0, encode(pb.ExchangeResponse(sync=pb.Sync(number=3))), 0.0)
    declare, push = sent(session)
    assert [declare.WhichOneof("kind"), push.WhichOneof("kind")] == ["declare", "push"]
    [entry] = to_rows(push.push.shards)
    session.receive(0, encode(pb.ExchangeResponse(result=pb.Result(shards=to_columns([entry]))), bytes(16)), 0.0)
    [answer] = sent(session)
    assert answer.synced.number == 3


def test_a_sync_of_a_stream_that_broke_is_not_answered_on_the_next_one(session: Session) -> None:
    """The aggregator may be another process, in which nobody has asked."""
    session.receive(0, encode(pb.ExchangeResponse(sync=pb.Sync(number=3))), 0.0)
    session.reconnected(0)
    [_, push] = sent(session)
    session.receive(0, encode(pb.ExchangeResponse(result=pb.Result(shards=push.push.shards)), bytes(16)), 0.0)
    assert sent(session) == []
