"""Finds out why an aggregator could not be called, and notes it for the log and for the error."""

import asyncio
import time
from typing import Final

import grpc.aio

from psum.client.transport.connect_problem import ConnectProblem
from psum.client.transport.credentials import Credentials
from psum.client.transport.diagnosis import diagnose
from psum.client.transport.stream import describe
from psum.runtime import lacks_descriptors
from psum.wire.errors import ConnectError

#: The file descriptors that one connection takes, and that gRPC needs for a moment besides.
_CONNECTION_DESCRIPTORS: Final = 2

#: gRPC's text when the other side's refusal arrives before hello is sent; the reason is lost then.
_NO_REASON: Final = "Internal error from Core"


async def explain(
    error: BaseException, problem: ConnectProblem, *, final: bool, title: str, address: str, credentials: Credentials
) -> None:
    """Finds out why a call failed.

    Args:
        error: What gRPC says.
        problem: What is known from earlier attempts; it is told what is found out.
        final: Whether a lack of trust or of file descriptors is an error.
        title: Which worker this is, for errors.
        address: The aggregator's address.
        credentials: What was shown to the aggregator, and asked of it.

    Raises:
        ConnectError: There is such a lack, and it is final.
    """
    if (lack := lacks_descriptors(_CONNECTION_DESCRIPTORS)) is not None:
        if final:
            raise ConnectError(f"{title} cannot connect to aggregator {address}: {lack}", address=address)
        problem.diagnosed(lack, time.monotonic())
        return
    if problem.cause and isinstance(error, grpc.aio.AioRpcError) and error.details() == _NO_REASON:
        return
    if problem.should_diagnose(time.monotonic()):
        try:
            reason = await asyncio.to_thread(diagnose, address, credentials)
        except RuntimeError:
            # The interpreter is ending, and starts no more threads.
            reason = None
        if reason is not None and final:
            raise ConnectError(f"{title} cannot talk to aggregator {address}: {reason}", address=address)
        problem.diagnosed(reason, time.monotonic())
    problem.failed(describe(error))
