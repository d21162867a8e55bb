"""A worker of an elastic job tells its aggregators of lost ranks, and knows how many ranks each sum counts."""

import itertools
from typing import cast

import numpy as np
import pytest

from psum.client import Contribution, ElementType, ExcludedError, Operation, Ticket, WorkerLostError
from psum.client.core.contribution import contributions
from psum.client.core.placement import Shard
from psum.client.core.session import Session
from psum.client.core.store_numbers import STEERING
from psum.client.core.ticket import Done
from psum.client.future import Outcome
from psum.client.shared_arrays import SharedBlock
from psum.planes.direct import DirectWorker
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, decode, encode, to_columns, to_rows
from tests.client.core.messages import sent


@pytest.fixture
def session() -> Session:
    """A session with two aggregators, whose clock stands at 10."""
    return Session(
        ["one:1", "two:1"],
        (),
        rank=0,
        elastic=True,
        partition_bytes=16,
        credit_bytes=1 << 20,
        hand_over=lambda ticket: None,
        clock=lambda: 10.0,
    )


def begin(session: Session, done: Done = lambda _: None) -> Ticket:
    """Starts an operation on a key of two shards, one on each aggregator."""
    ticket = session.reserve(0, "w", (8,), ElementType.INT32, Operation.SUM, 0)
    view = np.zeros(8, np.int32).view(np.uint8).data
    ticket.start(view, view, done)
    session.submit(ticket, 0.0)
    return ticket


def answer(session: Session, aggregator: int, row: ShardRound, contributors: int) -> None:
    """Sends the result of a shard."""
    shards = to_columns([ShardRound(row.id, row.shard, row.round, length=16, contributors=contributors)])
    session.receive(aggregator, encode(pb.ExchangeResponse(result=pb.Result(shards=shards)), bytes(16)), 0.0)


def loss(rank: int) -> pb.Loss:
    return pb.Loss(rank=rank, text="it vanished", seconds_ago=2.0)


def tell(session: Session, aggregator: int, *ranks: int) -> None:
    losses = pb.Losses(losses=[loss(rank) for rank in ranks])
    session.receive(aggregator, encode(pb.ExchangeResponse(losses=losses)), 10.0)


def test_a_loss_is_passed_on_once(session: Session) -> None:
    """The other aggregators are told with the next message, and the one that has told of it is not."""
    tell(session, 0, 3)
    assert sent(session, 0) == []
    [message] = sent(session, 1)
    assert list(message.losses.losses) == [loss(3)]
    tell(session, 1, 3)
    assert sent(session, 0) == sent(session, 1) == []


def test_what_an_aggregator_knows_it_is_not_told(session: Session) -> None:
    """Two aggregators that have lost different ranks are each told of the other's loss only."""
    tell(session, 0, 3)
    tell(session, 1, 2)
    assert [list(message.losses.losses) for message in sent(session, 0)] == [[loss(2)]]
    assert [list(message.losses.losses) for message in sent(session, 1)] == [[loss(3)]]


def test_a_hello_has_all_losses(session: Session) -> None:
    """An aggregator that was started again learns them from it. If the hello does not arrive, it is told later."""
    session.welcomed(pb.Welcome(losses=[loss(3)]))
    tell(session, 0, 2)
    assert sorted(each.rank for each in session.joins.losses()) == [2, 3]
    assert [sorted(each.rank for each in message.losses.losses) for message in sent(session, 1)] == [[2, 3]]


def test_losses_go_ahead_of_contributions(session: Session) -> None:
    """An aggregator hears of a loss before it gets what was computed without that rank."""
    begin(session)
    tell(session, 0, 3)
    assert [message.WhichOneof("kind") for message in sent(session, 1)] == ["losses", "declare", "push"]


def test_no_payloads_follow_a_loss() -> None:
    """A worker that hears of a loss while it sends a contribution does not send the contribution's payload again."""
    session = Session(
        ["one:1", "two:1"],
        (),
        rank=0,
        elastic=True,
        partition_bytes=64 << 10,
        credit_bytes=1 << 20,
        hand_over=lambda ticket: None,
    )
    for aggregator in (0, 1):
        session.use_plane(aggregator, DirectWorker())
    ticket = session.reserve(0, "w", (32 << 10,), ElementType.INT32, Operation.SUM, 0)
    view = np.zeros(32 << 10, np.int32).view(np.uint8).data
    ticket.start(view, view, lambda _: None)
    session.submit(ticket, 0.0)
    said = []
    for heard in (False, False, True):
        if heard:
            tell(session, 0, 3)
        data = session.next_message(1)
        assert data is not None
        kind = decode(pb.ExchangeRequest, data)[0].WhichOneof("kind")
        said.append((kind, [len(payload) for payload in session.following(1)]))
    assert said == [("declare", []), ("push", [64 << 10]), ("losses", [])]


def test_an_operation_knows_how_many_ranks_its_shards_count(session: Session) -> None:
    """Each shard has its own count. Where all ranks contributed there is none."""
    ticket = begin(session)
    for aggregator, contributors in ((0, 0), (1, 3)):
        [push] = [m for m in sent(session, aggregator) if m.WhichOneof("kind") == "push"]
        [row] = to_rows(push.push.shards)
        answer(session, aggregator, row, contributors)
        if contributors:
            assert ticket.contributors == {row.shard: 3}
            assert ticket.contributions == (Contribution(4 * row.shard, 4 * row.shard + 4, 3),)
    assert session.finished == [(ticket, None)]


@pytest.mark.parametrize("elastic", [False, True])
def test_a_roll_call_does_not_make_messages_long(elastic: bool) -> None:
    """It is the first of its message, and its round and length are its own. Other jobs have no such messages."""
    session = Session(
        ["one:1"], (), rank=0, elastic=elastic, partition_bytes=1 << 20, credit_bytes=1 << 20, hand_over=lambda _: None
    )
    for store, name, elements, priority in ((0, "a", 4, 0), (0, "b", 4, -1), (STEERING, "roll call", 8, 9)):
        ticket = session.reserve(store, name, (elements,), ElementType.INT64, Operation.SUM, priority)
        value = np.zeros(elements, np.int64)
        ticket.start(value, value, lambda _: None)
        session.submit(ticket, 0.0)
    [_, push] = sent(session, 0)
    assert list(push.push.shards.lengths) == ([64, 32] if elastic else [64, 32, 32])
    assert [row.length for row in to_rows(push.push.shards)] == [64, 32, 32]


@pytest.mark.parametrize("shared", [False, True])
def test_a_future_has_the_counts_of_its_operation(session: Session, shared: bool) -> None:
    """Also if the value is pushed from a shared array. It hears of them before it ends."""
    future = Outcome()
    ticket = begin(session, SharedBlock.kept_until(cast(SharedBlock, object()), future) if shared else future)
    for aggregator in (0, 1):
        [push] = [m for m in sent(session, aggregator) if m.WhichOneof("kind") == "push"]
        [row] = to_rows(push.push.shards)
        answer(session, aggregator, row, 3 - aggregator)
        assert future.contributors == ()
    assert ticket.done is not None
    ticket.done(None)
    counts = {row.shard: 2, 1 - row.shard: 3}
    assert future.contributors == tuple(Contribution(4 * n, 4 * n + 4, counts[n]) for n in (0, 1))


def test_parts_of_equal_count_are_told_as_one() -> None:
    """The caller sees ranges of elements, not shards: neighbours with as many contributors are one range."""
    edges = [0, 16, 32, 48, 64, 72]
    shards = [Shard(index, start, stop, 0, 0) for index, (start, stop) in enumerate(itertools.pairwise(edges))]
    assert contributions({4: 2, 0: 3, 1: 3, 3: 2}, shards, 4) == (Contribution(0, 8, 3), Contribution(12, 18, 2))
    assert contributions({1: 3, 2: 2}, shards, 4) == (Contribution(4, 8, 3), Contribution(8, 12, 2))
    assert contributions(None, shards, 4) == ()


@pytest.mark.parametrize("contributors", [0, 3])
def test_a_sum_is_given_back_with_its_count(session: Session, contributors: int) -> None:
    """The count is that of the round that is asked for, not of an earlier one."""
    for count in (2, contributors):
        begin(session)
        for aggregator in (0, 1):
            [push] = [m for m in sent(session, aggregator) if m.WhichOneof("kind") == "push"]
            [row] = to_rows(push.push.shards)
            answer(session, aggregator, row, count)
    want = pb.Want(shards=to_columns([ShardRound(row.id, row.shard, row.round)]))
    session.receive(1, encode(pb.ExchangeResponse(want=want)), 0.0)
    [message] = sent(session, 1)
    [given] = to_rows(message.restore.shards)
    assert (given.round, given.contributors) == (1, contributors)


def test_an_excluded_worker_fails(session: Session) -> None:
    """Its operations end with the error that says why."""
    ticket = begin(session)
    fault = ExcludedError("rank 0 was excluded", ranks=[0])
    session.receive(0, encode(pb.ExchangeResponse(fault=fault.to_message())), 0.0)
    [(ended, error)] = session.finished
    assert ended is ticket
    assert isinstance(error, ExcludedError)


# Broadcasts whose root is lost.


def receive_broadcast(session: Session, *, stands_in: bool, ranks: tuple[int, ...] = ()) -> Ticket:
    """Begins a broadcast from rank 0 on rank 1, whose array has the numbers from 0. All of it has been asked for."""
    session.rank = session._operations._rank = 1
    ticket = session.reserve(0, "b", (8,), ElementType.INT32, Operation.BROADCAST, 0, ranks=ranks)
    ticket.start(None, np.arange(8, dtype=np.int32).view(np.uint8).data, lambda _: None, stands_in=stands_in)
    session.submit(ticket, 0.0)
    for aggregator in (0, 1):
        assert [message.WhichOneof("kind") for message in sent(session, aggregator)] == ["declare", "pull"]
    return ticket


def want(session: Session, ticket: Ticket, shard: int, round: int = 0) -> list[pb.ExchangeRequest]:
    """An aggregator asks for a shard of a round. Returns the answers."""
    connection = ticket.key.shards[shard].connection
    shards = to_columns([ShardRound(ticket.key.id, shard, round)])
    session.receive(connection, encode(pb.ExchangeResponse(want=pb.Want(shards=shards))), 0.0)
    return sent(session, connection)


def test_a_receiver_s_value_takes_the_place_of_a_lost_root_s(session: Session) -> None:
    """It sends the part of its array that the aggregator asks for, and receives it like the others."""
    ticket = receive_broadcast(session, stands_in=True)
    shard = ticket.key.shards[1]
    connection = shard.connection
    shards = to_columns([ShardRound(ticket.key.id, 1, 0)])
    session.receive(connection, encode(pb.ExchangeResponse(want=pb.Want(shards=shards))), 0.0)
    data = session.next_message(connection)
    assert data is not None
    request, payload = decode(pb.ExchangeRequest, data)
    [row] = to_rows(request.restore.shards)
    assert (row.id, row.shard, row.round) == (ticket.key.id, 1, 0)
    assert np.frombuffer(payload, np.int32).tolist() == list(range(shard.start // 4, shard.stop // 4))
    for each in ticket.key.shards:
        answer(session, each.connection, ShardRound(ticket.key.id, each.index, 0), 0)
    assert session.finished == [(ticket, None)]


def test_a_receiver_without_a_value_fails_the_key(session: Session) -> None:
    """The aggregator is told why, and what to do; it tells all ranks."""
    ticket = receive_broadcast(session, stands_in=False)
    [message] = want(session, ticket, 0)
    assert message.abort.fault.code == pb.FAULT_CODE_WORKER_LOST
    assert (message.abort.fault.id, list(message.abort.fault.ranks)) == (ticket.key.id, [0])
    assert "elastic=True" in message.abort.text


def test_a_value_is_sent_only_for_the_round_that_runs(session: Session) -> None:
    """A question for another round, or after the result, is out of date."""
    ticket = receive_broadcast(session, stands_in=True)
    assert want(session, ticket, 0, 1) == []
    answer(session, ticket.key.shards[0].connection, ShardRound(ticket.key.id, 0, 0), 0)
    assert want(session, ticket, 0, 1) == []


# Keys that only some ranks use.


def test_a_key_of_some_ranks_is_another_key(session: Session) -> None:
    """It is declared with its ranks, and has an id and rounds of its own under each group of them."""
    tickets = [
        session.reserve(0, "b", (8,), ElementType.INT32, Operation.BROADCAST, 0, ranks=ranks)
        for ranks in ((), (0, 2), (0, 3), (0, 2))
    ]
    assert [ticket.round for ticket in tickets] == [0, 0, 0, 1]
    assert len({ticket.key.id for ticket in tickets}) == 3
    view = np.zeros(8, np.int32).view(np.uint8).data
    tickets[1].start(view, view, lambda _: None)
    session.submit(tickets[1], 0.0)
    [declaration, _] = sent(session, 0)
    assert list(declaration.declare.keys[0].ranks) == [0, 2]


def test_keys_of_some_ranks_are_forgotten_when_they_are_at_rest(session: Session) -> None:
    """They begin with the first round again, and are not declared on a new stream. Others stay as they are."""
    everybody = begin(session)
    assert sent(session, 0)
    assert sent(session, 1)
    ticket = receive_broadcast(session, stands_in=False, ranks=(0, 1))
    session.forget_ranked_keys()
    assert session.reserve(0, "b", (8,), ElementType.INT32, Operation.BROADCAST, 0, ranks=(0, 1)).round == 1
    session.forget_ranked_keys()
    fault = WorkerLostError("rank 0 is lost", key=ticket.key.id, ranks=[0])
    session.receive(0, encode(pb.ExchangeResponse(fault=fault.to_message())), 0.0)
    session.forget_ranked_keys()
    session.reconnected(0)
    [declaration, *_] = sent(session, 0)
    assert [key.id for key in declaration.declare.keys] == [everybody.key.id]
    assert session.reserve(0, "b", (8,), ElementType.INT32, Operation.BROADCAST, 0, ranks=(0, 1)).round == 0
    session.check()


def test_a_complete_key_of_some_ranks_is_forgotten(session: Session) -> None:
    """Nothing is kept of it, and it begins again with the first round."""
    ticket = receive_broadcast(session, stands_in=False, ranks=(0, 1))
    for each in ticket.key.shards:
        answer(session, each.connection, ShardRound(ticket.key.id, each.index, 0), 0)
    session.forget_ranked_keys()
    assert ticket.key.id not in session._operations.rounds
    assert session.reserve(0, "b", (8,), ElementType.INT32, Operation.BROADCAST, 0, ranks=(0, 1)).round == 0


# Whether this worker reaches all aggregators.


@pytest.fixture
def three() -> Session:
    """A session of an elastic job with three aggregators."""
    return Session(
        ["one:1", "two:1", "three:1"],
        (),
        rank=0,
        elastic=True,
        partition_bytes=16,
        credit_bytes=1 << 20,
        hand_over=lambda ticket: None,
    )


def told_reach(session: Session, aggregator: int) -> list[bool]:
    """What an aggregator is told now of this worker's reach."""
    messages = sent(session, aggregator)
    assert all(message.HasField("reach") for message in messages)
    return [message.reach.all for message in messages]


def test_other_aggregators_hear_of_a_broken_connection(three: Session) -> None:
    """They are told once that this worker does not reach all, and once that it does again."""
    assert told_reach(three, 0) == told_reach(three, 1) == []
    three.disconnected(2)
    assert told_reach(three, 0) == told_reach(three, 1) == [False]
    three.disconnected(2)
    assert told_reach(three, 0) == []
    three.reconnected(2)
    assert [told_reach(three, aggregator) for aggregator in range(3)] == [[True], [True], []]


def test_an_aggregator_on_a_new_stream_hears_of_another_broken_connection(three: Session) -> None:
    """It takes it for granted that all are reached, as it was when the stream before began."""
    three.disconnected(1)
    three.disconnected(2)
    assert told_reach(three, 0) == [False]
    three.reconnected(1)
    assert told_reach(three, 0) == []
    assert told_reach(three, 1) == [False]
    three.reconnected(2)
    assert [told_reach(three, aggregator) for aggregator in range(3)] == [[True], [True], []]


def test_a_short_break_may_pass_unsaid(three: Session) -> None:
    """If nothing could be sent meanwhile, there is nothing to say."""
    three.disconnected(1)
    three.reconnected(1)
    assert told_reach(three, 0) == told_reach(three, 1) == []


def test_a_worker_that_leaves_says_nothing_of_its_reach(three: Session) -> None:
    """It closes its connections one after the other."""
    three.leaving = True
    three.disconnected(1)
    assert told_reach(three, 0) == []


def test_only_in_elastic_jobs_is_anybody_told() -> None:
    """Others do not know the message."""
    session = Session(
        ["one:1", "two:1"], (), rank=0, partition_bytes=16, credit_bytes=1 << 20, hand_over=lambda ticket: None
    )
    session.disconnected(1)
    assert sent(session, 0) == []
