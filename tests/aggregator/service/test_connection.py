"""What is still sent to a worker whose stream is about to end."""

from psum.aggregator.service.connection import WorkerConnection
from psum.aggregator.sums.results import Results
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, decode


class Context:
    """Takes what is sent on a stream."""

    def __init__(self) -> None:
        self.sent: list[str | None] = []

    async def write(self, data: bytes) -> None:
        message, _ = decode(pb.ExchangeResponse, data)
        self.sent.append(message.WhichOneof("kind"))


async def test_a_new_worker_hears_that_it_has_joined_before_it_hears_that_the_job_has_failed() -> None:
    """It would take the failure for a refusal otherwise, and not wait for the next run as another aggregator says."""
    connection, context = WorkerConnection(), Context()
    connection.say(pb.ExchangeResponse(welcome=pb.Welcome()))
    shard = ShardRound(1, 0)
    connection.queue.put_timing(pb.Timing(id=1, shard=0))
    connection.queue.put(Results((shard,), priority=0, message=b"not sent any more"))
    connection.finish(pb.ExchangeResponse(fault=pb.Fault(text="the job has failed")))
    await connection.send(context)
    assert context.sent == ["welcome", "fault"]


async def test_an_abandoned_stream_ends_without_another_message() -> None:
    """The worker has another stream already."""
    connection, context = WorkerConnection(), Context()
    connection.say(pb.ExchangeResponse(welcome=pb.Welcome()))
    connection.abandon()
    await connection.send(context)
    assert context.sent == []
