"""A worker's side of the job, without any network."""

import numpy as np
import pytest

from psum.client import AbortedError, ElementType, Operation, Ticket
from psum.client.core.session import Session
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
    """The answer waits until everything queued was sent and answered: only the leaving rank may have those sums."""
    session.receive(0, encode(pb.ExchangeResponse(sync=pb.Sync(number=3))), 0.0)
    declare, push = sent(session)
    assert [declare.WhichOneof("kind"), push.WhichOneof("kind")] == ["declare", "push"]
    [entry] = to_rows(push.push.shards)
    session.receive(0, encode(pb.ExchangeResponse(result=pb.Result(shards=to_columns([entry]))), bytes(16)), 0.0)
    [answer] = sent(session)
    assert answer.synced.number == 3


def test_a_sync_of_a_stream_that_broke_is_not_answered_on_the_next_one(session: Session) -> None:
    """The aggregator may be another process, which did not ask."""
    session.receive(0, encode(pb.ExchangeResponse(sync=pb.Sync(number=3))), 0.0)
    session.reconnected(0)
    [_, push] = sent(session)
    session.receive(0, encode(pb.ExchangeResponse(result=pb.Result(shards=push.push.shards)), bytes(16)), 0.0)
    assert sent(session) == []


def reserve(session: Session, label: str, key: str = "0") -> Ticket:
    return session.reserve(0, key, (4,), ElementType.INT32, Operation.SUM, 0, label)


def test_what_a_key_stands_for_may_change_but_not_back(session: Session) -> None:
    """Parts of a program may use a store one after another. If they took turns, and another rank took turns in another
    order, each part would get the other's sums."""
    for label in ("", "a", "a", "", "b", "b", "", "c"):
        reserve(session, label)
    for label in ("a", "b"):
        with pytest.raises(ValueError, match=f"key '0' stood for {label}, then for c, and stands for {label} again"):
            reserve(session, label)
    reserve(session, "c")
    with pytest.raises(ValueError, match=r"was a pushpull of int32 \(4,\) for c before, and is int8 \(4,\) for d now"):
        session.reserve(0, "0", (4,), ElementType.INT8, Operation.SUM, 0, "d")


def test_sums_of_a_value_whose_broadcast_failed_fail_too(session: Session) -> None:
    """Otherwise ranks would go on with different values. Keys without a common label are independent."""
    for key, label in (("0", "weight"), ("1", "")):
        broadcast = session.reserve(0, key, (4,), ElementType.INT32, Operation.BROADCAST, 0, label)
        reserve(session, label, key)
        fault = AbortedError("rank 0 was lost", key=broadcast.key.id, ranks=[0])
        session.receive(0, encode(pb.ExchangeResponse(fault=fault.to_message())), 0.0)
    with pytest.raises(AbortedError, match="rank 0 was lost"):
        reserve(session, "weight", "0")
    reserve(session, "", "1")


def test_a_sum_under_way_fails_with_the_broadcast_of_its_value(session: Session) -> None:
    """Another rank that heard of the failure earlier never begins this sum, so nobody waits for it until a time-out."""
    broadcast = session.reserve(0, "0", (4,), ElementType.INT32, Operation.BROADCAST, 0, "weight").key
    ticket = reserve(session, "weight")
    view = np.zeros(4, np.int32).view(np.uint8).data
    ticket.start(view, view, lambda _: None)
    session.submit(ticket, 0.0)
    fault = pb.Fault(code=pb.FAULT_CODE_DISAGREEMENT, id=broadcast.id, text="ranks disagree")
    session.receive(0, encode(pb.ExchangeResponse(fault=fault)), 0.0)
    [(failed, error)] = session.finished
    assert failed is ticket
    assert "ranks disagree" in str(error)


def test_aggregators_are_told_one_label_always(session: Session) -> None:
    """It is the first operation's label: ranks at different rounds must agree when an aggregator comes back."""
    view = np.zeros(4, np.int32).view(np.uint8).data
    for label in ("a", "b"):
        ticket = reserve(session, label)
        ticket.start(view, view, lambda _: None)
        session.submit(ticket, 0.0)
    labels = {key.name: key.label for message in sent(session) for key in message.declare.keys}
    assert labels == {"w": "", "0": "a"}
    session.reconnected(0)
    assert {key.name: key.label for message in sent(session) for key in message.declare.keys} == labels
