"""The experiments on networks for docs/benchmarks.md, and their targets."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from psum.cli.bench.cases import Effort, System
from psum.cli.bench.rivals import Rival
from tests.bench.netlab.placement import Placement
from tests.bench.netlab.runs import Case, Summary


@dataclasses.dataclass(frozen=True)
class Target:
    """What a system must reach in a placement.

    Attributes:
        placement: The placement.
        variant: The system.
        figure: The name of the figure of Run that is compared.
        least: The lowest value that reaches the target, or None.
        most: The highest value that reaches the target, or None.
        against: A rival whose figure the system must reach, instead of a number; else empty.
        times: How many times the rival's figure.
    """

    placement: Placement
    variant: str
    figure: str = "of_bound"
    least: float | None = None
    most: float | None = None
    against: str = ""
    times: float = 1.0

    def words(self) -> str:
        """The target as text: '≥ 0.92', '≥ gloo', '≥ 1.8 × gloo'."""
        if self.against:
            return f"≥ {self.against}" if self.times == 1 else f"≥ {self.times:g} × {self.against}"
        return f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"

    def verdict(self, summaries: Sequence[Summary]) -> tuple[float, bool] | None:
        """Returns the measured median and whether it reaches the target. None if a figure was not measured."""
        ours = self._median(summaries, self.variant)
        if ours is None:
            return None
        if self.against:
            theirs = self._median(summaries, self.against)
            return None if theirs is None else (ours, ours >= self.times * theirs)
        enough = (self.least is None or ours >= self.least) and (self.most is None or ours <= self.most)
        return ours, enough

    def ratio(self, summaries: Sequence[Summary]) -> float | None:
        """Returns the measured median divided by the rival's. None if a figure was not measured."""
        ours, theirs = self._median(summaries, self.variant), self._median(summaries, self.against)
        return ours / theirs if ours is not None and theirs else None

    def _median(self, summaries: Sequence[Summary], variant: str) -> float | None:
        for summary in summaries:
            if (summary.case.placement, summary.variant) == (self.placement, variant):
                spread = summary.spread(self.figure)
                return None if spread is None else spread.median
        return None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment: several systems run in turns in the same placements.

    Attributes:
        about: A sentence that describes the experiment.
        placements: The placements.
        planes: psum's planes. Each counts as a system of its own.
        rivals: The names of the rivals that psum is compared with.
        targets: The targets that the results are compared with.
        mbit: The rate of the links, in 10^6 bits per second.
        workload: The name of the workload.
        effort: The number of steps in one run.
        through: The interface to psum: 'numpy' or 'torch'.
    """

    about: str
    placements: Sequence[Placement]
    planes: Sequence[str]
    rivals: Sequence[str]
    targets: Sequence[Target]
    mbit: float = 200.0
    workload: str = "resnet50"
    effort: Effort = Effort(steps=2, warmup=1)  # noqa: RUF009 (frozen)
    through: str = "numpy"

    def pairs(
        self, rivals: Sequence[Rival], congestion_control: str, torch_python: str | None = None
    ) -> list[tuple[Case, System]]:
        """Returns all pairs of case and system, for psum and for the installed rivals.

        Args:
            rivals: The installed rivals.
            congestion_control: TCP's congestion control.
            torch_python: The path of an interpreter with PyTorch and psum. Without one, psum is left out of an
                experiment through torch.
        """
        systems = psum_systems(self.through, self.planes, torch_python)
        systems += [System(rival=rival) for rival in rivals if rival.name in self.rivals]
        return [
            (Case(placement, self.workload, self.mbit, congestion_control), system)
            for placement in self.placements
            for system in systems
        ]


def psum_systems(through: str, planes: Sequence[str], torch_python: str | None) -> list[System]:
    """Returns psum with each plane; nothing if PyTorch is needed and `torch_python` is None."""
    if through != "torch":
        return [System(plane=plane, through=through) for plane in planes]
    if torch_python is None:
        return []
    return [System(plane=plane, through=through, python=torch_python) for plane in planes]


_RIVALS: Final = ("gloo", "dist_sync")

_BESIDE: Final = tuple(Placement(hosts) for hosts in (2, 3, 4, 8))
_DEDICATED: Final = tuple(Placement(hosts, beside=0, dedicated=hosts) for hosts in (2, 4))
_MIXED: Final = (
    Placement(2, dedicated=1),
    Placement(2, dedicated=2),
    Placement(4, dedicated=2),
    Placement(4, dedicated=4),
)
_SEVERAL: Final = tuple(Placement(hosts, local) for hosts in (2, 4) for local in (2, 4, 8))
_TORCH: Final = tuple(Placement(hosts, local) for hosts in (2, 4) for local in (1, 2, 4))


def _rivals(placements: Sequence[Placement], variant: str) -> list[Target]:
    return [Target(placement, variant, against=rival) for placement in placements for rival in _RIVALS]


EXPERIMENTS: Final[Mapping[str, Experiment]] = MappingProxyType(
    {
        "beside": Experiment(
            "One worker and one aggregator on each host.",
            _BESIDE,
            ("auto", "inline"),
            _RIVALS,
            [
                *(Target(each, "psum auto", least=0.92 if each.hosts < 8 else 0.9) for each in _BESIDE),
                *(Target(each, "psum inline", least=0.85) for each in _BESIDE),
                *_rivals(_BESIDE, "psum auto"),
            ],
        ),
        "dedicated": Experiment(
            "One worker on each host, and as many hosts with an aggregator each.",
            _DEDICATED,
            ("auto", "inline"),
            _RIVALS,
            [
                *(Target(each, "psum auto", least=0.92) for each in _DEDICATED),
                *(Target(each, "psum inline", least=0.85) for each in _DEDICATED),
                *_rivals(_DEDICATED, "psum auto"),
            ],
        ),
        "mixed": Experiment(
            "One worker and one aggregator on each host, and hosts with an aggregator alone.",
            _MIXED,
            ("auto",),
            ("dist_sync",),
            [Target(each, "psum auto", least=0.9) for each in _MIXED],
        ),
        "several": Experiment(
            "Several workers and one aggregator on each host.",
            _SEVERAL,
            ("auto",),
            # dist_sync sends everything once for each worker, so it reaches the bound divided by their number at best.
            ("gloo",),
            [
                *(Target(each, "psum auto", least=0.9) for each in _SEVERAL),
                *(Target(each, "psum auto", "link_bytes", most=1.07) for each in _SEVERAL),
            ],
            # At 200 Mbit/s, two processors are too slow for 36 processes.
            mbit=100.0,
            effort=Effort(steps=1, warmup=1),
        ),
        "urgent": Experiment(
            "The first layer's tensor is pushed last, behind a whole step.",
            (Placement(4),),
            ("auto", "inline"),
            (),
            [Target(Placement(4), f"psum {plane}", "urgent_share", most=0.15) for plane in ("auto", "inline")],
            effort=Effort(steps=1, warmup=1, latency_steps=3),
        ),
        "torch": Experiment(
            "PyTorch: torch.distributed sums the buckets of DistributedDataParallel with the backend psum, which starts"
            " an aggregator on each host, and with Gloo.",
            _TORCH,
            ("auto",),
            ("gloo",),
            [
                Target(each, "psum auto through torch", against="gloo", times=1.0 if each.local == 1 else 1.8)
                for each in _TORCH
            ],
            mbit=500.0,
            workload="resnet50-ddp",
            through="torch",
        ),
    }
)
