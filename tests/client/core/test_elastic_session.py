"""A worker of an elastic job tells its aggregators of lost ranks, and knows how many ranks each sum counts."""

import itertools

import numpy as np
import pytest

from psum.client import Contribution, ElementType, ExcludedError, Operation, Ticket
from psum.client.core.contribution import contributions
from psum.client.core.placement import Shard
from psum.client.core.session import Session
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, decode, encode, to_columns, to_rows


@pytest.fixture
def session() -> Session:
    """A session with two aggregators, whose clock stands at 10."""
    return Session(
        ["one:1", "two:1"],
        (),
        rank=0,
        partition_bytes=16,
        credit_bytes=1 << 20,
        hand_over=lambda ticket: None,
        clock=lambda: 10.0,
    )


def begin(session: Session) -> Ticket:
    """Starts an operation on a key of two shards, one on each aggregator."""
    ticket = session.reserve(0, "w", (8,), ElementType.INT32, Operation.SUM, 0)
    view = np.zeros(8, np.int32).view(np.uint8).data
    ticket.start(view, view, lambda _: None)
    session.submit(ticket, 0.0)
    return ticket


def sent(session: Session, aggregator: int) -> list[pb.ExchangeRequest]:
    messages = []
    while (data := session.next_message(aggregator)) is not None:
        messages.append(decode(pb.ExchangeRequest, data)[0])
    return messages


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
    assert sorted(each.rank for each in session.losses) == [2, 3]
    assert [sorted(each.rank for each in message.losses.losses) for message in sent(session, 1)] == [[2, 3]]


def test_losses_go_ahead_of_contributions(session: Session) -> None:
    """An aggregator hears of a loss before it gets what was computed without that rank."""
    begin(session)
    tell(session, 0, 3)
    assert [message.WhichOneof("kind") for message in sent(session, 1)] == ["losses", "declare", "push"]


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
