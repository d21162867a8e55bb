"""Draining: finishing the open rounds before this process ends."""

import asyncio
import contextlib
import logging
from typing import Final

from psum.aggregator.service.connections import Connections
from psum.aggregator.service.registries import Registries
from psum.v1 import aggregator_pb2 as pb
from psum.wire import ShardRound, to_columns

_log = logging.getLogger(__name__)

#: How often the open rounds are checked.
_POLL_SECONDS: Final = 0.01

#: How long workers may take to receive what was sent last. A busy one may need it; one that is stopped takes longer.
_PARTING_SECONDS: Final = 5.0


class Draining:
    """Finishes the open rounds of all jobs, and begins no others: workers keep them for the next process.

    Args:
        registries: The jobs.
        connections: The connections of workers.
    """

    def __init__(self, registries: Registries, connections: Connections) -> None:
        self.begun = False
        """Whether this process is about to end, and accepts no streams."""
        self._registries = registries
        self._connections = connections
        self._open_rounds: dict[int, set[tuple[int, int, int]]] = {}
        """The rounds to finish, by the job's id()."""

    async def run(self, grace: float) -> None:
        """Drains for at most this many seconds."""
        self.begun = True
        loop = asyncio.get_running_loop()
        begin = loop.time()
        self._open_rounds = self._registries.plan_drain()
        jobs = {job_id for job_id, _ in self._connections.by_job()}
        if jobs:
            _log.info(
                "draining for up to %g s (PSUM_GRACE): %d open rounds of %d jobs are finished, all others wait for the"
                " next process",
                grace,
                sum(map(len, self._open_rounds.values())),
                len(jobs),
            )
        for job_id, connection in self._connections.by_job():
            open_here = to_columns([ShardRound(*round) for round in sorted(self._open_rounds.get(job_id, ()))])
            connection.say(pb.ExchangeResponse(drain=pb.Drain(grace_seconds=grace, open=open_here)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                # Polled, because the state changes in many places, and this is awaited once in a process's life.
                while self._busy():  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_SECONDS)
                await self._part()
        if left := self._unfinished():
            _log.warning("drained for %g s; %d rounds are not finished, the next process makes them again", grace, left)
        elif jobs:
            _log.info("drained in %.1f s", loop.time() - begin)

    async def _part(self) -> None:
        """Waits until workers have received all sums, or for a short time. They end their streams when they have.

        The end of this process would discard what the kernel has not taken yet.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PARTING_SECONDS
        ending = {connection for connection in self._connections if connection.end()}
        while not ending.isdisjoint(self._connections) and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)

    def _unfinished(self) -> int:
        return self._registries.unfinished(self._open_rounds)

    def _busy(self) -> bool:
        return any(connection.busy for connection in self._connections) or self._unfinished() > 0
