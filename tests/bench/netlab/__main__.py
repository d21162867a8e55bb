"""The lab's command; see scripts/netlab."""

import dataclasses
import datetime
import json
import pathlib
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import click

from psum.cli.bench import page as bench_page
from psum.cli.bench import rivals, workloads
from psum.cli.bench.cases import Effort, System
from psum.cli.bench.rivals import MissingError, Rival
from psum.cli.bench.runs import FailedError
from psum.cli.options import PLANES, Several, check_variables
from tests.bench.netlab import page, tables, torch_python
from tests.bench.netlab.namespaces import LabError, check, sweep
from tests.bench.netlab.network import CONGESTION_CONTROLS
from tests.bench.netlab.placement import Placement
from tests.bench.netlab.runs import Case, Run, once, summarise
from tests.bench.netlab.suite import EXPERIMENTS, psum_systems
from tests.bench.netlab.systems import can_run

_ROUNDS: Final = 3


@click.command()
@click.option(
    "--hosts",
    type=Several(click.IntRange(1, 64)),
    default="2",
    show_default=True,
    metavar="N,…",
    help="Number of hosts with workers.",
)
@click.option(
    "--local",
    type=Several(click.IntRange(1, 64)),
    default="1",
    show_default=True,
    metavar="N,…",
    help="Number of workers on each of these hosts.",
)
@click.option(
    "--beside",
    type=click.IntRange(0, 8),
    default=1,
    show_default=True,
    help="Number of aggregators, or of dist_sync's servers, on each of these hosts.",
)
@click.option(
    "--dedicated",
    type=Several(click.IntRange(0, 64)),
    default="0",
    show_default=True,
    metavar="N,…",
    help="Number of additional hosts that run one aggregator each and no worker.",
)
@click.option(
    "--mbit",
    type=click.FloatRange(min=1),
    default=200.0,
    show_default=True,
    help="Rate of each link in each direction, in 10^6 bits per second.",
)
@click.option(
    "--congestion-control",
    type=click.Choice(CONGESTION_CONTROLS),
    default=CONGESTION_CONTROLS[0],
    show_default=True,
    help="TCP congestion control on all hosts.",
)
@click.option("--workload", type=click.Choice(workloads.NAMES), default="resnet50", show_default=True)
@click.option(
    "--plane",
    "planes",
    type=click.Choice(PLANES),
    multiple=True,
    default=["auto"],
    show_default=True,
    help="How psum sends payloads. auto uses shm within a host and direct between hosts. Each plane counts as a system"
    " of its own.",
)
@click.option(
    "--through",
    type=click.Choice(["numpy", "torch"]),
    default="numpy",
    show_default=True,
    help="The interface to psum. With torch, it is psum's backend of torch.distributed, which starts one aggregator on"
    " each host by itself.",
)
@click.option(
    "--against",
    type=Several(click.Choice(rivals.NAMES)),
    default="",
    metavar="PEER,…",
    help="Systems to compare psum with: dist_sync, gloo.",
)
@click.option("--only-rivals", is_flag=True, help="Run only the rivals, not psum.")
@click.option(
    "--gloo-python",
    type=click.Path(exists=True, dir_okay=False),
    help="A Python interpreter that has PyTorch for Gloo.  [default: that of --torch-python]",
)
@click.option(
    "--torch-python",
    type=click.Path(exists=True, dir_okay=False),
    help="A Python interpreter that has PyTorch and what psum needs, for psum through torch.  [default: this one]",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help=f"How many times each system runs. Systems take turns.  [default: {_ROUNDS} if there are several, else 1]",
)
@click.option("--steps", type=click.IntRange(min=1), default=4, show_default=True, help="Number of timed steps.")
@click.option("--warmup", type=click.IntRange(min=0), default=2, show_default=True, help="Number of steps before them.")
@click.option("--latency", is_flag=True, help="Also measure how soon the sum of the most urgent tensor arrives.")
@click.option("--watch", is_flag=True, help="Show for each run how full each link was during the timed steps.")
@click.option("--json", "as_json", is_flag=True, help="Print each run as a line of JSON instead of the table.")
@click.option(
    "--suite",
    type=Several(click.Choice(["all", *EXPERIMENTS])),
    default="",
    metavar="NAME,…",
    help="Run all or some of the experiments for docs/benchmarks.md: " + ", ".join(["all", *EXPERIMENTS]) + ".",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="With --suite: write network.json and the last section of benchmarks.md to this directory.",
)
def netlab(**options: Any) -> None:
    """Run psum, Gloo and dist_sync on hosts with their own links, all on this machine.

    Hosts are network namespaces behind a switch. Each has its own shared memory. A machine with two cores can run
    eight hosts with links of 200 Mbit/s. The links are then the bottleneck, as on real hosts. The lab needs root and
    iproute2.

    It prints a Markdown table. of_bound is the shortest step time that the links allow, divided by the measured step
    time. link_bytes is what the busiest link carried, divided by the least that it has to carry.

    psum's settings come from the environment. Example: PSUM_PARTITION_BYTES=512KiB scripts/netlab --hosts 4 --watch
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    check_variables()
    try:
        check()
        for name in sweep():
            _note(f"removed {name}, left behind by a killed run")
        status = _suite(**options) if options["suite"] else _compare(**options)
    except LabError as error:
        raise click.ClickException(str(error)) from None
    except FailedError as error:
        status = error.status
    sys.exit(status)


def _compare(
    hosts: Sequence[int],
    local: Sequence[int],
    beside: int,
    dedicated: Sequence[int],
    mbit: float,
    congestion_control: str,
    workload: str,
    planes: Sequence[str],
    through: str,
    against: Sequence[str],
    only_rivals: bool,
    gloo_python: str | None,
    torch_python: str | None,
    rounds: int | None,
    steps: int,
    warmup: int,
    latency: bool,
    watch: bool,
    as_json: bool,
    **_: object,
) -> int:
    systems: list[System] = []
    if not only_rivals:
        found = _torch_python(torch_python) if through == "torch" else None
        systems += psum_systems(through, list(dict.fromkeys(planes)), found)
    systems += [System(rival=rival) for rival in _installed(against, gloo_python or torch_python)]
    placements = [Placement(n, each, beside, k) for n in hosts for each in local for k in dedicated]
    pairs = [
        (Case(placement, workload, mbit, congestion_control), system)
        for placement in placements
        for system in systems
        if can_run(system, placement)
    ]
    if not pairs:
        raise LabError(
            "no system can run: psum and dist_sync need aggregators; set --beside or --dedicated. With --through torch,"
            " psum has one aggregator on each host with workers, and no other"
        )
    effort = Effort(steps, warmup, steps if latency else 0)
    runs = list(_runs(pairs, effort, rounds or (_ROUNDS if len(systems) > 1 else 1), watch, as_json))
    if as_json:
        for summary in summarise(runs) if len(runs) > len(pairs) else ():
            click.echo(json.dumps(summary.as_json()))
    else:
        click.echo(tables.markdown(summarise(runs)), nl=False)
    return 0


def _suite(
    suite: Sequence[str],
    output: pathlib.Path | None,
    gloo_python: str | None,
    torch_python: str | None,
    rounds: int | None,
    congestion_control: str,
    watch: bool,
    as_json: bool,
    **_: object,
) -> int:
    if output is None:
        raise click.UsageError("--suite needs a directory: set --output")
    installed = _installed(rivals.NAMES, gloo_python or torch_python)
    results = page.load(output / "network.json")
    for name in list(EXPERIMENTS) if "all" in suite else dict.fromkeys(suite):
        experiment = EXPERIMENTS[name]
        _note(f"experiment {name}: {experiment.about}")
        found = _torch_python(torch_python) if experiment.through == "torch" else None
        pairs = [
            pair
            for pair in experiment.pairs(installed, congestion_control, found)
            if can_run(pair[1], pair[0].placement)
        ]
        runs = list(_runs(pairs, experiment.effort, rounds or _ROUNDS, watch, as_json))
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        words = ["scripts/netlab", "--suite", name, "--rounds", str(rounds or _ROUNDS), "--output", output.name]
        results[name] = page.Result(today, bench_page.machine(), shlex.join(words), runs)
        page.write(output, results)
        if not as_json:
            click.echo(tables.markdown(summarise(runs)), nl=False)
    return 0


def _runs(
    pairs: Iterable[tuple[Case, System]], effort: Effort, rounds: int, watch: bool, as_json: bool
) -> Iterator[Run]:
    """Yields the runs of all pairs of case and system. Each pair runs once per round.

    Raises:
        FailedError: A run failed, or a signal ended it.
    """
    pairs = list(pairs)
    for number in range(rounds):
        for case, system in pairs:
            run, trace = once(system, case, effort, number)
            if watch:
                click.echo(f"{system.name}: {case.title}", err=True)
                for line in tables.watch(trace, case.mbit * 1e6 / 8):
                    click.echo(line, err=True)
            if as_json:
                click.echo(json.dumps(dataclasses.asdict(run)))
            else:
                said = f"{run.seconds:.2f} s per step, of_bound {run.of_bound:.2f}, link_bytes {run.link_bytes:.3f}"
                _note(f"round {number + 1} of {rounds}, {case.title}: {system.name} {said}")
            yield run


def _installed(names: Iterable[str], gloo_python: str | None) -> list[Rival]:
    """Returns the installed rivals, and says how to install the others."""
    found = []
    for name in dict.fromkeys(names):
        try:
            found.append(rivals.find(name, gloo_python))
        except MissingError as error:
            _note(str(error))
    return found


def _torch_python(given: str | None) -> str | None:
    """Returns an interpreter for psum through torch; None, after saying why, if there is none."""
    try:
        return torch_python.find(given)
    except MissingError as error:
        _note(str(error))
        return None


def _end(number: int, frame: object) -> None:
    """Raises SystemExit with the signal's status, so that all hosts and processes are removed on the way out."""
    raise SystemExit(128 + number)


def _note(text: str) -> None:
    click.echo(f"netlab: {text}", err=True)


if __name__ == "__main__":
    netlab()
