"""The processes of psum, dist_sync and Gloo on the hosts of a placement, with their commands and environments."""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from psum.cli.bench import measure, rivals
from psum.cli.bench.cases import System
from psum.cli.bench.runs import openmp_environment
from tests.bench.netlab import rank, torch_python
from tests.bench.netlab.placement import Placement

#: Each host has a network stack of its own, so every port is free.
_PSUM_PORT: Final = 50051
_PEER_PORT: Final = 29500

#: Variables that processes must not inherit: they would set another rank, size or role, or switch on TLS.
_FOREIGN_PREFIXES: Final = ("DMLC_", "BYTEPS_", "PS_", "TORCHELASTIC_", "PSUM_TLS_", "PSUM_AGGREGATOR_TLS_")
_FOREIGN: Final = (
    "JOB_COMPLETION_INDEX",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)


@dataclasses.dataclass(frozen=True)
class Process:
    """A process to start.

    Attributes:
        name: The prefix of its output lines; for a worker, its rank.
        title: Its name in messages.
        host: The number of its host.
        command: Its command line.
        environ: Its environment variables besides those of `inherited`.
    """

    name: str
    title: str
    host: int
    command: Sequence[str]
    environ: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Job:
    """The workers that follow a plan, and the servers that they need.

    Attributes:
        system: The system to measure.
        placement: Where its processes run.
        addresses: The hosts' IP addresses.
        shared_memory: The hosts' directories for shared memory.
        directory: The directory for the ranks' files of step times.
    """

    system: System
    placement: Placement
    addresses: Sequence[str]
    shared_memory: Sequence[str]
    directory: pathlib.Path

    def steps_file(self, number: int) -> pathlib.Path:
        """The file in which a rank records when its steps began and ended."""
        return self.directory / f"steps-{number}"

    def servers(self) -> list[Process]:
        """psum's aggregators, or dist_sync's scheduler followed by its servers.

        Gloo has none. With PyTorch, psum's workers start the aggregators.
        """
        hosts = self.placement.aggregator_hosts
        if self.system.through == "torch":
            return []
        if self.system.rival is None:
            addresses = self._aggregators()
            return [
                Process(
                    f"aggregator {index}",
                    f"aggregator {index} at {address}",
                    host,
                    [sys.executable, "-m", "psum.cli", "aggregator", "--listen", address, "--insecure"],
                    {"PSUM_LOG_LEVEL": "warning", "PSUM_SHM_DIRECTORY": self.shared_memory[host]},
                )
                for index, (host, address) in enumerate(zip(hosts, addresses, strict=True))
            ]
        if self.system.rival.name != "dist_sync":
            return []
        command = self._rank(
            self.system.rival.python, measure.Plan("dist_sync", [], "float32", 4, 0, 0, 0, 0.0, "", False), 0
        )
        scheduler = Process("scheduler", "dist_sync scheduler", 0, command, self._dmlc("scheduler", 0))
        return [
            scheduler,
            *(
                Process(f"server {index}", f"dist_sync server {index}", host, command, self._dmlc("server", host))
                for index, host in enumerate(hosts)
            ),
        ]

    def workers(self, plan: measure.Plan) -> list[Process]:
        """The workers, one for each rank, in order."""
        python = (self.system.python or sys.executable) if self.system.rival is None else self.system.rival.python
        return [
            Process(
                str(number),
                f"{self.system.name} rank {number}",
                self.placement.host_of(number),
                self._rank(python, plan, number),
                self._worker_environment(number),
            )
            for number in range(self.placement.workers)
        ]

    def _rank(self, python: str, plan: measure.Plan, number: int) -> list[str]:
        # With -P, an interpreter finds psum in PYTHONPATH, and nothing in the working directory.
        isolated = "-P" if self.system.through == "torch" else "-I"
        return [python, isolated, rank.__file__, measure.__file__, plan.dump(), str(self.steps_file(number))]

    def _aggregators(self) -> list[str]:
        hosts = self.placement.aggregator_hosts
        return [f"{self.addresses[host]}:{_PSUM_PORT + index}" for index, host in enumerate(hosts)]

    def _worker_environment(self, number: int) -> dict[str, str]:
        placement, host = self.placement, self.placement.host_of(number)
        if self.system.through == "torch":
            return {
                **self._torchs(number),
                # As torchrun sets them, with one agent on each host.
                "LOCAL_RANK": str(number % placement.local),
                "LOCAL_WORLD_SIZE": str(placement.local),
                "GROUP_RANK": str(host),
                **torch_python.environment(),
                "PSUM_PLANE": self.system.plane,
                "PSUM_SHM_DIRECTORY": self.shared_memory[host],
                # Otherwise each rank warns that its link is not encrypted.
                "PSUM_LOG_LEVEL": "error",
            }
        if self.system.rival is None:
            return {
                "PSUM_AGGREGATORS": ",".join(self._aggregators()),
                "PSUM_RANK": str(number),
                "PSUM_NUM_WORKERS": str(placement.workers),
                "PSUM_LOCAL_RANK": str(number % placement.local),
                "PSUM_LOCAL_SIZE": str(placement.local),
                "PSUM_PLANE": self.system.plane,
                "PSUM_SHM_DIRECTORY": self.shared_memory[host],
            }
        if self.system.rival.name == "dist_sync":
            return self._dmlc("worker", host)
        return {**self._torchs(number), "GLOO_SOCKET_IFNAME": "eth0"}

    def _torchs(self, number: int) -> dict[str, str]:
        return {
            "MASTER_ADDR": self.addresses[0],
            "MASTER_PORT": str(_PEER_PORT),
            "RANK": str(number),
            "WORLD_SIZE": str(self.placement.workers),
        }

    def _dmlc(self, role: str, host: int) -> dict[str, str]:
        return {
            "DMLC_ROLE": role,
            "DMLC_NUM_WORKER": str(self.placement.workers),
            "DMLC_NUM_SERVER": str(len(self.placement.aggregator_hosts)),
            "DMLC_PS_ROOT_URI": self.addresses[0],
            "DMLC_PS_ROOT_PORT": str(_PEER_PORT),
            "DMLC_NODE_HOST": self.addresses[host],
            "DMLC_INTERFACE": "eth0",
        }


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that all processes of a job inherit. They include psum's settings, to try them out."""
    kept = {
        variable: value
        for variable, value in environ.items()
        if not variable.startswith(_FOREIGN_PREFIXES) and variable not in _FOREIGN
    }
    return {**kept, **openmp_environment()}


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that are psum's settings, to record them with the results."""
    return {variable: value for variable, value in sorted(environ.items()) if variable.startswith("PSUM_")}


def can_run(system: System, placement: Placement) -> bool:
    """Whether a system has what it needs in a placement: Gloo needs no aggregators, all others do.

    With PyTorch, psum itself starts one aggregator on each host with workers.
    """
    if system.through == "torch":
        return (placement.beside, placement.dedicated) == (1, 0)
    return bool(placement.aggregator_hosts) or (system.rival is not None and system.rival.name in _WITHOUT_SERVERS)


_WITHOUT_SERVERS: Final = tuple(name for name in rivals.NAMES if name != "dist_sync")
