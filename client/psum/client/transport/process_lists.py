"""Asks each listed aggregator of which processes it consists, before this worker joins."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, Final

import grpc
import grpc.aio

from psum.client.core.process_lists import Processes
from psum.client.settings import Settings
from psum.client.transport.aggregator_status import GET_STATUS
from psum.client.transport.connect_problem import ConnectProblem
from psum.client.transport.credentials import Credentials
from psum.client.transport.explanation import explain
from psum.client.transport.opening import backoff
from psum.v1 import aggregator_pb2 as pb
from psum.wire import NO_PROXY
from psum.wire.errors import ConnectError, PsumError

_log = logging.getLogger(__name__)

_CHANNEL_OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), NO_PROXY)


class _EndingError(Exception):
    """The process that answered is about to end. The next one may have another list."""


async def ask_for_processes(settings: Settings) -> Sequence[Processes]:
    """What each listed aggregator says of its processes, in the order of the list; empty for one that is one process.

    Asks all at the same time, and again while one is not up. An aggregator that answers in another way, such as an old
    one or one that does not trust this worker, counts as one process: joining reports what is wrong.

    Raises:
        ConnectError: One was not reached within connect_timeout seconds, or this process may open no more files.
        ConfigurationError: A file for TLS or the token file cannot be used.
    """
    credentials = Credentials.of(settings)
    credentials.check()
    try:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(_ask(address, settings, credentials)) for address in settings.aggregators]
    except* PsumError as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
    return [task.result() for task in asked]


async def _ask(address: str, settings: Settings, credentials: Credentials) -> Processes:
    problem = ConnectProblem(time.monotonic())
    patience = settings.connect_timeout
    try:
        async with asyncio.timeout(patience):
            for pause in backoff():
                try:
                    return await _ask_once(address, credentials)
                except _EndingError:
                    problem.failed("it is about to end")
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        return ()
                    await explain(
                        error,
                        problem,
                        final=True,
                        title=f"rank {settings.rank}",
                        address=address,
                        credentials=credentials,
                    )
                if problem.should_log(time.monotonic()):
                    _log.warning(
                        "rank %d waits for aggregator %s, for up to %g s (PSUM_CONNECT_TIMEOUT): %s",
                        settings.rank,
                        address,
                        patience,
                        problem.cause,
                    )
                await asyncio.sleep(pause)
    except TimeoutError:
        pass
    raise ConnectError(
        f"rank {settings.rank} could not join the job at aggregator {address} within {patience:g} s"
        f" (PSUM_CONNECT_TIMEOUT): {problem.cause or 'nothing was heard from it'}. Is it running, and is the address"
        " right?",
        address=address,
    )


async def _ask_once(address: str, credentials: Credentials) -> Processes:
    async with credentials.aio_channel(address, _CHANNEL_OPTIONS) as channel:
        call: Any = channel.unary_unary(
            GET_STATUS,
            request_serializer=pb.GetStatusRequest.SerializeToString,
            response_deserializer=pb.GetStatusResponse.FromString,
        )
        status: pb.GetStatusResponse = await call(
            pb.GetStatusRequest(without_jobs=True), metadata=credentials.metadata()
        )
    if status.draining:
        raise _EndingError
    return [tuple(process.addresses) for process in status.processes]
