"""`psum launch`: run a training on this machine."""

import asyncio
import dataclasses
import sys
from collections.abc import Sequence

import click

from psum.cli.launch.elastic_option import Range
from psum.cli.launch.job import LocalJob
from psum.cli.launch.local_job import run
from psum.cli.options import Number, aggregators_option, check_variables, plane_option
from psum.client.elastic_range import Elastic
from psum.runtime import processors, sensible_processes
from psum.wire import MAX_WORKERS


def suitable_processes(usable: int, workers: int, aggregators: int) -> int:
    """Return how many processes each aggregator should have beside the workers on a machine with so many processors."""
    return max(1, min(sensible_processes(usable), workers) // aggregators)


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--workers", type=click.IntRange(1, MAX_WORKERS), required=True, help="The number of copies of COMMAND.")
@aggregators_option
@click.option(
    "--processes",
    envvar="PSUM_PROCESSES",
    type=Number("auto", click.IntRange(1, 64)),
    default="auto",
    show_default=True,
    help="The number of processes of each aggregator; auto: what suits the processors of this machine.",
)
@click.option(
    "--elastic",
    envvar="PSUM_ELASTIC",
    type=Range(),
    metavar="MIN[:MAX]",
    help="Go on when workers fail, while at least MIN are left. At most MAX take part (by default WORKERS).",
)
@click.option(
    "--replace/--no-replace",
    default=True,
    show_default=True,
    help="Whether another process takes the place of a worker of an elastic job that has failed.",
)
@plane_option
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long processes may take to end after SIGTERM before they are killed.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def launch(
    workers: int,
    aggregators: int,
    processes: int | None,
    elastic: Elastic | None,
    replace: bool,
    plane: str,
    grace: float,
    command: Sequence[str],
) -> None:
    """Run COMMAND as the workers of one job on this machine, with aggregators on free ports.

    The environment of each copy has its rank and the aggregators' addresses. Each line that a copy prints is prefixed
    with its rank. If a copy fails, the others are ended. Its exit status becomes that of this command, and the last
    line names the first failure, even if other copies ended before it as a consequence. Ctrl-C ends everything, a
    second Ctrl-C kills it. SIGUSR1 and SIGUSR2 are passed on to the workers.

    With --elastic the others go on without a copy that fails, and another takes its place. The exit status is 0 if the
    copies that are left end well.

    Example: psum launch --workers 2 -- python train.py

    Example: psum launch --elastic 2:8 --workers 4 -- python train.py
    """
    check_variables()
    if elastic is not None:
        if workers < elastic.minimum:
            raise click.UsageError(f"--workers {workers}: --elastic says at least {elastic.minimum}")
        if elastic.maximum and workers > elastic.maximum:
            raise click.UsageError(f"--workers {workers}: --elastic says at most {elastic.maximum}")
        elastic = dataclasses.replace(elastic, maximum=elastic.maximum or workers)
    job = LocalJob(
        command,
        workers=workers,
        aggregators=aggregators,
        processes=processes or suitable_processes(processors(), workers, aggregators),
        plane=plane,
        grace=grace,
        elastic=elastic,
        replace=replace,
    )
    sys.exit(asyncio.run(run(job)))
