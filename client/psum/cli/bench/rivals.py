"""psum's rivals on this machine: find those that are installed, and run a job of one of them."""

import asyncio
import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from psum.cli.bench import measure
from psum.cli.launch.display import Display
from psum.cli.launch.guard import Guard
from psum.cli.launch.processes import Child, describe, end, shell_status
from psum.cli.launch.supervise import LaunchError, supervise

NAMES: Final = tuple(measure.RIVALS)

#: The longest time for one job of a rival. Rivals hang if one of their processes fails.
_JOB_TIMEOUT_SECONDS: Final = 900.0

#: The longest time for finding out whether an interpreter has PyTorch.
_PROBE_TIMEOUT_SECONDS: Final = 60.0

_GRACE_SECONDS: Final = 2.0

_PROBE: Final = (
    "import torch.distributed as d, torch; assert d.is_available() and d.is_gloo_available(); print(torch.__version__)"
)


@dataclasses.dataclass(frozen=True)
class Rival:
    """An installed rival.

    Attributes:
        name: Its name, one of NAMES.
        version: Its version for people, such as 'PyTorch 2.5.1'.
        python: The path of the interpreter that has it.
    """

    name: str
    version: str
    python: str


class MissingError(Exception):
    """A rival is not installed. The text says how to install it."""


def find(name: str, gloo_python: str | None = None) -> Rival:
    """Find an installed rival.

    Args:
        name: One of NAMES.
        gloo_python: The path of an interpreter with PyTorch, if this one has none.

    Raises:
        MissingError: The rival is not installed.
    """
    if name == "dist_sync":
        if importlib.util.find_spec("mxnet") is None:
            raise MissingError(
                "skipping dist_sync: it is part of MXNet, which is not installed; pip install 'psum[mxnet]'"
            )
        return Rival(name, _mxnet_version(), sys.executable)
    python = gloo_python or sys.executable
    try:
        probe = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"skipping gloo: cannot run {python}: {error}") from None
    if probe.returncode != 0:
        raise MissingError(
            f"skipping gloo: {python} cannot import torch with Gloo; pip install torch, here or in another environment,"
            " and pass its interpreter to --gloo-python"
        )
    return Rival(name, f"PyTorch {probe.stdout.strip()}", python)


def _mxnet_version() -> str:
    """Return the version of MXNet for people. If the wheel is not called mxnet (CUDA builds), include its name."""
    names = sorted(set(importlib.metadata.packages_distributions().get("mxnet", ())))
    if not names:
        # MXNet was built from source and is on the path without a wheel.
        return "MXNet"
    version = f"MXNet {importlib.metadata.version(names[-1])}"
    return version if names == ["mxnet"] else f"{version} ({' over '.join(reversed(names))})"


def run(
    rival: Rival, plan: measure.Plan, *, workers: int, servers: int, environ: Mapping[str, str] = MappingProxyType({})
) -> int:
    """Run a job of a rival to its end. Show its output only if it fails.

    Args:
        rival: The rival.
        plan: What every rank does.
        workers: The number of workers.
        servers: The number of servers, for rivals that have servers.
        environ: Additional environment variables for all processes.

    Returns:
        The exit status, 0 for success.
    """
    return asyncio.run(supervise(functools.partial(_Fleet, rival, plan, workers, servers, environ), quiet=True))


class _Fleet:
    """The processes of a job."""

    def __init__(
        self,
        rival: Rival,
        plan: measure.Plan,
        workers: int,
        servers: int,
        environ: Mapping[str, str],
        display: Display,
        guard: Guard,
        directory: pathlib.Path,
    ) -> None:
        self._rival = rival
        self._plan = plan
        self._num_workers = workers
        self._environ = environ
        self._num_servers = servers if rival.name == "dist_sync" else 0
        self._display = display
        self._guard = guard
        self._servers: list[Child] = []
        self._workers: list[Child] = []

    async def run(self) -> int:
        """Start all processes and wait for the workers; see Fleet."""
        port = str(_free_port())
        if self._rival.name == "dist_sync":
            environ = {
                "DMLC_NUM_WORKER": str(self._num_workers),
                "DMLC_NUM_SERVER": str(self._num_servers),
                "DMLC_PS_ROOT_URI": "127.0.0.1",
                "DMLC_PS_ROOT_PORT": port,
                "DMLC_NODE_HOST": "127.0.0.1",
            }
            await self._start("scheduler", self._plan, {**environ, "DMLC_ROLE": "scheduler"}, self._servers)
            for index in range(self._num_servers):
                await self._start(f"server {index}", self._plan, {**environ, "DMLC_ROLE": "server"}, self._servers)
            ranks = [{**environ, "DMLC_ROLE": "worker"}] * self._num_workers
        else:
            environ = {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "WORLD_SIZE": str(self._num_workers),
                "GLOO_SOCKET_IFNAME": "lo",
            }
            ranks = [{**environ, "RANK": str(rank)} for rank in range(self._num_workers)]
        plan = dataclasses.replace(self._plan, servers=[child.pid for child in self._servers[1:]])
        for rank, settings in enumerate(ranks):
            await self._start(str(rank), plan, settings, self._workers)
        try:
            async with asyncio.timeout(_JOB_TIMEOUT_SECONDS):
                return await self._watch()
        except TimeoutError:
            raise LaunchError(f"{self._rival.name} did not finish within {_JOB_TIMEOUT_SECONDS:g} s") from None

    async def end(self, hurry: asyncio.Event) -> None:
        """End all processes that still run. Some servers take long to end after their job."""
        await end((*self._workers, *self._servers), _GRACE_SECONDS, hurry)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the workers."""
        for child in self._workers:
            child.signal(number)

    async def _start(self, name: str, plan: measure.Plan, settings: Mapping[str, str], children: list[Child]) -> None:
        command = [self._rival.python, str(measure.__file__), plan.dump()]
        # Import paths of this interpreter are wrong for another one, and variables of other launchers for this job.
        dropped = ("PYTHONPATH", "PYTHONHOME") if self._rival.python != sys.executable else ()
        inherited = {
            variable: value
            for variable, value in os.environ.items()
            if variable not in dropped and not variable.startswith(("DMLC_", "TORCHELASTIC_", "PS_"))
        }
        title = f"{self._rival.name} {name if not name.isdecimal() else f'rank {name}'}"
        try:
            child = await Child.start(
                name, title, command, {**inherited, **self._environ, **settings}, self._display, self._guard
            )
        except OSError as error:
            raise LaunchError(f"cannot run {self._rival.python!r}: {error.strerror or error}") from None
        children.append(child)

    async def _watch(self) -> int:
        waiting = {child.ended: child for child in self._workers}
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                child = waiting.pop(task)
                if task.result() != 0:
                    self._display.note(f"{child.title} {describe(task.result())}; ending the others")
                    return shell_status(task.result())
        return 0


def _free_port() -> int:
    """Return a port that is free now. The kernel does not assign it again soon."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
