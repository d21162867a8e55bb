"""Measures what an elastic job costs while nobody is lost: `.venv/bin/python -m tests.bench.elastic_cost`.

Each worker process is in two jobs on the same aggregators: an elastic one, with ElasticState.step() after each step,
and a usual one. It makes a block of steps in one of them, then a block in the other, and so on. So both have the same
processes and the same load of the machine. Each pair of blocks gives a ratio of processor seconds, of all workers and
aggregators together, and a ratio of wall time. The table has their medians, and in parentheses the range that contains
the true median with a probability of at least 95 %. With `--control`, both jobs are usual ones: this shows how exact a
ratio is.

Which of two equal jobs is made first makes a difference of some percent: their arrays lie elsewhere. So the pairs come
from several runs, each with new processes, and every other run makes the elastic job first.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from psum.cli.bench.cases import THROUGH
from psum.cli.bench.measure import Plan
from psum.cli.bench.runs import openmp_environment
from psum.cli.bench.worker import MXNet, NumPy
from psum.cli.bench.workloads import NAMES, sizes
from psum.cli.launch.job import LocalJob
from psum.cli.launch.local_job import run
from psum.client import Client, ElasticState, connect
from psum.client.elastic_range import Elastic
from psum.client.settings import Settings
from psum.runtime import processors
from tests.bench.marked_processes import aggregators
from tests.process_stat import processor_seconds

#: The variable by which rank 0 finds the aggregators' processes.
_MARK: Final = "ELASTIC_COST_RUN"


class Block(NamedTuple):
    """What some steps have cost.

    Attributes:
        seconds: Wall time.
        worker: Processor seconds of the workers.
        aggregator: Processor seconds of the aggregators.
    """

    seconds: float
    worker: float
    aggregator: float

    @property
    def total(self) -> float:
        """Processor seconds of all processes."""
        return self.worker + self.aggregator


@dataclasses.dataclass(frozen=True)
class Work:
    """What every rank does.

    Attributes:
        workload: The name of the workload.
        through: The interface: 'numpy' or 'mxnet'.
        seconds: About how long a block lasts.
        pairs: The number of pairs of blocks.
        steps: How many steps a block has. 0: as many as take these seconds.
        other_first: Whether the other job is made before the usual one.
        control: Whether both jobs are usual ones.
        directory: Where each rank writes its blocks: pairs of a block of the usual job and one of the other.
    """

    workload: str
    through: str
    seconds: float
    pairs: int
    steps: int
    other_first: bool
    control: bool
    directory: str


def work(plan: Work) -> None:
    """Run one rank."""
    settings = Settings.from_environment()
    ranks = settings.num_workers
    elastic = None if plan.control else Elastic(ranks, ranks)
    jobs = [settings, dataclasses.replace(settings, job=f"{settings.job}-other", elastic=elastic)]
    with contextlib.ExitStack() as stack:
        made = [
            (client := stack.enter_context(connect(job)), _step(client, plan))
            for job in (reversed(jobs) if plan.other_first else jobs)
        ]
        (usual, step_usual), (other, step_other) = reversed(made) if plan.other_first else made
        # One rank counts for all, since the counts of the ranks are added up.
        pids = [] if usual.rank else list(aggregators(_MARK, os.environ[_MARK]))
        if not plan.control:
            state = ElasticState(other)
            push_pull = step_other

            def step_other() -> None:
                push_pull()
                state.step()

        store = usual.store()

        def meet(value: float = 0.0) -> float:
            values = np.full(1, value)
            store.push_pull("meet", values)
            return float(values[0])

        def block(step: Callable[[], None], steps: int) -> Block:
            meet()
            theirs = sum(map(processor_seconds, pids))
            own, before = time.process_time(), time.perf_counter()
            for _ in range(steps):
                step()
            seconds, used = time.perf_counter() - before, time.process_time() - own
            # The aggregators have done all work for these steps when all ranks have their sums.
            meet()
            return Block(seconds, used, sum(map(processor_seconds, pids)) - theirs)

        for step in (step_usual, step_other):
            block(step, 3)
        # All ranks must make the same number of steps.
        usually = meet(block(step_usual, 3).seconds / 3) / ranks
        steps = plan.steps or max(1, round(plan.seconds / usually))
        block(step_other, steps)
        pairs = []
        for number in range(plan.pairs):
            order = (step_usual, step_other) if number % 2 == 0 else (step_other, step_usual)
            both = [block(step, steps) for step in order]
            pairs.append(both if number % 2 == 0 else both[::-1])
        file = pathlib.Path(plan.directory, f"{usual.rank}.json")
        file.write_text(json.dumps({"steps": steps, "planes": usual.planes, "pairs": pairs}))


def _step(client: Client, work: Work) -> Callable[[], None]:
    plan = Plan(work.through, sizes(work.workload), "float32", 4, 0, 0, 0, 0.0, "", progress=False)
    system = {"numpy": NumPy, "mxnet": MXNet}[work.through](client, plan)
    system.fill(0)
    numbers = range(len(plan.sizes))

    def step() -> None:
        for number in numbers:
            system.push_pull(number)
        system.wait_for_all()

    return step


def runs(arguments: argparse.Namespace, workload: str, plane: str) -> tuple[int, list[tuple[Block, Block]]]:
    """Run one workload on one plane. Returns the steps of each block, and the pairs: the usual job's block first."""
    steps, pairs = 0, list[tuple[Block, Block]]()
    count = min(arguments.runs, arguments.pairs)
    for number in range(count):
        # As even as possible.
        some = (arguments.pairs * (number + 1)) // count - len(pairs)
        plan = Work(
            workload,
            arguments.through,
            arguments.seconds,
            some,
            steps,
            other_first=number % 2 == 1,
            control=arguments.control,
            directory="",
        )
        steps, more = once(arguments.workers, plan, plane)
        pairs += more
    return steps, pairs


def once(workers: int, plan: Work, plane: str) -> tuple[int, list[tuple[Block, Block]]]:
    """Make one run. See `runs`."""
    with tempfile.TemporaryDirectory(prefix="psum-elastic-cost-") as directory:
        plan = dataclasses.replace(plan, directory=directory)
        command = [sys.executable, "-m", "tests.bench.elastic_cost", "--rank", json.dumps(dataclasses.asdict(plan))]
        mark = {_MARK: secrets.token_hex(8)}
        job = LocalJob(command, workers, 1, plane, environ={**openmp_environment(), **mark})
        if status := asyncio.run(run(job)):
            sys.exit(status)
        ranks = [json.loads(file.read_text()) for file in sorted(pathlib.Path(directory).glob("*.json"))]
    pairs = []
    for each in zip(*(rank["pairs"] for rank in ranks), strict=True):
        usual, other = ([Block(*pair[side]) for pair in each] for side in (0, 1))
        pairs.append((_together(usual), _together(other)))
    return ranks[0]["steps"], pairs


def _together(ranks: Sequence[Block]) -> Block:
    """Return the same block of all ranks as one. They ran at the same time."""
    return Block(
        max(each.seconds for each in ranks), sum(each.worker for each in ranks), sum(each.aggregator for each in ranks)
    )


def spread(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, and the range that contains the true median with a probability of at least 95 %.

    The range is that between two of the values. How many values are below the true median is binomially distributed.
    With fewer than six values it is that between the lowest and the highest.
    """
    values, count = sorted(ratios), len(ratios)
    outside, below = 0, 0.0
    while True:
        below += math.comb(count, outside) / 2**count
        if below > 0.025:
            break
        outside += 1
    outside = max(outside - 1, 0)
    return statistics.median(values), values[outside], values[count - 1 - outside]


def row(workload: str, plane: str, steps: int, pairs: Sequence[tuple[Block, Block]]) -> str:
    """Return a row of the table in Markdown."""

    def ratio(figure: Callable[[Block], float]) -> str:
        middle, low, high = (100 * (each - 1) for each in spread([figure(b) / figure(a) for a, b in pairs]))
        return f"{middle:+.1f} % ({low:+.1f} … {high:+.1f})"

    def each(figure: Callable[[Block], float]) -> float:
        return statistics.median(figure(a) for a, _ in pairs) * 1e3 / steps

    added = statistics.median(b.total - a.total for a, b in pairs) * 1e3 / steps
    return (
        f"| {workload} | {plane} | {len(pairs)} × {steps} | {each(lambda b: b.seconds):.1f} |"
        f" {each(lambda b: b.total):.2f} | {ratio(lambda b: b.seconds)} | {ratio(lambda b: b.total)} | {added:+.2f} |"
    )


def main(given: Sequence[str] | None = None) -> None:
    """Run all combinations and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="the number of workers (2)")
    parser.add_argument("--workloads", default="small,resnet50,many", help=f"which of {', '.join(NAMES)}")
    parser.add_argument("--planes", default="shm,direct,inline", help="the planes")
    parser.add_argument("--through", choices=THROUGH, default="numpy", help="the interface")
    parser.add_argument("--pairs", type=int, default=20, help="the number of pairs of blocks (20)")
    parser.add_argument("--runs", type=int, default=4, help="in how many runs (4)")
    parser.add_argument("--seconds", type=float, default=0.5, help="about how long a block lasts (0.5)")
    parser.add_argument("--control", action="store_true", help="compare a usual job with another usual job")
    arguments = parser.parse_args(given)
    print(f"{arguments.through}, {arguments.workers} workers, {processors()} usable processors\n")
    print("| workload | plane | pairs × steps | ms per step | CPU ms per step | wall | CPU | CPU ms added |")
    print("|---|---|---|---|---|---|---|---|")
    for workload in arguments.workloads.split(","):
        for plane in arguments.planes.split(","):
            print(row(workload, plane, *runs(arguments, workload, plane)), flush=True)


def _rank(text: str) -> None:
    given: dict[str, Any] = json.loads(text)
    work(Work(**given))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        _rank(sys.argv[2])
    else:
        main()
