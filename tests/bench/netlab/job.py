"""Starts the processes of a job on the hosts of a network, and ends all of them."""

import asyncio
import functools
import os
import pathlib
import signal
from collections.abc import Sequence
from typing import Final

from psum.cli.bench.measure import Plan
from psum.cli.launch.display import Display
from psum.cli.launch.guard import Guard
from psum.cli.launch.processes import Child, describe, end, shell_status
from psum.cli.launch.supervise import LaunchError, supervise
from tests.bench.netlab.network import Network
from tests.bench.netlab.systems import Job, Process, inherited

_GRACE_SECONDS: Final = 2.0


def run(network: Network, job: Job, plan: Plan, patience: float) -> int:
    """Runs a job to its end. Shows the output of its processes if one fails.

    Args:
        network: The hosts.
        job: The job that runs on them.
        plan: The plan that every rank follows.
        patience: Seconds that the job may take.

    Returns:
        0 if all workers succeeded, otherwise the status to exit with.
    """
    return asyncio.run(supervise(functools.partial(_Fleet, network, job, plan, patience), quiet=True))


class _Fleet:
    """The processes of a job; see psum.cli.launch.supervise.Fleet."""

    def __init__(
        self,
        network: Network,
        job: Job,
        plan: Plan,
        patience: float,
        display: Display,
        guard: Guard,
        directory: pathlib.Path,
    ) -> None:
        self._network = network
        self._job = job
        self._plan = plan
        self._patience = patience
        self._display = display
        self._guard = guard
        self._servers: list[Child] = []
        self._workers: list[Child] = []

    async def run(self) -> int:
        """Starts all processes, and waits until all workers have succeeded or one process has failed."""
        for process in self._job.servers():
            self._servers.append(await self._start(process))
        for process in self._job.workers(self._plan):
            self._workers.append(await self._start(process))
        try:
            async with asyncio.timeout(self._patience):
                return await self._watch()
        except TimeoutError:
            late = [child.title for child in self._workers if not child.ended.done()]
            raise LaunchError(f"{', '.join(late)} had not ended after {self._patience:g} s; ending all") from None

    async def end(self, hurry: asyncio.Event) -> None:
        """Ends the processes that still run."""
        await end((*self._workers, *self._servers), _GRACE_SECONDS, hurry)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the workers."""
        for child in self._workers:
            child.signal(number)

    async def _start(self, process: Process) -> Child:
        environ = {**inherited(os.environ), **process.environ}
        command: Sequence[str] = self._network.inside(process.host, *process.command)
        try:
            return await Child.start(process.name, process.title, command, environ, self._display, self._guard)
        except OSError as error:
            raise LaunchError(f"cannot run {command[0]!r}: {error.strerror or error}") from None

    async def _watch(self) -> int:
        waiting = {child.ended: child for child in (*self._servers, *self._workers)}
        running = set(self._workers)
        while running:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                child = waiting.pop(task)
                running.discard(child)
                if task.result() != 0:
                    self._display.note(f"{child.title} {describe(task.result())}; ending the others")
                    return shell_status(task.result())
        return 0
