"""`psum launch`: run a training on this machine."""

import asyncio
import sys
from collections.abc import Sequence

import click

from psum.cli.launch.local_job import LocalJob, run
from psum.cli.options import Number, aggregators_option, check_variables, plane_option
from psum.runtime import processors, sensible_processes


def suitable_processes(usable: int, workers: int, aggregators: int) -> int:
    """Return how many processes each aggregator should have beside the workers on a machine with so many processors."""
    return max(1, min(sensible_processes(usable), workers) // aggregators)


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--workers", type=click.IntRange(1, 4096), required=True, help="The number of copies of COMMAND.")
@aggregators_option
@click.option(
    "--processes",
    envvar="PSUM_PROCESSES",
    type=Number("auto", click.IntRange(1, 64)),
    default="auto",
    show_default=True,
    help="The number of processes of each aggregator; auto: what suits the processors of this machine.",
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
    workers: int, aggregators: int, processes: int | None, plane: str, grace: float, command: Sequence[str]
) -> None:
    """Run COMMAND as the workers of one job on this machine, with aggregators on free ports.

    The environment of each copy has its rank and the aggregators' addresses. Each line that a copy prints is prefixed
    with its rank. If a copy fails, the others are ended. Its exit status becomes that of this command, and the last
    line names the first failure, even if other copies ended before it as a consequence. Ctrl-C ends everything, a
    second Ctrl-C kills it. SIGUSR1 and SIGUSR2 are passed on to the workers.

    Example: psum launch --workers 2 -- python train.py
    """
    check_variables()
    job = LocalJob(
        command,
        workers=workers,
        aggregators=aggregators,
        processes=processes or suitable_processes(processors(), workers, aggregators),
        plane=plane,
        grace=grace,
    )
    sys.exit(asyncio.run(run(job)))
