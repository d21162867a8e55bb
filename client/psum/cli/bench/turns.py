"""Run several systems in turns and report each run."""

import dataclasses
import json
import signal
from collections.abc import Iterable, Iterator
from typing import Final

import click

from psum.cli.bench import rivals
from psum.cli.bench.cases import Case, Effort, System
from psum.cli.bench.limits import Limits
from psum.cli.bench.rivals import MissingError, Rival
from psum.cli.bench.runs import FailedError, Run, beside_limit, once

#: The exit statuses of runs that a person ended by a signal.
_ENDED: Final = tuple(128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))


def take_turns(
    pairs: Iterable[tuple[Case, System]],
    effort: Effort,
    rounds: int,
    as_json: bool,
    failed: list[int] | None = None,
    limits: Limits | None = None,
) -> Iterator[Run]:
    """Run each system on each case, once in every round.

    Args:
        pairs: The cases, each with a system that runs it.
        effort: How much each run does.
        rounds: The number of rounds.
        as_json: Whether to print each run as JSON. Otherwise, if there are several runs, standard error gets a line for
            each.
        failed: Collects the exit statuses of runs that failed. Their pairs are left out of later rounds. If None, a
            failed run is an error.
        limits: The limits that runs are shown beside, None for none.

    Raises:
        FailedError: A run failed, or a person ended it.
    """
    left = list(pairs)
    several = len(left) * rounds > 1
    for number in range(rounds):
        for case, system in list(left):
            try:
                run = once(system, case, effort, number)
            except FailedError as error:
                if failed is None or error.status in _ENDED:
                    raise
                note(f"{system.name} failed on {case.title}; later rounds leave it out")
                failed.append(error.status)
                left.remove((case, system))
                continue
            if limits is not None:
                # dist_sync moves the same bytes on TCP as the plane direct. Gloo's ring is another pipeline.
                plane = "direct" if run.system == "dist_sync" else run.plane
                run = beside_limit(run, limits.of(case.workload, case.workers, plane, run.dtype))
            if as_json:
                click.echo(json.dumps(dataclasses.asdict(run)))
            elif several:
                figures = f"{run.gb_per_s_per_worker:.3f} GB/s, {run.ms_per_step:.1f} ms per step"
                if run.of_limit is not None:
                    figures += f", {run.of_limit:.2f} of the limit"
                note(f"round {number + 1} of {rounds}, {case.title}: {system.name} {figures}")
            yield run


def installed(names: Iterable[str], gloo_python: str | None) -> list[Rival]:
    """Return the rivals that are installed, and note for each missing one how to install it."""
    found = []
    for name in dict.fromkeys(names):
        try:
            found.append(rivals.find(name, gloo_python))
        except MissingError as error:
            note(str(error))
    return found


def note(text: str) -> None:
    """Write a line to standard error."""
    click.echo(f"psum: {text}", err=True)
