"""The call that asks an aggregator for its state, on an asyncio channel."""

from collections.abc import Sequence
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from psum.client.transport.aggregator_status import GET_STATUS
from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ProtocolError


async def call_status(
    channel: grpc.aio.Channel,
    question: pb.GetStatusRequest,
    *,
    patience: float | None,
    metadata: Sequence[tuple[str, str]],
) -> pb.GetStatusResponse:
    """Asks once.

    Args:
        channel: The channel to the aggregator.
        question: The question.
        patience: Seconds to wait for the answer; None: no limit.
        metadata: What is shown to the aggregator.

    Raises:
        grpc.aio.AioRpcError: There was no answer, or a refusal.
        ProtocolError: The answer is not a status. Something else than an aggregator is there.
    """
    # gRPC would log a traceback and return None for an answer that its deserializer rejects.
    call: Any = channel.unary_unary(GET_STATUS, request_serializer=pb.GetStatusRequest.SerializeToString)
    answer = await call(question, timeout=patience, metadata=metadata)
    try:
        return pb.GetStatusResponse.FromString(answer)
    except DecodeError:
        raise ProtocolError("what answered is not an aggregator: its answer is not a status") from None
