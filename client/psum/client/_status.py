"""Asking an aggregator for its state."""

import grpc

from psum.client._credentials import Credentials
from psum.client._diagnosis import diagnose, unreachable
from psum.client._settings import Settings
from psum.v1 import aggregator_pb2 as pb
from psum.wire import NO_PROXY
from psum.wire.errors import ConnectError

GET_STATUS = "/psum.v1.AggregatorService/GetStatus"


def fetch_status(
    address: str, *, job: str = "", timeout: float = 5.0, settings: Settings | None = None
) -> pb.GetStatusResponse:
    """The state of an aggregator: its jobs, their workers, the rounds that wait and for whom.

    Where the aggregator asks for tokens, these are the jobs that the token opens.

    Args:
        address: host:port or unix:/path.
        job: Only this job; empty: all.
        timeout: Seconds to wait for the answer.
        settings: What names the files for TLS and the token's; by default neither is used.

    Raises:
        ConnectError: It did not answer in time, or one side does not trust the other.
        ConfigurationError: A file cannot be used.
    """
    credentials = Credentials.of(settings or Settings())
    with credentials.channel(address, (("grpc.use_local_subchannel_pool", 1), NO_PROXY)) as channel:
        call = channel.unary_unary(
            GET_STATUS,
            request_serializer=pb.GetStatusRequest.SerializeToString,
            response_deserializer=pb.GetStatusResponse.FromString,
        )
        try:
            response: pb.GetStatusResponse = call(
                pb.GetStatusRequest(job=job),
                timeout=timeout,
                wait_for_ready=True,
                metadata=credentials.metadata(),
            )
        except grpc.RpcError as error:
            reason = diagnose(address, credentials)
            if reason is None and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                # gRPC goes on trying until then, and does not say what came of it.
                reason = unreachable(address)
            reason = reason or f"{error.code().name}: {error.details()}"
            raise ConnectError(
                f"aggregator {address} did not say its status within {timeout:g} s: {reason}."
                " Is it running, and is the address right?",
                address=address,
            ) from None
        return response
