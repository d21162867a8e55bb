"""Message sequences that once triggered bugs. The fixed code has its own unit tests as well."""

from collections.abc import AsyncIterator

import pytest_asyncio

from psum.client import ElementType, Operation
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, to_columns
from tests.fuzz.aggregator import AggregatorTarget
from tests.fuzz.conversations import Conversation, Step, Tensor
from tests.fuzz.harness import LogMonitor

W = Tensor("w", 3, ElementType.INT32, Operation.SUM, 1 << 20)


@pytest_asyncio.fixture
async def target() -> AsyncIterator[AggregatorTarget]:
    """An aggregator with a healthy job. After each conversation it checks that nothing is left."""
    target = AggregatorTarget(LogMonitor())
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
    """The first declaration is valid, the second has an unknown element type: a disagreement."""
    conversation = job(2)
    steps = [hello(conversation, 0), hello(conversation, 1), declare(0), declare(1, type=69)]
    await target.converse(conversation, steps)
    assert target.outcomes["stream: disagreement"] == 2


async def test_a_real_worker_beside_a_member_that_stands_for_the_others(target: AggregatorTarget) -> None:
    """Its hello names ranks that are not its own, so its contribution is all that the conforming worker's sum needs."""
    conversation = job(3)
    first = pb.ExchangeRequest(hello=conversation.hello(1))
    first.hello.ranks.extend([1, 2])
    await target.converse(conversation, [Step(1, first), declare(1), push(1, 0)], conforming_rank=0)


async def test_a_real_worker_beside_one_with_an_unknown_type(target: AggregatorTarget) -> None:
    """A conforming worker gets the disagreement and ends in order."""
    conversation = job(2)
    await target.converse(conversation, [hello(conversation, 1), declare(1, type=69)], conforming_rank=0)


async def test_a_rank_that_asks_for_the_last_sum_and_does_not_wait_for_it(target: AggregatorTarget) -> None:
    """It pushes round 6, then round 7, to which the other rank contributes too."""
    conversation = job(2, first_round=7)
    steps = [hello(conversation, 0), hello(conversation, 1), declare(0, 7), declare(1, 7)]
    await target.converse(conversation, [*steps, push(0, 6), push(0, 7), push(1, 7)])


async def test_a_rank_that_is_two_rounds_ahead_of_one_that_waits(target: AggregatorTarget) -> None:
    """One rank waits for the sum of round 6; another declares that it has that of round 7."""
    conversation = job(3, first_round=7)
    steps = [*(hello(conversation, rank) for rank in range(3)), declare(0, 7), declare(1, 6), push(1, 6), declare(2, 8)]
    await target.converse(conversation, steps)
    assert target.outcomes["stream: disagreement"] == 3


async def test_a_contribution_in_a_large_message(target: AggregatorTarget) -> None:
    """While the round waits for other ranks, the padding of the message must not stay in memory."""
    conversation = job(2)
    await target.converse(conversation, [hello(conversation, 0), declare(0), push(0, 0, padding=1 << 20)])


async def test_a_rank_that_never_joins(target: AggregatorTarget) -> None:
    """A worker whose peer was refused gets an error after the round time-out."""
    conversation = job(2)
    steps = [hello(conversation, 1)]
    assert steps[0].message is not None
    steps[0].message.hello.protocol_version = 2
    await target.converse(conversation, steps, conforming_rank=0)
