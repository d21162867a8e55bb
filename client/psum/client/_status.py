"""Asking an aggregator for its state."""

import grpc

from psum.v1 import aggregator_pb2 as pb
from psum.wire.errors import ConnectError

_GET_STATUS = "/psum.v1.AggregatorService/GetStatus"


def fetch_status(address: str, *, job: str = "", timeout: float = 5.0) -> pb.GetStatusResponse:
    """The state of an aggregator: its jobs, their workers, the rounds that wait and for whom.

    Args:
        address: host:port or unix:/path.
        job: Only this job; empty: all.
        timeout: Seconds to wait for the answer.

    Raises:
        ConnectError: It did not answer in time.
    """
    with grpc.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        call = channel.unary_unary(
            _GET_STATUS,
            request_serializer=pb.GetStatusRequest.SerializeToString,
            response_deserializer=pb.GetStatusResponse.FromString,
        )
        try:
            response: pb.GetStatusResponse = call(pb.GetStatusRequest(job=job), timeout=timeout, wait_for_ready=True)
        except grpc.RpcError as error:
            raise ConnectError(
                f"aggregator {address} did not say its status within {timeout:g} s: {error.code().name}:"
                f" {error.details()}. Is it running, and is the address right?",
                address=address,
            ) from None
        return response
