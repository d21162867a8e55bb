"""The experiments behind docs/benchmarks.md, and the target of each."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from psum.cli.bench.cases import Case, Effort, System
from psum.cli.bench.rivals import Rival
from psum.cli.bench.runs import Summary


@dataclasses.dataclass(frozen=True)
class Claim:
    """The target of a comparison: the least or the most that the ratio of two figures should be.

    Attributes:
        case: The case.
        variant: The name of the system.
        against: The name of the system to compare with. If empty, the target is for the figure itself.
        target: The lowest ratio for GB/s, the highest ratio for other figures.
        figure: The field of Run.
        relative_to: Another field of Run. If set, the figure is divided by this field of the same system.
        against_case: The case of the system to compare with, if it differs.
        total: Whether to take the total of all workers, for GB/s.
    """

    case: Case
    variant: str
    against: str
    target: float
    figure: str = "gb_per_s_per_worker"
    relative_to: str = ""
    against_case: Case | None = None
    total: bool = False

    @property
    def more_is_better(self) -> bool:
        """Whether the target is a lower bound."""
        return self.figure == "gb_per_s_per_worker"

    def reached(self, summaries: Sequence[Summary]) -> float | None:
        """Return the measured ratio of medians, or None if a system was not measured."""

        def median(case: Case, variant: str, figure: str) -> float | None:
            values = self._figures(summaries, case, variant, figure).values()
            return statistics.median(values) if values else None

        ours, theirs = (median(*term) for term in self._terms())
        return None if ours is None or not theirs else ours / theirs

    def by_round(self, summaries: Sequence[Summary]) -> list[float]:
        """Return the ratio within each round, in order. Their spread shows how reliable the ratio is."""
        ours, theirs = (self._figures(summaries, *term) for term in self._terms())
        return [ours[number] / theirs[number] for number in ours if theirs.get(number)]

    def holds(self, reached: float) -> bool:
        """Return whether a measured ratio meets the target."""
        return reached >= self.target if self.more_is_better else reached <= self.target

    def _terms(self) -> tuple[tuple[Case, str, str], tuple[Case, str, str]]:
        """Return case, system and figure of numerator and denominator. Without a figure, the denominator is 1."""
        if self.relative_to:
            second = self.case, self.variant, self.relative_to
        elif self.against:
            second = self.against_case or self.case, self.against, self.figure
        else:
            second = self.case, self.variant, ""
        return (self.case, self.variant, self.figure), second

    def _figures(self, summaries: Sequence[Summary], case: Case, variant: str, figure: str) -> dict[int, float]:
        """Return a figure by round."""
        factor = case.workers if self.total else 1
        runs = [run for found in summaries if (found.case, found.variant) == (case, variant) for run in found.runs]
        values = {run.round: getattr(run, figure) if figure else 1.0 for run in runs}
        return {number: value * factor for number, value in values.items() if value is not None}


_EFFORT: Final = Effort(steps=8, warmup=2)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Cases that several systems run in turns.

    Attributes:
        about: A description in one or two sentences.
        cases: The cases.
        systems: The variants of psum.
        rivals: The names of the rivals.
        effort: How much each run does.
        claims: The targets.
        only: The label of the element type for workloads that run in one type only.
    """

    about: str
    cases: Sequence[Case]
    systems: Sequence[System]
    rivals: Sequence[str] = ()
    effort: Effort = _EFFORT
    claims: Sequence[Claim] = ()
    only: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def pairs(self, rivals: Sequence[Rival]) -> list[tuple[Case, System]]:
        """Return all cases with all systems: psum, and the rivals that are installed.

        Args:
            rivals: The installed rivals.
        """
        systems = [*self.systems, *(System(rival=rival) for rival in rivals if rival.name in self.rivals)]
        return [
            (case, system)
            for case in self.cases
            for system in systems
            if self.only.get(case.workload, system.dtype) == system.dtype
        ]


_INLINE, _DIRECT, _SHM, _AUTO = (System(plane=plane) for plane in ("inline", "direct", "shm", "auto"))
_PLANES: Final = (_INLINE, _DIRECT, _SHM)
_HALF: Final = tuple(System(plane=system.plane, dtype="float16") for system in _PLANES)
_MXNET: Final = tuple(System(plane=system.plane, through="mxnet") for system in _PLANES)
_SHARED: Final = System(plane="shm", through="shared")

_BIG_2, _BIG_4 = Case("big", 2), Case("big", 4)
_WIDE = Case("wide", 2)
_RESNET_2, _RESNET_4 = Case("resnet50", 2), Case("resnet50", 4)
_SMALL, _MANY = Case("small", 2), Case("many", 2)
_RESNET_HOSTS = Case("resnet50", 2, 2, hosts=2)

_WORKERS: Final = tuple(Case("big", workers) for workers in (1, 2, 4, 8))
_AGGREGATORS: Final = tuple(Case("big", 2, aggregators) for aggregators in (1, 2, 4))


def _claims(case: Case, variant: str, **targets: float) -> list[Claim]:
    return [Claim(case, variant, against, target) for against, target in targets.items()]


EXPERIMENTS: Final[Mapping[str, Experiment]] = MappingProxyType(
    {
        "big": Experiment(
            "16 tensors of 4 MiB. 'shared': in memory that aggregators read from.",
            (_BIG_2, _BIG_4),
            (*_PLANES, _SHARED),
            ("dist_sync", "gloo"),
            claims=(
                *_claims(_BIG_2, "psum inline", dist_sync=0.75),
                *_claims(_BIG_2, "psum direct", dist_sync=1.5),
                *_claims(_BIG_4, "psum direct", dist_sync=1.5),
                *_claims(_BIG_2, "psum shm", gloo=1.4),
                *_claims(_BIG_4, "psum shm", gloo=2),
                *_claims(_BIG_2, _SHARED.name, gloo=2),
                Claim(_BIG_2, "psum inline", "", 1.8, "worker_cpu_s_per_gb"),
                Claim(_BIG_2, "psum direct", "", 0.8, "worker_cpu_s_per_gb"),
                Claim(_BIG_2, "psum shm", "", 0.5, "worker_cpu_s_per_gb"),
            ),
        ),
        "small": Experiment(
            "256 tensors of 4 KiB.",
            (_SMALL,),
            _PLANES,
            ("dist_sync", "gloo"),
            Effort(steps=60, warmup=5),
            _claims(_SMALL, "psum inline", dist_sync=4),
        ),
        "many": Experiment(
            "10,000 tensors of 1 KiB: the cost of a key.",
            (_MANY,),
            (_INLINE, System(plane="inline", through="mxnet")),
            ("dist_sync",),
            # Through MXNet, the first steps make room for its errors.
            Effort(steps=4, warmup=2),
            [Claim(_MANY, "psum inline through mxnet", "", 450, "ms_per_step")],
        ),
        "resnet50": Experiment(
            "The 193 tensors of ResNet-50, 102 MB. The urgent tensor is the first layer's. It is pushed last, after the"
            " rest of the step.",
            (_RESNET_2, _RESNET_4),
            _PLANES,
            ("dist_sync", "gloo"),
            Effort(steps=5, warmup=2, latency_steps=5),
            (
                *_claims(_RESNET_2, "psum direct", dist_sync=1.5),
                *_claims(_RESNET_4, "psum direct", dist_sync=1.5),
                *_claims(_RESNET_2, "psum shm", gloo=2),
                *_claims(_RESNET_4, "psum shm", gloo=5, dist_sync=5),
                *(
                    Claim(_RESNET_2, system.name, "", 0.15, "urgent_ms", relative_to="urgent_step_ms")
                    for system in _PLANES
                ),
            ),
        ),
        "hosts": Experiment(
            "Simulates two hosts. Each has a worker and an aggregator, which share memory. Traffic between the hosts"
            " goes over data connections.",
            (_RESNET_HOSTS,),
            (_AUTO,),
            ("gloo",),
            Effort(steps=5, warmup=2),
            _claims(_RESNET_HOSTS, "psum auto", gloo=1),
        ),
        "float16": Experiment(
            "The same number of bytes in elements of half the width, 2 Mi per tensor instead of 1 Mi. GB/s should be"
            " the same.",
            (_BIG_2, _WIDE),
            (*_PLANES, *_HALF),
            claims=[
                Claim(_WIDE, half.name, full.name, 0.85, against_case=_BIG_2)
                for half, full in zip(_HALF, _PLANES, strict=True)
            ],
            only={"big": "float32", "wide": "float16"},
        ),
        "mxnet": Experiment(
            "`kv.pushpull` of NDArrays in place, as in gluon.Trainer, and `waitall`, compared with NumPy arrays through"
            " psum.client.",
            (_BIG_2,),
            (*_PLANES, *_MXNET),
            claims=[
                Claim(_BIG_2, through.name, plain.name, 0.85) for through, plain in zip(_MXNET, _PLANES, strict=True)
            ],
        ),
        "workers": Experiment(
            "More workers on one aggregator. Its total throughput should stay the same.",
            _WORKERS,
            _PLANES,
            effort=Effort(steps=5, warmup=1),
            claims=[
                Claim(_WORKERS[-1], system.name, system.name, 0.8, against_case=_WORKERS[0], total=True)
                for system in _PLANES
            ],
        ),
        "aggregators": Experiment(
            "More aggregators for two workers. Their cost of a byte should stay the same.",
            _AGGREGATORS,
            (_SHM,),
            # Many steps, because asking aggregators for their processor time costs some of it.
            effort=Effort(steps=80, warmup=5),
            claims=(
                Claim(
                    _AGGREGATORS[-1],
                    _SHM.name,
                    _SHM.name,
                    1.15,
                    "aggregator_cpu_s_per_gb",
                    against_case=_AGGREGATORS[0],
                ),
            ),
        ),
        "idle": Experiment(
            "An aggregator with eight connected workers that do nothing for ten seconds.",
            (Case("small", 8),),
            _PLANES,
            effort=Effort(steps=3, warmup=1, idle_seconds=10),
            claims=[Claim(Case("small", 8), system.name, "", 0.01, "idle_share") for system in _PLANES],
        ),
    }
)
