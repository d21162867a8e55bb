"""Joins a job at every aggregator or at none, and waits while another process with the same rank is still ending.

A process that joins a running job may be lost before it is let in, for example with the last worker of its relay. It
has taken part in nothing then, so it asks again as another process.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from psum.client.settings import Settings
from psum.client.transport.connection import AggregatorConnection
from psum.client.transport.opening import backoff
from psum.wire.errors import ExcludedError, PsumError, TakenError

_log = logging.getLogger(__name__)

#: How often a process that was not let in asks to join.
_MOST_ATTEMPTS: Final = 5


async def join(
    make: Callable[[], Sequence[AggregatorConnection]], settings: Settings, *, waits: bool, asks_again: bool = False
) -> None:
    """Joins at all aggregators.

    If one aggregator says that the rank is taken, this closes all connections and joins again as another worker: the
    job that it joined at the others may be an earlier run, which ends meanwhile.

    Args:
        make: Makes the connections of an attempt.
        settings: The worker's settings.
        waits: Whether to wait for a rank that is taken.
        asks_again: Whether to join as another worker if this one is lost before it is let in everywhere.

    Raises:
        TakenError: The rank was still taken after rank_timeout seconds.
        ExcludedError: It was lost each time before it was let in.
        PsumError: See AggregatorConnection.connect.
    """
    give_up: float | None = None
    pauses = backoff()
    attempts = 1
    while True:
        try:
            await _join_once(make(), settings.connect_timeout)
            return
        except TakenError as error:
            if not waits:
                raise
            if give_up is None:
                give_up = time.monotonic() + settings.rank_timeout
                _log.warning(
                    "rank %d waits up to %g s (PSUM_RANK_TIMEOUT) for the end of another process with this rank: %s",
                    settings.rank,
                    settings.rank_timeout,
                    error,
                )
            elif time.monotonic() >= give_up:
                raise TakenError(
                    f"{error}. Waited for {settings.rank_timeout:g} s (PSUM_RANK_TIMEOUT)", ranks=error.ranks
                ) from None
        except ExcludedError as error:
            if not asks_again:
                raise
            if attempts == _MOST_ATTEMPTS:
                raise ExcludedError(
                    f"{error}. It has asked to join {attempts} times, and was never let in", ranks=error.ranks
                ) from None
            attempts += 1
            _log.warning("rank %d was not let in, and asks again as another process: %s", settings.rank, error)
        await asyncio.sleep(next(pauses))


async def _join_once(connections: Sequence[AggregatorConnection], patience: float) -> None:
    try:
        try:
            async with asyncio.TaskGroup() as group:
                for connection in connections:
                    group.create_task(connection.connect(patience))
        except BaseException:
            # An interrupt ends up here too. Some may be connected already.
            for connection in connections:
                await connection.abandon()
            raise
    except* PsumError as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
