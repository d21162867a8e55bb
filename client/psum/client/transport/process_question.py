"""Asks one aggregator once of which processes it consists, for a worker or for a relay."""

from typing import Final

import grpc
import grpc.aio

from psum.client.core.process_lists import Processes
from psum.client.transport.credentials import Credentials
from psum.client.transport.status_call import call_status
from psum.v1 import aggregator_pb2 as pb
from psum.wire import NO_PROXY

#: Why an aggregator that is draining does not count as having answered: the next process may have another list.
ENDING: Final = "it is about to end"

_CHANNEL_OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), NO_PROXY)

#: The codes with which a call ends that has no answer. With any other code, the other side has answered.
_UNANSWERED: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)


async def ask(
    address: str, credentials: Credentials, question: pb.GetStatusRequest, patience: float | None = None
) -> pb.GetStatusResponse:
    """Asks on a connection of its own.

    Args:
        address: The aggregator's address.
        credentials: What is shown to the aggregator, and asked of it.
        question: The question.
        patience: Seconds to wait for the answer; None: no limit.

    Raises:
        grpc.aio.AioRpcError: There was no such answer.
        ProtocolError: The answer is not a status.
        ConfigurationError: A file for TLS or the token file cannot be used.
    """
    async with credentials.aio_channel(address, _CHANNEL_OPTIONS) as channel:
        return await call_status(channel, question, patience=patience, metadata=credentials.metadata())


def is_unanswered(error: grpc.aio.AioRpcError) -> bool:
    """Whether nobody has answered, so that asking again may help."""
    return error.code() in _UNANSWERED


def processes_in(answer: pb.GetStatusResponse | pb.Inquiry) -> Processes:
    """The processes that an answer names, by their addresses; none if there is one process."""
    return [tuple(process.addresses) for process in answer.processes]
