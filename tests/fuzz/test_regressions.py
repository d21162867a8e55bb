"""Streams that once did harm, in words. The parts that were wrong have tests of their own as well."""

from collections.abc import AsyncIterator

import pytest_asyncio

from psum.client import ElementType, Operation
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, to_columns
from tests.fuzz.aggregator import AggregatorTarget
from tests.fuzz.cases import LogWatch
from tests.fuzz.conversations import Conversation, Step, Tensor

W = Tensor("w", 3, ElementType.INT32, Operation.SUM, 1 << 20)


@pytest_asyncio.fixture
async def target() -> AsyncIterator[AggregatorTarget]:
    """An aggregator with a healthy job; after each conversation it is seen to that nothing is left of it."""
    target = AggregatorTarget(LogWatch())
    await target.start()
    yield target
    await target.stop()


def job(num_workers: int, first_round: int = 0) -> Conversation:
    return Conversation("job", num_workers, 1 << 20, (W,), first_round, rounds=1)


def hello(conversation: Conversation, rank: int) -> Step:
    return Step(rank, pb.ExchangeRequest(hello=conversation.hello(rank)))


def declare(rank: int, round: int = 0, **changes: int) -> Step:
    key = W.declaration(round)
    for name, value in changes.items():
        setattr(key, name, value)
    return Step(rank, pb.ExchangeRequest(declare=pb.Declare(keys=[key])))


def push(rank: int, round: int, *, padding: int = 0) -> Step:
    entry = ShardRound(id=W.id, round=round, length=W.nbytes)
    message = pb.ExchangeRequest(push=pb.Push(shards=to_columns([entry])), padding=bytes(padding))
    return Step(rank, message, W.value(rank, round))


async def test_a_later_declaration_with_an_unknown_type(target: AggregatorTarget) -> None:
    """The first declaration was in order, the second has a number that is no element type: a disagreement."""
    conversation = job(2)
    steps = [hello(conversation, 0), hello(conversation, 1), declare(0), declare(1, type=69)]
    await target.converse(conversation, steps)
    assert target.outcomes["stream: disagreement"] == 2


async def test_a_real_worker_beside_one_with_an_unknown_type(target: AggregatorTarget) -> None:
    """The worker that keeps to the protocol hears of the disagreement, and ends in good order."""
    conversation = job(2)
    await target.converse(conversation, [hello(conversation, 1), declare(1, type=69)], companion_rank=0)


async def test_a_rank_that_asks_for_the_last_sum_and_does_not_wait_for_it(target: AggregatorTarget) -> None:
    """It pushes round 6, then round 7, of which all the others contribute too."""
    conversation = job(2, first_round=7)
    steps = [hello(conversation, 0), hello(conversation, 1), declare(0, 7), declare(1, 7)]
    await target.converse(conversation, [*steps, push(0, 6), push(0, 7), push(1, 7)])


async def test_a_rank_that_is_two_rounds_ahead_of_one_that_waits(target: AggregatorTarget) -> None:
    """One waits for the sum of round 6; another says that it has that of round 7."""
    conversation = job(3, first_round=7)
    steps = [*(hello(conversation, rank) for rank in range(3)), declare(0, 7), declare(1, 6), push(1, 6), declare(2, 8)]
    await target.converse(conversation, steps)
    assert target.outcomes["stream: disagreement"] == 3


async def test_a_contribution_in_a_large_message(target: AggregatorTarget) -> None:
    """While its round waits for others, the padding of its message must not stay in memory."""
    conversation = job(2)
    await target.converse(conversation, [hello(conversation, 0), declare(0), push(0, 0, padding=1 << 20)])


async def test_a_rank_that_never_joins(target: AggregatorTarget) -> None:
    """A worker whose peer was refused is told by the round's time-out."""
    conversation = job(2)
    steps = [hello(conversation, 1)]
    assert steps[0].message is not None
    steps[0].message.hello.protocol_version = 2
    await target.converse(conversation, steps, companion_rank=0)
