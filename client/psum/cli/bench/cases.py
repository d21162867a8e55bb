"""The systems that a benchmark compares, and the cases that each of them runs."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Final

from psum.cli.bench.rivals import Rival

THROUGH: Final = ("numpy", "shared", "mxnet")


@dataclasses.dataclass(frozen=True)
class System:
    """One way to use psum, or a rival.

    Attributes:
        plane: The plane for psum's payloads, empty for a rival.
        through: The interface to psum: 'numpy', 'shared' or 'mxnet', in the network lab also 'torch'.
        dtype: The label of the element type.
        rival: The rival, None for psum.
        python: The path of the interpreter of psum's workers. Empty: this one.
    """

    plane: str = ""
    through: str = "numpy"
    dtype: str = "float32"
    rival: Rival | None = None
    python: str = ""

    @property
    def name(self) -> str:
        """The name in the results, unique within a comparison."""
        if self.rival is not None:
            return self.rival.name
        words = ["psum", self.plane]
        if self.through != "numpy":
            words.append(f"through {self.through}")
        if self.dtype != "float32":
            words.append(f"in {self.dtype}")
        return " ".join(words)


@dataclasses.dataclass(frozen=True)
class Case:
    """What every system runs.

    Attributes:
        workload: The name of the workload.
        workers: The number of workers.
        aggregators: The number of aggregators, or of a rival's servers.
        hosts: The number of hosts to simulate. Memory is shared within one host only. 1 simulates nothing.
    """

    workload: str
    workers: int = 2
    aggregators: int = 1
    hosts: int = 1

    @property
    def title(self) -> str:
        """The case for people, such as 'big, 2 workers, 1 aggregator'."""
        return f"{self.workload}, {count(self.workers, 'worker')}, {count(self.aggregators, 'aggregator')}" + (
            f", as on {self.hosts} hosts" if self.hosts > 1 else ""
        )


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much each run does.

    Attributes:
        steps: The number of timed steps.
        warmup: Steps before the timed ones.
        latency_steps: Steps after those that measure the latency of each tensor.
        idle_seconds: How long all workers idle at the end, to measure the processor time of idle servers.
    """

    steps: int = 10
    warmup: int = 2
    latency_steps: int = 0
    idle_seconds: float = 0.0


def psum_systems(planes: Iterable[str], through: Iterable[str], dtypes: Iterable[str]) -> list[System]:
    """Return psum in every combination, in order and without duplicates."""
    return [
        System(plane=plane, through=interface, dtype=dtype)
        for plane, interface, dtype in dict.fromkeys(itertools.product(planes, through, dtypes))
    ]


def cases(workloads: Sequence[str], workers: Sequence[int], aggregators: Sequence[int], hosts: int = 1) -> list[Case]:
    """Return every combination, in order and without duplicates."""
    return [
        Case(workload, number, servers, hosts)
        for workload, number, servers in dict.fromkeys(itertools.product(workloads, workers, aggregators))
    ]


def count(number: int, noun: str) -> str:
    """Return a number with its noun, such as '1 worker' or '2 workers'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
