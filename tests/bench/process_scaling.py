"""Shows what several processes of one aggregator gain: `.venv/bin/python -m tests.bench.process_scaling`.

It runs the same job with one listed aggregator of one process and of several, in turn. On a machine with a processor
for every worker and every event loop, `speed` is the gain. On a smaller one, processors are short, and `loops` is what
counts: each process has one event loop, which one processor can keep busy. An aggregator cannot be faster than its
busiest loop, so the processor time of the busiest loop for the same bytes is the limit, and `loops` is by how much
several processes raise it.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import pathlib
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from psum.cli.bench.runs import openmp_environment
from psum.cli.bench.workloads import NAMES, sizes
from psum.cli.launch.command import suitable_processes
from psum.cli.launch.job import LocalJob
from psum.cli.launch.local_job import run
from psum.client import connect
from psum.runtime import processors
from tests.bench.marked_processes import aggregators
from tests.process_stat import processor_seconds, thread_seconds

#: The variable by which rank 0 finds the aggregator's processes.
_MARK: Final = "PROCESS_SCALING_RUN"


@dataclasses.dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        speed: GB/s of each worker. A payload counts once for both directions.
        cpu: Processor seconds of the aggregator for each GB of a worker, all processes and threads together.
        busiest: The same of the busiest event loop alone.
        load: The part of the time for which the busiest event loop kept a processor busy.
    """

    speed: float
    cpu: float
    busiest: float
    load: float


def work(workload: str, warmup: int, steps: int, file: str) -> None:
    """Run one rank. Rank 0 writes what it measured."""
    tensors = [np.ones(size, np.float32) for size in sizes(workload)]
    with connect() as client:
        store = client.store()

        def step() -> None:
            pending = [
                store.push_pull_async(number, tensor, np.empty_like(tensor), priority=-number)
                for number, tensor in enumerate(tensors)
            ]
            for future in pending:
                future.result()

        for _ in range(warmup):
            step()
        store.push_pull("barrier", np.zeros(1, np.float32))
        begin, before = time.perf_counter(), _processor_seconds()
        for _ in range(steps):
            step()
        store.push_pull("barrier", np.zeros(1, np.float32))
        seconds, after = time.perf_counter() - begin, _processor_seconds()
        if client.rank == 0:
            gigabytes = steps * sum(tensor.nbytes for tensor in tensors) / 1e9
            loops = [after[pid][1] - loop for pid, (_, loop) in before.items()]
            measured = Measured(
                speed=gigabytes / seconds,
                cpu=sum(after[pid][0] - total for pid, (total, _) in before.items()) / gigabytes,
                busiest=max(loops) / gigabytes,
                load=max(loops) / seconds,
            )
            pathlib.Path(file).write_text(json.dumps(dataclasses.asdict(measured)))


def _processor_seconds() -> dict[int, tuple[float, float]]:
    """Return the processor time of the aggregator's processes: of all threads, and of the main one with the loop."""
    return {pid: (processor_seconds(pid), thread_seconds(pid, pid)) for pid in aggregators(_MARK, os.environ[_MARK])}


def once(arguments: argparse.Namespace, plane: str, processes: int) -> Measured:
    """Run the job with one listed aggregator of so many processes."""
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory, "measured")
        command = [sys.executable, "-m", "tests.bench.process_scaling", "--rank", arguments.workload]
        command += [str(arguments.warmup), str(arguments.steps), str(file)]
        job = LocalJob(
            command,
            arguments.workers,
            1,
            plane,
            processes,
            environ={**openmp_environment(), _MARK: secrets.token_hex(8)},
        )
        if status := asyncio.run(run(job)):
            sys.exit(status)
        return Measured(**json.loads(file.read_text()))


def table(found: dict[tuple[str, int], list[Measured]]) -> str:
    """Return a Markdown table of medians. `speed` and `loops` are relative to one process."""
    lines = [
        "| plane | processes | GB/s a worker | speed | aggregator CPU s/GB | busiest loop s/GB | loops | its load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (plane, processes), runs in found.items():
        median = {
            field.name: statistics.median(getattr(one, field.name) for one in runs)
            for field in dataclasses.fields(Measured)
        }
        # Of runs that were made in turn.
        pairs = list(zip(runs, found[plane, 1], strict=True))
        speed = statistics.median(several.speed / one.speed for several, one in pairs)
        loops = statistics.median(one.busiest / several.busiest for several, one in pairs)
        lines.append(
            f"| {plane} | {processes} | {median['speed']:.3f} | {speed:.2f} × | {median['cpu']:.3f} |"
            f" {median['busiest']:.3f} | {loops:.2f} × | {median['load']:.0%} |"
        )
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    """Run all combinations in turn and print the table."""
    workers = max(2, processors() // 2)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=workers, help=f"the number of workers (here {workers})")
    parser.add_argument("--processes", default="", help="the numbers of processes to compare with 1, such as 2,4")
    parser.add_argument("--planes", default="direct,shm", help="the planes")
    parser.add_argument("--workload", choices=NAMES, default="big")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args(given)
    several = [int(n) for n in arguments.processes.split(",") if n]
    # On a small machine four show what a larger one would gain.
    counts = several or [max(4, suitable_processes(processors(), arguments.workers, 1))]
    found: dict[tuple[str, int], list[Measured]] = {}
    for _ in range(arguments.rounds):
        for plane in arguments.planes.split(","):
            for processes in (1, *counts):
                found.setdefault((plane, processes), []).append(once(arguments, plane, processes))
    print(f"{arguments.workload}, {arguments.workers} workers, {processors()} usable processors, load {_load()}\n")
    print(table(found))


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def _rank(arguments: Sequence[Any]) -> None:
    workload, warmup, steps, file = arguments
    work(workload, int(warmup), int(steps), file)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        _rank(sys.argv[2:])
    else:
        main()
