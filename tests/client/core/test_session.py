"""A worker's side of the job, without any network."""

from collections.abc import Iterator

import numpy as np
import pytest

from psum.client import AbortedError, ElementType, Operation, Ticket, WorkerLostError
from psum.client.core.session import Session
from psum.client.core.ticket import State
from psum.client.core.weights_agreement import NAME
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, decode, encode, to_columns, to_rows


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


class Ranks:
    """Two ranks with three aggregators, of which two run beside them, and the messages between them."""

    def __init__(self) -> None:
        self.handed_over: list[Ticket] = []
        self.sessions = [
            Session(
                ["a:1", "b:1", "c:1"],
                None,
                rank=rank,
                partition_bytes=1 << 20,
                credit_bytes=1 << 24,
                hand_over=self.handed_over.append,
            )
            for rank in range(2)
        ]
        for rank, session in enumerate(self.sessions):
            session.beside = [rank]

    def push(self, rank: int, key: str) -> Ticket:
        """Starts a sum of 1 MiB."""
        value = np.ones(1 << 18, np.float32)
        ticket = self.sessions[rank].reserve(0, key, value.shape, ElementType.FLOAT32, Operation.SUM, 0)
        ticket.start(value, value, lambda _: None)
        self.submit(rank)
        return ticket

    def submit(self, rank: int) -> None:
        """Hands over what was started or aborted."""
        while self.handed_over:
            self.sessions[rank].submit(self.handed_over.pop(0), 0.0)

    def sent(self, rank: int) -> list[list[tuple[str, bytes]]]:
        """What a rank sends to each aggregator: kinds of messages, and payloads."""
        return [[*self._messages(self.sessions[rank], aggregator)] for aggregator in range(3)]

    @staticmethod
    def _messages(session: Session, aggregator: int) -> Iterator[tuple[str, bytes]]:
        while (data := session.next_message(aggregator)) is not None:
            message, payload = decode(pb.ExchangeRequest, data)
            yield str(message.WhichOneof("kind")), bytes(payload)

    def agree(self, total: list[int]) -> None:
        """Gives both ranks the sum of the reports."""
        for session in self.sessions:
            [key] = [key for key in session._registry._by_id.values() if key.name == NAME]
            shards = to_columns([ShardRound(key.id, 0, 0, length=8 * len(total))])
            answer = pb.ExchangeResponse(result=pb.Result(shards=shards))
            session.receive(0, encode(answer, np.array(total, np.int64).tobytes()), 0.0)


def test_ranks_report_their_hosts_before_they_place_a_key() -> None:
    """The first operation sends a report to the first aggregator. Operations run when the sum of the reports is there,
    and go to the aggregators with the weights that follow."""
    ranks = Ranks()
    tickets = [ranks.push(rank, key) for rank in (0, 1) for key in ("w", "v")]
    reports = []
    for rank in range(2):
        [(declared, _), (pushed, report)], *others = ranks.sent(rank)
        assert (declared, pushed, others) == ("declare", "push", [[], []])
        reports.append(np.frombuffer(report, np.int64))
    assert [list(report) for report in reports] == [[1, 0, 0, 1, 0, 0, 1], [0, 1, 0, 0, 2, 0, 1]]
    assert [ranks.sessions[rank].finished for rank in range(2)] == [[], []]
    ranks.agree(np.sum(reports, axis=0).tolist())
    for rank in range(2):
        assert not ranks.sessions[rank].finished
        owned = [sum(len(payload) for _, payload in messages) for messages in ranks.sent(rank)]
        assert owned == [1 << 20, 1 << 20, 0]
    tickets.append(ranks.push(0, "u"))
    assert [len(messages) for messages in ranks.sent(0)] == [2, 2, 0]
    assert all(ticket.state is State.RUNNING for ticket in tickets)


@pytest.mark.parametrize("of_the_job", [False, True])
def test_operations_that_wait_for_the_weights_fail_with_them(of_the_job: bool) -> None:
    """They cannot run without, and nor can later ones. What was aborted is not reported."""
    ranks = Ranks()
    session = ranks.sessions[0]
    ticket = ranks.push(0, "w")
    session.reserve(0, "v", (1,), ElementType.FLOAT32, Operation.SUM, 0).abort("no value")
    ranks.submit(0)
    [key] = [key for key in session._registry._by_id.values() if key.name == NAME]
    fault = WorkerLostError("rank 1 vanished", key=None if of_the_job else key.id, ranks=[1])
    session.receive(0, encode(pb.ExchangeResponse(fault=fault.to_message())), 0.0)
    [(failed, error)] = session.finished
    assert failed is ticket
    assert str(error) == "rank 1 vanished"
    with pytest.raises(WorkerLostError, match="rank 1 vanished"):
        ranks.push(0, "w")
    assert not session.busy
