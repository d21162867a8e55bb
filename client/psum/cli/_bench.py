"""`psum bench`: how fast this machine push-pulls, without any framework."""

import asyncio
import dataclasses
import json
import pathlib
import sys
import tempfile
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from psum.cli import _workloads
from psum.cli._bench_worker import Measurement, Plan
from psum.cli._local import LocalJob, run
from psum.cli._options import aggregators_option, plane_option
from psum.wire import ElementType

_GB: Final = 1e9


@dataclasses.dataclass(frozen=True)
class Report:
    """What a benchmark gives; its fields are those of the JSON line.

    Attributes:
        system: 'psum', among lines of other systems.
        workload: The workload's name.
        workers: How many.
        servers: How many aggregators.
        gb_per_s_per_worker: 10^9 bytes of payload of one worker, counted once for push and pull together, a second.
        ms_per_step: From the first push-pull of a step until its last sum.
        worker_cpu_s_per_gb: Processor seconds of rank 0's process for each GB, counted as above.
        plane: How payloads crossed.
        aggregator_cpu_s_per_gb: Processor seconds of all aggregators together for each GB of one worker.
        dtype: The element type.
    """

    system: str
    workload: str
    workers: int
    servers: int
    gb_per_s_per_worker: float
    ms_per_step: float
    worker_cpu_s_per_gb: float
    plane: str
    aggregator_cpu_s_per_gb: float
    dtype: str


@click.command()
@click.option(
    "--workers", type=click.IntRange(1, _workloads.MAX_WORKERS), default=2, show_default=True, help="Worker processes."
)
@aggregators_option
@click.option(
    "--workload",
    type=click.Choice(_workloads.NAMES),
    default="big",
    show_default=True,
    help="What is summed in each step: 16 tensors of 1 Mi elements, 256 of 1 Ki, or a network's parameters.",
)
@click.option(
    "--dtype",
    type=click.Choice([element_type.label for element_type in ElementType]),
    default="float32",
    show_default=True,
    help="The type of the elements.",
)
@plane_option
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Steps that are timed.")
@click.option("--warmup", type=click.IntRange(min=0), default=2, show_default=True, help="Steps before those.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def bench(
    workers: int, aggregators: int, workload: str, dtype: str, plane: str, steps: int, warmup: int, as_json: bool
) -> None:
    """Measure how fast worker processes on this machine push-pull NumPy arrays.

    In each step, all workers push-pull all tensors of the workload at once, and wait for all sums. The sums are checked
    after the timed steps. GB are 10^9 bytes of one worker's payload, counted once for push and pull together. CPU
    seconds of a worker are those of rank 0's process, CPU seconds of the aggregators those of all of them together,
    both for each GB.
    """
    with tempfile.TemporaryDirectory(prefix="psum-bench-") as directory:
        file = pathlib.Path(directory, "measurement")
        plan = Plan(
            workload=workload,
            element_type=dtype,
            warmup=warmup,
            steps=steps,
            measurement=str(file),
            progress=sys.stderr.isatty(),
        )
        command = [sys.executable, "-m", "psum.cli._bench_worker", plan.dump()]
        status = asyncio.run(run(LocalJob(command, workers=workers, aggregators=aggregators, plane=plane)))
        if status != 0:
            sys.exit(status)
        measured = Measurement.load(file.read_text())
    gigabytes = measured.payload_bytes / _GB
    report = Report(
        system="psum",
        workload=workload,
        workers=workers,
        servers=aggregators,
        gb_per_s_per_worker=round(gigabytes / measured.seconds, 4),
        ms_per_step=round(measured.seconds / steps * 1e3, 2),
        worker_cpu_s_per_gb=round(measured.cpu_seconds / gigabytes, 3),
        plane=measured.plane,
        aggregator_cpu_s_per_gb=round(measured.aggregator_cpu_seconds / gigabytes, 3),
        dtype=dtype,
    )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report)))
    else:
        _show(report)


def _show(report: Report) -> None:
    """A table at a terminal, else a line for each figure."""
    title = (
        f"{report.workload} in {report.dtype}, {_count(report.workers, 'worker')},"
        f" {_count(report.servers, 'aggregator')}, plane {report.plane}"
    )
    figures = {
        "GB/s per worker": f"{report.gb_per_s_per_worker:.3f}",
        "ms per step": f"{report.ms_per_step:.1f}",
        "CPU s per GB, worker": f"{report.worker_cpu_s_per_gb:.2f}",
        "CPU s per GB, aggregators": f"{report.aggregator_cpu_s_per_gb:.2f}",
    }
    if not sys.stdout.isatty():
        click.echo(title)
        for name, figure in figures.items():
            click.echo(f"{name}: {figure}")
        return
    console = Console(highlight=False)
    console.print(title)
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, figure in figures.items():
        table.add_row(name, figure)
    console.print(table)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
