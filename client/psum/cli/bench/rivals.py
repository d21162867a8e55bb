"""psum's peers on this machine: which are installed, and a job of one of them."""

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

NAMES: Final = tuple(measure.PEERS)

#: How long one job of a peer may take: they hang where one of their processes fails.
_PATIENCE_SECONDS: Final = 900.0

#: How long it may take to look whether an interpreter has PyTorch.
_LOOK_SECONDS: Final = 60.0

_GRACE_SECONDS: Final = 2.0

_LOOK: Final = (
    "import torch.distributed as d, torch; assert d.is_available() and d.is_gloo_available(); print(torch.__version__)"
)


@dataclasses.dataclass(frozen=True)
class Peer:
    """A peer that is installed.

    Attributes:
        name: What it is called.
        version: What there is of it, for people.
        python: The interpreter that has it.
    """

    name: str
    version: str
    python: str


class MissingError(Exception):
    """A peer is not installed. The text says what to install."""


def find(name: str, gloo_python: str | None = None) -> Peer:
    """Looks for a peer.

    Args:
        name: One of NAMES.
        gloo_python: An interpreter that has PyTorch, if this one has not.

    Raises:
        MissingError: It is not there.
    """
    if name == "dist_sync":
        if importlib.util.find_spec("mxnet") is None:
            raise MissingError("dist_sync is left out: it is part of MXNet; pip install 'psum[mxnet]'")
        return Peer(name, _mxnet_version(), sys.executable)
    python = gloo_python or sys.executable
    try:
        looked = subprocess.run([python, "-c", _LOOK], capture_output=True, text=True, timeout=_LOOK_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"gloo is left out: {python} cannot be run: {error}") from None
    if looked.returncode != 0:
        raise MissingError(
            f"gloo is left out: {python} cannot import torch with Gloo; pip install torch, here or in an environment of"
            " its own that --gloo-python names"
        )
    return Peer(name, f"PyTorch {looked.stdout.strip()}", python)


def _mxnet_version() -> str:
    """The version of MXNet for people, with the name of its wheel where that is not mxnet, as with those for CUDA."""
    names = sorted(set(importlib.metadata.packages_distributions().get("mxnet", ())))
    if not names:
        # Built from source, and found by its path.
        return "MXNet"
    version = f"MXNet {importlib.metadata.version(names[-1])}"
    return version if names == ["mxnet"] else f"{version} ({' over '.join(reversed(names))})"


def run(
    peer: Peer, plan: measure.Plan, *, workers: int, servers: int, environ: Mapping[str, str] = MappingProxyType({})
) -> int:
    """Runs a job of a peer to its end. What it writes is shown only if it fails.

    Args:
        peer: Which.
        plan: What every rank does.
        workers: How many.
        servers: How many, where the peer has any.
        environ: What all processes have in their environment on top of this process's own.

    Returns:
        0, or the status to exit with.
    """
    return asyncio.run(supervise(functools.partial(_Fleet, peer, plan, workers, servers, environ), quiet=True))


class _Fleet:
    """The processes of a job."""

    def __init__(
        self,
        peer: Peer,
        plan: measure.Plan,
        workers: int,
        servers: int,
        environ: Mapping[str, str],
        display: Display,
        guard: Guard,
        directory: pathlib.Path,
    ) -> None:
        self._peer = peer
        self._plan = plan
        self._num_workers = workers
        self._environ = environ
        self._num_servers = servers if peer.name == "dist_sync" else 0
        self._display = display
        self._guard = guard
        self._servers: list[Child] = []
        self._workers: list[Child] = []

    async def run(self) -> int:
        """Starts all of it and waits for the workers; see Fleet."""
        port = str(_free_port())
        if self._peer.name == "dist_sync":
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
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await self._watch()
        except TimeoutError:
            raise LaunchError(f"{self._peer.name} was not done after {_PATIENCE_SECONDS:g} s") from None

    async def end(self, hurry: asyncio.Event) -> None:
        """Ends what still runs; servers that are not needed any more are not all quick to go."""
        await end((*self._workers, *self._servers), _GRACE_SECONDS, hurry)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the workers."""
        for child in self._workers:
            child.signal(number)

    async def _start(self, name: str, plan: measure.Plan, settings: Mapping[str, str], children: list[Child]) -> None:
        command = [self._peer.python, str(measure.__file__), plan.dump()]
        # What this interpreter imports is not for another one, and what other launchers set is not for this job.
        dropped = ("PYTHONPATH", "PYTHONHOME") if self._peer.python != sys.executable else ()
        inherited = {
            variable: value
            for variable, value in os.environ.items()
            if variable not in dropped and not variable.startswith(("DMLC_", "TORCHELASTIC_", "PS_"))
        }
        title = f"{self._peer.name} {name if not name.isdecimal() else f'rank {name}'}"
        try:
            child = await Child.start(
                name, title, command, {**inherited, **self._environ, **settings}, self._display, self._guard
            )
        except OSError as error:
            raise LaunchError(f"cannot run {self._peer.python!r}: {error.strerror or error}") from None
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
    """A port that is free now, and is not given to others soon."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
