"""Asks an aggregator for its state."""

import time
from typing import Final

import grpc

from psum.client.core.process_lists import addresses_of
from psum.client.settings import Settings
from psum.client.transport.credentials import Credentials
from psum.client.transport.diagnosis import diagnose, unreachable
from psum.v1 import aggregator_pb2 as pb
from psum.wire import NO_PROXY
from psum.wire.errors import ConnectError

GET_STATUS: Final = "/psum.v1.AggregatorService/GetStatus"

#: How long to wait before asking again when nobody listens.
_PAUSE_SECONDS: Final = 0.2

#: gRPC's text about an HTTP/1 server.
_HTTP: Final = "http1.x server"

#: The cause when something accepts connections and says nothing.
_SILENT: Final = "it accepts connections and does not answer: it is stopped or too busy, or it is not an aggregator"


def fetch_status(
    address: str, *, job: str = "", timeout: float = 5.0, settings: Settings | None = None
) -> pb.GetStatusResponse:
    """The state of an aggregator: its jobs, their workers, and which rounds wait for which ranks.

    An aggregator that asks for tokens tells only about the jobs that the token opens.

    Args:
        address: host:port or unix:/path.
        job: Only this job; empty: all.
        timeout: Seconds to wait for the answer.
        settings: Settings that name the files for TLS and the token; by default neither is used.

    Raises:
        ConnectError: It did not answer in time, refused to answer, or one side does not trust the other.
        ConfigurationError: A file cannot be used.
    """
    credentials = Credentials.of(settings or Settings())
    begin = time.monotonic()
    deadline, cause = begin + timeout, ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            return _ask(address, job, left, credentials)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                cause = cause or unreachable(address) or _SILENT
                break
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise _refused(address, f"{error.code().name}: {error.details()}") from None
            if not cause and (reason := diagnose(address, credentials)) is not None:
                raise _refused(address, reason) from None
            if _HTTP in (details := error.details() or ""):
                raise _refused(address, "it speaks HTTP/1; is this the port of a status page (--http)?") from None
            cause = unreachable(address) or f"it does not speak as an aggregator does ({details})"
        # It may be starting.
        time.sleep(max(0.0, min(_PAUSE_SECONDS, deadline - time.monotonic())))
    raise ConnectError(
        f"aggregator {address} did not say its status within {time.monotonic() - begin:.1f} s: {cause}. Is it running,"
        " and is the address right?",
        address=address,
    )


def addresses_behind(address: str, status: pb.GetStatusResponse) -> tuple[str, ...]:
    """The addresses of all processes of an aggregator.

    Args:
        address: The address that workers list.
        status: What answered there.

    Returns:
        The address, and those of the further processes if it has some.

    Raises:
        ConfigurationError: The others' addresses cannot be derived, for example because a proxy is in between.
    """
    return addresses_of(address, [tuple(process.addresses) for process in status.processes])


def _ask(address: str, job: str, timeout: float, credentials: Credentials) -> pb.GetStatusResponse:
    with credentials.channel(address, (("grpc.use_local_subchannel_pool", 1), NO_PROXY)) as channel:
        call = channel.unary_unary(
            GET_STATUS,
            request_serializer=pb.GetStatusRequest.SerializeToString,
            response_deserializer=pb.GetStatusResponse.FromString,
        )
        response: pb.GetStatusResponse = call(
            pb.GetStatusRequest(job=job), timeout=timeout, metadata=credentials.metadata()
        )
        return response


def _refused(address: str, reason: str) -> ConnectError:
    return ConnectError(f"aggregator {address} did not say its status: {reason}", address=address)
