"""The processes of a job on this machine: start aggregators on free ports and workers, watch them, and end them."""

import asyncio
import os
import pathlib
import secrets
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

from psum.cli.launch.display import Display
from psum.cli.launch.environment import common_environment, worker_environment
from psum.cli.launch.guard import Guard
from psum.cli.launch.job import LocalJob
from psum.cli.launch.join_check import JoinCheck
from psum.cli.launch.processes import Child, describe, end, shell_status
from psum.cli.launch.streaming_copies import streaming_environment
from psum.cli.launch.supervise import LaunchError
from psum.cli.launch.verdict import Ending, cause, suspects
from psum.client.observe.fault_report import FaultReport

#: How long aggregators may take to start.
_START_SECONDS: Final = 30.0

_POLL_SECONDS: Final = 0.02

#: The longest wait for a worker to end that others report as failed. After that, one of the others counts as the cause.
CAUSE_SECONDS: Final = 10.0


class LocalFleet:
    """The processes of a job on this machine, which ends when a worker fails.

    Args:
        job: The job.
        store_port: The port for the store of torch.distributed.
        display: Where output and messages are shown.
        guard: Ends the processes if this process is killed.
        directory: A directory for files of the job, which other users cannot read.
    """

    def __init__(self, job: LocalJob, store_port: int, display: Display, guard: Guard, directory: pathlib.Path) -> None:
        self._job = job
        self._store_port = store_port
        self._name = os.environ.get("PSUM_JOB") or "launch"
        self._display = display
        self._guard = guard
        self._directory = directory
        self._aggregators: list[Child] = []
        self._workers: dict[int, Child] = {}
        """The process of each rank."""
        self._verdict: Ending | None = None
        # Other users of this machine can connect to loopback addresses, but cannot read this file.
        self._token_file = directory / "token"
        self._token_file.write_text(secrets.token_urlsafe())
        self._join_check = JoinCheck(self._name, str(self._token_file), display.note)

    async def run(self) -> int:
        """Start all processes, and wait until all workers have succeeded or one process has failed.

        Raises:
            LaunchError: A process could not be started.
        """
        addresses = await self._start_aggregators()
        for rank in range(self._job.workers):
            await self._start_worker(rank, addresses)
        return await self._watch(addresses)

    async def end(self, hurry: asyncio.Event) -> None:
        """End all processes that still run: workers first, so that they can leave the job in good order."""
        await end(self._workers.values(), self._job.grace, hurry)
        await end(self._aggregators, self._job.grace, hurry)
        self._join_check.close()
        # This must be the last line, after the output of the processes that were ended.
        if self._verdict is not None and self._job.workers > 1:
            self._display.note(f"first failure: {self._verdict}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the workers."""
        for child in self._workers.values():
            child.signal(number)

    def _environment(self, index: int) -> dict[str, str]:
        """Return the common environment variables of the worker and the aggregator with this number."""
        hosts = self._job.hosts
        directory = hosts[index % len(hosts)] if hosts else ""
        return common_environment(self._job.environ, str(self._token_file), directory)

    def _fault_file(self, rank: int) -> pathlib.Path:
        return self._directory / f"fault-{rank}"

    async def _start_worker(self, rank: int, addresses: Sequence[str], environ: Mapping[str, str] = {}) -> None:
        """Start the process of a rank.

        Raises:
            LaunchError: The command cannot be run.
        """
        self._fault_file(rank).unlink(missing_ok=True)
        own = worker_environment(
            job=self._name,
            addresses=addresses,
            rank=rank,
            num_workers=self._job.workers,
            plane=self._job.plane,
            fault_file=str(self._fault_file(rank)),
            store_port=self._store_port,
        )
        common = self._environment(rank)
        streaming = streaming_environment(self._job.plane, common)
        try:
            self._workers[rank] = await self._start(
                str(rank), f"worker rank {rank}", self._job.command, {**common, **streaming, **own, **environ}
            )
        except OSError as error:
            text = f"cannot run {self._job.command[0]!r} as a worker: {error.strerror or error}"
            raise LaunchError(text, 127 if isinstance(error, FileNotFoundError) else 126) from None

    async def _start(self, name: str, title: str, command: Sequence[str], environ: Mapping[str, str]) -> Child:
        return await Child.start(name, title, command, environ, self._display, self._guard)

    async def _start_aggregators(self) -> list[str]:
        files = [self._directory / f"aggregator-{index}" for index in range(self._job.aggregators)]
        for index, file in enumerate(files):
            command = [
                sys.executable,
                "-m",
                "psum.cli",
                "aggregator",
                "--listen",
                "127.0.0.1:0",
                "--processes",
                str(self._job.processes),
                "--announce",
                str(file),
            ]
            environ = {"PSUM_LOG_LEVEL": "warning", **self._environment(index)}
            self._aggregators.append(await self._start(f"aggregator {index}", f"aggregator {index}", command, environ))
        addresses: list[str] = []
        try:
            async with asyncio.timeout(_START_SECONDS):
                for child, file in zip(self._aggregators, files, strict=True):
                    while (address := _announced(file)) is None:
                        if child.ended.done():
                            how = describe(child.ended.result())
                            raise LaunchError(f"{child.title} {how} before it was ready; its output is above")
                        await asyncio.sleep(_POLL_SECONDS)
                    addresses.append(address)
        except TimeoutError:
            late = self._aggregators[len(addresses)].title
            raise LaunchError(f"{late} was not ready within {_START_SECONDS:g} s of its start") from None
        return addresses

    async def _watch(self, addresses: Sequence[str]) -> int:
        """Wait until all workers have succeeded or one process has failed, and return the exit status."""
        waiting = {child.ended: child for child in (*self._aggregators, *self._workers.values())}
        ranks_of = {child: rank for rank, child in self._workers.items()}
        running = set(self._workers)
        failed: list[Ending] = []
        give_up: float | None = None
        while running:
            timeout = None if give_up is None else max(0.0, give_up - time.monotonic())
            done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            ended = [waiting.pop(task) for task in list(waiting) if task in done]
            for child in ended:
                if child in self._aggregators:
                    return self._aggregator_ended(child, addresses)
            ranks = [ranks_of[child] for child in ended]
            running.difference_update(ranks)
            endings = [self._ending(rank) for rank in ranks]
            failed += [ending for ending in endings if ending.code != 0]
            await self._join_check.check([ending.rank for ending in endings if ending.code == 0], addresses[0])
            if failed:
                give_up = give_up or time.monotonic() + min(self._job.grace, CAUSE_SECONDS)
                if not suspects(failed, running) or time.monotonic() >= give_up:
                    self._verdict = cause(failed)
                    text = f"worker rank {self._verdict.rank} {describe(self._verdict.code)}"
                    self._display.note(text + ("; ending the others" if running else ""))
                    return shell_status(self._verdict.code)
        return 0

    def _aggregator_ended(self, child: Child, addresses: Sequence[str]) -> int:
        """Report that an aggregator has ended, and return the exit status."""
        how, address = describe(child.ended.result()), addresses[self._aggregators.index(child)]
        self._display.note(f"{child.title} at {address} {how} while workers need it; ending them")
        return shell_status(child.ended.result()) or 1

    def _ending(self, rank: int) -> Ending:
        child = self._workers[rank]
        return Ending(rank, child.ended.result(), child.error, FaultReport.read(self._fault_file(rank)))


def _announced(file: pathlib.Path) -> str | None:
    """Return the address that an aggregator has announced, or None if it has not yet."""
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return None
