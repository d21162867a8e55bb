"""The streams of processes that wait to join elastic jobs: who is told when something is decided about one of them."""

import asyncio
from collections.abc import Iterator

from psum.aggregator.core.candidates import Candidate
from psum.aggregator.core.job import Job
from psum.aggregator.service.connection import WorkerConnection
from psum.wire.errors import FaultError

Decision = Job | FaultError
"""The job that a process has joined, or why it is refused."""


class Waiting:
    """The waiting processes, each with its connection and what was decided about it."""

    def __init__(self) -> None:
        self._waiting: dict[Candidate, tuple[WorkerConnection, asyncio.Future[Decision]]] = {}

    def __iter__(self) -> Iterator[WorkerConnection]:
        """The connections of those about which nothing was decided."""
        return (connection for connection, decision in self._waiting.values() if not decision.done())

    def add(self, candidate: Candidate, connection: WorkerConnection) -> None:
        """Adds a process."""
        self._waiting[candidate] = connection, asyncio.get_running_loop().create_future()

    def decision(self, candidate: Candidate) -> asyncio.Future[Decision]:
        """What is decided about a process, as soon as it is."""
        return self._waiting[candidate][1]

    def decide(self, candidate: Candidate, decision: Decision) -> WorkerConnection | None:
        """Tells a process's stream what was decided. Returns its connection; None if its stream has ended."""
        if candidate not in self._waiting:
            return None
        connection, future = self._waiting[candidate]
        if not future.done():
            future.set_result(decision)
        return connection

    def remove(self, candidate: Candidate) -> Job | None:
        """Removes a process whose stream goes on or ends. Returns the job that it has joined, if any."""
        _, future = self._waiting.pop(candidate)
        decision = future.result() if future.done() else None
        return decision if isinstance(decision, Job) else None
