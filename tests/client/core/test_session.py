"""A worker's side of the job, without any network."""

import numpy as np
import pytest

from psum.client import AbortedError, ElementType, Operation, Ticket
from psum.client.core.placement import Placement
from psum.client.core.session import Session
from psum.v1 import aggregator_pb2 as pb
from psum.wire import decode, encode, to_columns, to_rows
from psum.wire.errors import FaultError, ProtocolError
from tests.client.core.messages import sent


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


def test_departures_are_told_to_the_next_aggregator_process_when_no_sum_is_lacking(session: Session) -> None:
    """Those who have left have that sum. The aggregator must not go on without them while this rank may need it."""
    gone = [pb.Departure(ranks=[rank], incarnation=100 + rank) for rank in (1, 2)]
    session.welcomed(pb.Welcome(departures=gone[:1]))
    session.receive(0, encode(pb.ExchangeResponse(sync=pb.Sync(number=2, departures=gone[1:]))), 0.0)
    assert session.departures(0) == []
    [_, push] = sent(session)
    assert session.departures(0) == []
    session.receive(0, encode(pb.ExchangeResponse(result=pb.Result(shards=push.push.shards)), bytes(16)), 0.0)
    sent(session)
    # They had left before that.
    ticket = reserve(session, "")
    view = np.zeros(4, np.int32).view(np.uint8).data
    ticket.start(view, view, lambda _: None)
    session.submit(ticket, 0.0)
    assert session.departures(0) == gone


def test_an_aggregator_that_was_started_again_is_told_what_failed(session: Session) -> None:
    """Other ranks may not have heard of it, and would wait for this one until the round timeout."""
    [declare, _] = sent(session)
    [key] = declare.declare.keys
    fault = pb.Fault(code=pb.FAULT_CODE_WORKER_LOST, id=key.id, round=0, text="rank 1 has left", ranks=[1])
    session.receive(0, encode(pb.ExchangeResponse(fault=fault)), 0.0)
    assert sent(session) == []
    session.reconnected(0)
    [declare, abort] = sent(session)
    assert [each.id for each in declare.declare.keys] == [key.id]
    assert abort.abort == pb.Abort(id=key.id, text="rank 1 has left", fault=fault)


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


@pytest.mark.parametrize(
    "message",
    [
        pb.ExchangeResponse(losses=pb.Losses(losses=[pb.Loss(rank=1, text="gone")])),
        pb.ExchangeResponse(candidates=pb.Candidates(candidates=[pb.Candidate(rank=1, incarnation=7)])),
    ],
)
def test_a_job_that_is_not_elastic_hears_of_no_losses_and_candidates(
    session: Session, message: pb.ExchangeResponse
) -> None:
    """What an aggregator says of them is refused, and told to no other one."""
    sent(session)
    with pytest.raises(ProtocolError, match=r"aggregator:1 sent .*, which it must not send here"):
        session.receive(0, encode(message), 1.0)
    assert sent(session) == []


@pytest.fixture
def relayed() -> Session:
    """A session whose relay forwards to three aggregators, with one push-pull of eight shards and of an empty key."""
    handed_over: list[Ticket] = []
    owners = ["aggregator:1", "aggregator:2", "aggregator:3"]
    session = Session(
        owners,
        (2, 1, 1),
        rank=0,
        partition_bytes=64,
        credit_bytes=1 << 20,
        relay="relay:1",
        hand_over=handed_over.append,
    )
    for name, elements in (("w", 128), ("empty", 0)):
        ticket = session.reserve(0, name, (elements,), ElementType.INT32, Operation.SUM, 0)
        view = np.arange(elements, dtype=np.int32).view(np.uint8).data
        ticket.start(view, view, lambda _: None)
        session.submit(handed_over.pop(), 0.0)
    return session


def test_a_relay_gets_everything_and_is_told_the_owners(relayed: Session) -> None:
    """All shards go on one connection. Their owners are those of a worker that connects to the aggregators itself."""
    declare, push = sent(relayed)
    whole, empty = declare.declare.keys
    placement = Placement(64, (2, 1, 1))
    turn = placement.turn(0, "w", whole.id)
    flat = placement.shards(turn, 128, 4)
    assert [(s.index, s.elements, s.owner) for s in whole.shards] == [
        (s.index, s.size // 4, s.aggregator) for s in flat
    ]
    assert {shard.owner for shard in whole.shards} == {0, 1, 2}
    assert whole.owner == placement.first(turn)
    assert not empty.shards
    assert empty.owner == placement.first(placement.turn(0, "empty", empty.id))
    rows = to_rows(push.push.shards)
    assert [row.shard for row in rows] == list(range(len(flat)))
    relayed.receive(0, encode(pb.ExchangeResponse(result=pb.Result(shards=push.push.shards)), bytes(512)), 0.0)
    assert [(ticket.key.name, error) for ticket, error in relayed.finished] == [("empty", None), ("w", None)]


def test_a_relay_that_was_started_again_gets_everything_again(relayed: Session) -> None:
    """It declares and sends as to an aggregator, and gives back each sum that the relay asks for."""
    _, push = sent(relayed)
    rows = to_rows(push.push.shards)
    half = to_columns(rows[:4])
    relayed.receive(0, encode(pb.ExchangeResponse(result=pb.Result(shards=half)), bytes(256)), 0.0)
    relayed.reconnected(0)
    declare, again = sent(relayed)
    assert [shard.round for shard in declare.declare.keys[0].shards] == [1, 1, 1, 1, 0, 0, 0, 0]
    assert [row.shard for row in to_rows(again.push.shards)] == [4, 5, 6, 7]
    wanted = to_columns([row._replace(length=0) for row in rows[:4]])
    relayed.receive(0, encode(pb.ExchangeResponse(want=pb.Want(shards=wanted))), 0.0)
    assert [to_rows(message.restore.shards)[0].shard for message in sent(relayed)] == [0, 1, 2, 3]
    assert relayed.counters.restores == 4


def test_an_overdue_sum_names_the_relay(relayed: Session) -> None:
    """The relay, or an aggregator behind it, may be stuck."""
    relayed.expire(10, 11.0)
    [(_, _), (_, unsent)] = relayed.finished
    assert "from its relay, to which it was not yet sent; other ranks may be stuck, or that relay" in str(unsent)


def test_an_overdue_sum_repeats_the_last_warning(relayed: Session) -> None:
    """The relay had said which ranks the round waits for. A warning from before the operation says nothing of it."""
    sent(relayed)
    for text, now in (("rank 1 is late", 2.0), ("waits for rank 2 (never joined)", 4.0)):
        relayed.receive(0, encode(pb.ExchangeResponse(notice=pb.Notice(text=text))), now)
    relayed.expire(10, 11.0)
    [_, (_, late)] = relayed.finished
    assert str(late).endswith(
        "from relay relay:1; other ranks may be stuck, or that relay, or an aggregator that it forwards to. The last"
        " warning from there came 7 s ago: waits for rank 2 (never joined)"
    )


def test_an_overdue_sum_does_not_repeat_an_older_warning(session: Session) -> None:
    """A warning that came before the operation began is about something else."""
    session.receive(0, encode(pb.ExchangeResponse(notice=pb.Notice(text="rank 1 is late"))), -1.0)
    sent(session)
    session.expire(10, 11.0)
    [(_, late)] = session.finished
    assert "waited 11.0 s" in str(late)
    assert "rank 1 is late" not in str(late)


def test_a_job_of_fixed_size_knows_of_no_losses_and_admissions(session: Session) -> None:
    """A welcome that tells of them is wrong. The worker passes nothing on, which its other aggregators would refuse."""
    admission = pb.Admission(rank=1, generation=1, ids=[5], rounds=[])
    session.welcomed(pb.Welcome(losses=[pb.Loss(rank=1)], admission=admission, admissions=[admission]))
    assert [message.WhichOneof("kind") for message in sent(session)] == ["declare", "push"]


def test_a_session_without_a_relay_declares_no_owners() -> None:
    """An aggregator is told of its own shards only, in the bytes of a worker that knows no relays."""
    flat = Session(
        ["aggregator:1", "aggregator:2"],
        (),
        rank=0,
        partition_bytes=64,
        credit_bytes=1 << 20,
        hand_over=lambda ticket: None,
    )
    ticket = flat.reserve(0, "w", (128,), ElementType.INT32, Operation.SUM, 0)
    view = np.zeros(128, np.int32).view(np.uint8).data
    ticket.start(view, view, lambda _: None)
    flat.submit(ticket, 0.0)
    for aggregator in (0, 1):
        data = flat.next_message(aggregator)
        assert data is not None
        [key] = decode(pb.ExchangeRequest, data)[0].declare.keys
        assert {shard.owner for shard in key.shards} == {key.owner} == {0}
        assert len(key.shards) == 4


@pytest.mark.parametrize("has_all", [True, False])
def test_a_worker_that_leaves_with_all_its_results_has_no_part_in_a_fault_of_others(has_all: bool) -> None:
    """It hears of rounds that fail as it leaves. The fault counts only if the worker waits for something itself."""
    reported: list[FaultError] = []
    handed_over: list[Ticket] = []
    worker = Session(
        ["aggregator:1"],
        (),
        rank=0,
        partition_bytes=64,
        credit_bytes=64,
        hand_over=handed_over.append,
        report_fault=reported.append,
    )
    if not has_all:
        view = np.zeros(4, np.int32).view(np.uint8).data
        reserve(worker, "").start(view, view, lambda _: None)
        worker.submit(handed_over.pop(), 0.0)
    worker.leaving = True
    fault = pb.Fault(code=pb.FAULT_CODE_WORKER_LOST, id=1, round=0, text="rank 0 has left", ranks=[0])
    worker.receive(0, encode(pb.ExchangeResponse(fault=fault)), 0.0)
    assert len(reported) == (not has_all)
