"""What a benchmark compares: systems, and cases that each of them is put to."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Final

from psum.cli.bench.rivals import Peer

THROUGH: Final = ("numpy", "mxnet")


@dataclasses.dataclass(frozen=True)
class System:
    """psum in one way of using it, or a peer.

    Attributes:
        plane: How psum's payloads are to cross; empty for a peer.
        through: What psum is used through: 'numpy' or 'mxnet'.
        dtype: The element type.
        peer: The peer, None for psum.
    """

    plane: str = ""
    through: str = "numpy"
    dtype: str = "float32"
    peer: Peer | None = None

    @property
    def name(self) -> str:
        """What it is called in the results; no two systems of a comparison have the same."""
        if self.peer is not None:
            return self.peer.name
        words = ["psum", self.plane]
        if self.through != "numpy":
            words.append(f"through {self.through}")
        if self.dtype != "float32":
            words.append(f"in {self.dtype}")
        return " ".join(words)


@dataclasses.dataclass(frozen=True)
class Case:
    """What every system does.

    Attributes:
        workload: Its name.
        workers: How many.
        aggregators: How many aggregators, or servers.
        hosts: On how many hosts it is to be as if they were; memory is shared within one only. 1 is as it is.
    """

    workload: str
    workers: int = 2
    aggregators: int = 1
    hosts: int = 1

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.workload}, {count(self.workers, 'worker')}, {count(self.aggregators, 'aggregator')}" + (
            f", as on {self.hosts} hosts" if self.hosts > 1 else ""
        )


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is done in one run.

    Attributes:
        steps: Timed steps.
        warmup: Steps before those.
        latency_steps: Steps in which the latency of each tensor is taken.
        idle_seconds: How long nothing is done then, while servers' processor time is taken.
    """

    steps: int = 10
    warmup: int = 2
    latency_steps: int = 0
    idle_seconds: float = 0.0


def psum_systems(planes: Iterable[str], through: Iterable[str], dtypes: Iterable[str]) -> list[System]:
    """psum in every combination, in order, none twice."""
    return [
        System(plane=plane, through=means, dtype=dtype)
        for plane, means, dtype in dict.fromkeys(itertools.product(planes, through, dtypes))
    ]


def cases(workloads: Sequence[str], workers: Sequence[int], aggregators: Sequence[int], hosts: int = 1) -> list[Case]:
    """Every combination, in order, none twice."""
    return [
        Case(workload, number, servers, hosts)
        for workload, number, servers in dict.fromkeys(itertools.product(workloads, workers, aggregators))
    ]


def count(number: int, noun: str) -> str:
    """'1 worker', '2 workers'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
