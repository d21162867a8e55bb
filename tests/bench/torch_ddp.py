"""Compares DistributedDataParallel's communication on one host, with psum and with Gloo.

    .venv-torch/bin/python -m tests.bench.torch_ddp --json ddp.json      # prints a Markdown table

Both ways take turns in the same processes. What is compared is the communication part of a step: a step of
DistributedDataParallel less the same step with a communication hook that sends nothing. Only the all-reduces differ
between these two: what DistributedDataParallel itself does to gradients (its division by the number of ranks, its
bookkeeping) costs as much with the hook. The network has the parameters of the workload, and passes that cost next to
nothing. So no communication hides under a backward pass, and no backward pass takes processors from it. Beside that
stands an all-reduce of the buckets alone, which lacks the way through DistributedDataParallel.

A step ends when the slowest rank has ended it. Processor time is that of all ranks and aggregators. Each process has
one thread for computing (OMP_NUM_THREADS=1).
"""

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, Final

from psum.cli.bench.page import machine
from psum.cli.bench.runs import Spread, openmp_environment
from psum.cli.launch.job import LocalJob
from psum.cli.launch.local_job import run as run_locally

#: How the job gets its aggregator: psum starts it, as with plain torchrun, or it is named, as `psum launch` does.
AGGREGATORS: Final = ("own", "listed")

#: How many times as fast as Gloo psum's communication must be.
TARGET: Final = 1.5

#: The name of the environment variable by which rank 0 finds the job's aggregators; see torch_ddp_rank.
_MARK: Final = "TORCH_DDP_RUN"

#: Variables that another launcher has set.
_FOREIGN_PREFIXES: Final = ("DMLC_", "BYTEPS_", "TORCHELASTIC_")
_FOREIGN: Final = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("PSUM_AGGREGATORS", "PSUM_RANK", "PSUM_NUM_WORKERS", "PSUM_LOCAL_RANK", "PSUM_LOCAL_SIZE", "PSUM_JOB"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compared.

    Attributes:
        workload: The name of the workload, whose tensors are the parameters.
        processes: The number of processes.
        aggregators: One of AGGREGATORS.
    """

    workload: str
    processes: int
    aggregators: str


@dataclasses.dataclass(frozen=True)
class Figures:
    """The figures of one way over all rounds.

    Attributes:
        communication_ms: The communication part of a step.
        buckets_ms: An all-reduce of the buckets alone.
        cpu_ms: Processor time of the communication part of a step, all ranks and aggregators together.
        buckets_cpu_ms: The same of the buckets alone.
    """

    communication_ms: Sequence[float]
    buckets_ms: Sequence[float]
    cpu_ms: Sequence[float]
    buckets_cpu_ms: Sequence[float]

    @classmethod
    def of(cls, turns: Sequence[dict[str, float]]) -> "Figures":
        """Returns the figures of a way's turns; see torch_ddp_rank.Turn."""
        return cls(
            [turn["step_ms"] - turn["plain_ms"] for turn in turns],
            [turn["buckets_ms"] for turn in turns],
            [turn["step_cpu_ms"] - turn["plain_cpu_ms"] for turn in turns],
            [turn["buckets_cpu_ms"] for turn in turns],
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """The results of a case.

    Attributes:
        case: The case.
        load: The machine's load average before it.
        measured: What rank 0 wrote; see torch_ddp_rank.main.
    """

    case: Case
    load: float
    measured: dict[str, Any]

    def figures(self, way: str) -> Figures:
        """The figures of a way."""
        return Figures.of([each[way] for each in self.measured["rounds"]])

    def ratios(self, figure: str) -> list[float]:
        """Gloo's figure divided by psum's, for each round."""
        psum, gloo = (getattr(self.figures(way), figure) for way in ("psum", "gloo"))
        return [theirs / ours for ours, theirs in zip(psum, gloo, strict=True)]

    def as_json(self) -> dict[str, Any]:
        """The case, the medians and spreads, and all that was measured."""
        figures = {
            name: {
                **{way: _spread(getattr(self.figures(way), name)) for way in ("psum", "gloo")},
                "gloo / psum": _spread(self.ratios(name)),
            }
            for name in (field.name for field in dataclasses.fields(Figures))
        }
        return {**dataclasses.asdict(self.case), "load": self.load, **figures, "measured": self.measured}


def table(results: Sequence[Result]) -> str:
    """Returns a Markdown table: medians, with the lowest and the highest value of a round."""
    lines = [
        "| parameters | processes | aggregator | communication of a step, ms: psum | Gloo | Gloo / psum | target |"
        " buckets alone, ms: psum | Gloo | Gloo / psum | CPU ms of a step's communication: psum | Gloo |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        psum, gloo = result.figures("psum"), result.figures("gloo")
        ratio = statistics.median(result.ratios("communication_ms"))
        cells = [
            result.case.workload,
            str(result.case.processes),
            f"{result.case.aggregators} ({result.measured['plane']})",
            _show(psum.communication_ms, 1),
            _show(gloo.communication_ms, 1),
            _show(result.ratios("communication_ms"), 2),
            f"≥ {TARGET:g}: {'reached' if ratio >= TARGET else '**missed**'}",
            _show(psum.buckets_ms, 1),
            _show(gloo.buckets_ms, 1),
            _show(result.ratios("buckets_ms"), 2),
            _show(psum.cpu_ms, 0),
            _show(gloo.cpu_ms, 0),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run(case: Case, arguments: argparse.Namespace) -> Result:
    """Runs a case."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory, "measured")
        plan = {
            "workload": case.workload,
            "warmup": arguments.warmup,
            "steps": arguments.steps,
            "rounds": arguments.rounds,
            "file": str(file),
            "bucket_views": arguments.bucket_views,
        }
        program = ["-m", "tests.bench.torch_ddp_rank", json.dumps(plan)]
        added = {**openmp_environment(), _MARK: secrets.token_hex(8)}
        if case.aggregators == "own":
            status = _torchrun(program, case.processes, added)
        else:
            job = LocalJob([sys.executable, *program], case.processes, 1, "auto", environ=added)
            status = asyncio.run(run_locally(job))
        if status != 0:
            sys.exit(status)
        return Result(case, round(load, 2), json.loads(file.read_text()))


def _torchrun(program: Sequence[str], processes: int, added: dict[str, str]) -> int:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _FOREIGN and not name.startswith(_FOREIGN_PREFIXES)
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with subprocess.Popen([*command, *program], env={**inherited, **added}) as torchrun:
        try:
            return torchrun.wait()
        finally:
            # torchrun ends its processes when it gets SIGTERM.
            with contextlib.suppress(ProcessLookupError):
                torchrun.terminate()


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in dataclasses.asdict(Spread.of(values)).items()}


def _show(values: Sequence[float], decimals: int) -> str:
    return Spread.of(values).show(decimals)


def _some(text: str) -> list[str]:
    return [each for each in text.split(",") if each]


def main(given: Sequence[str] | None = None) -> None:
    """Runs all cases, one after the other, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", type=_some, default=["resnet50", "transformer"], help="resnet50, transformer")
    parser.add_argument("--processes", type=_some, default=["2", "4"], help="the numbers of processes")
    parser.add_argument("--aggregators", type=_some, default=list(AGGREGATORS), help=", ".join(AGGREGATORS))
    parser.add_argument("--rounds", type=int, default=7, help="turns of each way")
    parser.add_argument("--steps", type=int, default=5, help="steps of each kind in a turn")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--bucket-views", action="store_true", help="gradient_as_bucket_view=True")
    parser.add_argument("--json", type=pathlib.Path, help="a file for all that was measured")
    arguments = parser.parse_args(given)
    results: list[Result] = []
    for workload, processes, aggregators in itertools.product(
        arguments.workloads, map(int, arguments.processes), arguments.aggregators
    ):
        results.append(run(Case(workload, processes, aggregators), arguments))
        last = results[-1]
        print(f"{last.case}: {json.dumps(last.as_json()['communication_ms'])}", file=sys.stderr, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps([result.as_json() for result in results], indent=1) + "\n")
    measured = results[-1].measured
    print(table(results))
    print(
        f"\n{machine()}; PyTorch {measured['torch']}; OMP_NUM_THREADS={measured['omp_num_threads']}, torch threads"
        f" {measured['threads']}; {arguments.rounds} rounds of {arguments.steps} steps; load average before a case"
        f" {_show([result.load for result in results], 1)}"
    )


if __name__ == "__main__":
    main()
