"""Tells the owners of shards, past the relay, that this worker of an elastic job lives.

While its relay is away, the owners keep the group's place only as long as they hear from its workers. They count the
silence of a worker only if they have heard it before. So it tells them now and then while nothing is wrong, and where
the network forbids that, nothing is lost but time.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from typing import Final

import grpc.aio

from psum.client.core.vouch_pace import VouchPace
from psum.client.transport.connection import AggregatorConnection
from psum.client.transport.credentials import Credentials
from psum.client.transport.process_question import ask
from psum.runtime import descriptor_limit, open_descriptors
from psum.v1 import aggregator_pb2 as pb
from psum.wire import is_local
from psum.wire.errors import ConfigurationError, ProtocolError

_log = logging.getLogger(__name__)

#: How long one owner may take to answer.
_ANSWER_SECONDS: Final = 2.0

#: A relay that was started again, or a connection that broke, is often back sooner.
_BACK_SECONDS: Final = 0.5

#: How many owners are told at the same moment. Each takes a file descriptor or two.
_AT_ONCE: Final = 16

#: gRPC ends the process if it cannot open a file. So many stay free.
_SPARE_DESCRIPTORS: Final = 64


class Vouching:
    """What one worker tells the owners.

    Args:
        addresses: The owners' addresses.
        job: The job's name.
        alive: This process.
        relay: The connection to the relay.
        credentials: What is shown to the owners, and asked of them.
        goes_on: Whether the job goes on for this worker.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        job: str,
        alive: pb.Alive,
        *,
        relay: AggregatorConnection,
        credentials: Credentials,
        goes_on: Callable[[], bool],
    ) -> None:
        # Where a token would travel unencrypted between machines, only the relay may know of it.
        self._addresses = [
            each for each in addresses if not credentials.token_file or is_local(each) or credentials.encrypts(each)
        ]
        self._message = pb.GetStatusRequest(job=job, without_jobs=True, alive=alive)
        self._relay = relay
        self._credentials = credentials
        self._goes_on = goes_on
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Tells all owners until the job ends for this worker."""
        try:
            async with asyncio.TaskGroup() as group:
                for address in self._addresses:
                    group.create_task(self._vouch_at(address))
        except Exception:
            # Operations do not depend on it. But owners may miss this worker if its relay is away.
            _log.exception("telling the aggregators that this worker lives failed; this is a bug")

    async def _vouch_at(self, address: str) -> None:
        pace, away = VouchPace(), self._relay.away
        while self._goes_on():
            async with self._at_once:
                standing = await self._tell(address)
            pause = pace.pause(standing, away=away.is_set())
            if away.is_set() or not pace.counts:
                await asyncio.sleep(pause)
                continue
            with contextlib.suppress(TimeoutError):
                # Not all workers of a job at the same moment.
                async with asyncio.timeout(pause * random.uniform(0.8, 1.0)):
                    await away.wait()
                    await asyncio.sleep(_BACK_SECONDS)

    async def _tell(self, address: str) -> pb.Standing.ValueType | None:
        """Tells one owner. Returns what it answers; None: it has not answered."""
        if open_descriptors() + _SPARE_DESCRIPTORS > descriptor_limit():
            return None
        try:
            answer = await ask(address, self._credentials, self._message, _ANSWER_SECONDS)
        except (grpc.aio.AioRpcError, ProtocolError, ConfigurationError) as error:
            _log.debug("could not tell aggregator %s that this worker lives: %s", address, error)
            return None
        return answer.standing
