"""A session gives an aggregator what is its own, and nothing else."""

import pytest

from psum.client import ElementType, Operation, Ticket
from psum.client._session import Session
from psum.v1 import aggregator_pb2 as pb
from psum.wire import encode


@pytest.mark.parametrize("asking", [0, 1])
def test_only_the_owner_of_a_shard_is_given_its_sum(asking: int) -> None:
    """An aggregator that asks for a shard of another one gets no answer."""
    submitted: list[Ticket] = []
    session = Session(["a:1", "b:1"], (), rank=0, partition_bytes=16, credit_bytes=1 << 20, hand_over=submitted.append)
    ticket = session.reserve(0, "w", (4,), ElementType.INT32, Operation.SUM, 0)
    value = memoryview(bytearray(16))
    ticket.start(value, value, lambda error: None)
    session.submit(submitted.pop(), 0.0)
    [shard] = ticket.key.shards
    while session.next_message(shard.aggregator) is not None:
        pass
    entry = pb.ShardRound(id=ticket.key.id, shard=0, round=0, length=16)
    session.receive(shard.aggregator, encode(pb.ExchangeResponse(result=pb.Result(shards=[entry])), bytes(16)), 0.0)
    session.receive(asking, encode(pb.ExchangeResponse(want=pb.Want(shards=[entry]))), 0.0)
    answer = session.next_message(asking)
    assert (answer is not None) is (asking == shard.aggregator)
