"""`psum bench`: how fast this machine push-pulls, beside what psum's users would take instead."""

import dataclasses
import datetime
import importlib.util
import itertools
import json
import pathlib
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import click

from psum.cli.bench import (
    page,
    plots,
    rivals,
    tables,
    workloads,
)
from psum.cli.bench.cases import (
    THROUGH,
    Case,
    Effort,
    System,
    cases,
    psum_systems,
)
from psum.cli.bench.rivals import MissingError, Peer
from psum.cli.bench.runs import FailedError, Run, once, openmp_environment, summarise
from psum.cli.bench.suite import EXPERIMENTS
from psum.cli.options import PLANES, Several, check_variables
from psum.wire import ElementType

#: Rounds where several systems are compared, unless it is said how many: fewer say little on a busy machine.
_ROUNDS: Final = 5

#: With these statuses a run has ended since a person has ended it.
_ENDED: Final = tuple(128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))


@click.command()
@click.option(
    "--workers",
    type=Several(click.IntRange(1, workloads.MAX_WORKERS)),
    default="2",
    show_default=True,
    metavar="N,…",
    help="Worker processes.",
)
@click.option(
    "--aggregators",
    type=Several(click.IntRange(1, 64)),
    default="1",
    show_default=True,
    metavar="N,…",
    help="How many aggregators to run, or servers of a peer.",
)
@click.option(
    "--workload",
    type=Several(click.Choice(workloads.NAMES)),
    default="big",
    show_default=True,
    metavar="NAME,…",
    help="What is summed in each step: big (16 tensors of 1 Mi elements), wide (16 of 2 Mi), small (256 of 1 Ki), many"
    " (10,000 of 256), resnet50 or vgg16 (a network's parameters).",
)
@click.option(
    "--dtype",
    type=Several(click.Choice([element_type.label for element_type in ElementType])),
    default="float32",
    show_default=True,
    metavar="TYPE,…",
    help="The type of the elements.",
)
@click.option(
    "--plane",
    "planes",
    envvar="PSUM_PLANE",
    type=click.Choice(PLANES),
    multiple=True,
    default=["auto"],
    show_default=True,
    help="How payloads cross between workers and aggregators. Given several times, each way is a system of its own.",
)
@click.option(
    "--through",
    type=Several(click.Choice(THROUGH)),
    default="numpy",
    show_default=True,
    metavar="numpy,mxnet",
    help="What is push-pulled: NumPy arrays, or NDArrays by the MXNet KVStore.",
)
@click.option(
    "--against",
    type=Several(click.Choice(rivals.NAMES)),
    default="",
    metavar="PEER,…",
    help="What psum is compared with: dist_sync (MXNet's own KVStore, ps-lite), gloo (PyTorch's all-reduce).",
)
@click.option(
    "--gloo-python",
    type=click.Path(exists=True, dir_okay=False),
    help="An interpreter that has PyTorch, where this one has not.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help=f"How often each system runs, all in turns.  [default: {_ROUNDS} where systems are compared, else 1]",
)
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Steps that are timed.")
@click.option("--warmup", type=click.IntRange(min=0), default=2, show_default=True, help="Steps before those.")
@click.option("--latency", is_flag=True, help="Measure too how soon each tensor is back that is pushed behind others.")
@click.option(
    "--idle",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Measure too what aggregators use while connected workers do nothing.",
)
@click.option(
    "--hosts",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="As if workers and aggregators were dealt out to as many hosts: memory is shared within one only.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print each run as a line of JSON, and what several say together."
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="Draw plots (SVG) there; needs psum[bench]. With --suite: benchmarks.md, benchmarks.json and benchmarks/.",
)
@click.option(
    "--suite",
    type=Several(click.Choice(["all", *EXPERIMENTS])),
    default="",
    metavar="NAME,…",
    help="Make the experiments of docs/benchmarks.md, or some of them: " + ", ".join(["all", *EXPERIMENTS]) + ".",
)
def bench(
    workers: Sequence[int],
    aggregators: Sequence[int],
    workload: Sequence[str],
    dtype: Sequence[str],
    planes: Sequence[str],
    through: Sequence[str],
    against: Sequence[str],
    gloo_python: str | None,
    rounds: int | None,
    steps: int,
    warmup: int,
    latency: bool,
    idle: float,
    hosts: int,
    as_json: bool,
    output: pathlib.Path | None,
    suite: Sequence[str],
) -> None:
    """Measure how fast worker processes on this machine push-pull, and compare that with other systems.

    In each step, all workers push-pull all tensors of the workload at once, and wait for all sums. psum's sums are
    checked after the timed steps. GB are 10^9 bytes of one worker's payload, counted once for push and pull together.
    CPU seconds of a worker are those of rank 0's process, CPU seconds of the aggregators those of all of them together,
    both for each GB.

    All processes, of psum and of what it is compared with, run with OMP_NUM_THREADS=1 unless that is set: more threads
    of OpenMP spin while they wait, which costs dist_sync more than half of its speed on 16 cores.

    Several numbers of workers, workloads and so on, with commas, are measured one after the other, or in turns where
    --rounds is more than 1. Example: psum bench --plane inline --plane shm --against dist_sync,gloo
    """
    check_variables()
    if output is not None:
        try:
            plots.check()
        except plots.NoPlotsError as error:
            raise click.ClickException(str(error)) from None
    if suite:
        if output is None:
            raise click.UsageError("--suite needs --output, a directory such as docs")
        names = list(EXPERIMENTS) if "all" in suite else list(dict.fromkeys(suite))
        sys.exit(_make(names, rounds or _ROUNDS, gloo_python, output, as_json))
    if against and set(dtype) != {"float32"}:
        raise click.UsageError("--against compares in float32 only")
    _check_through(through, dtype)
    systems = psum_systems(planes, through, dtype)
    systems += [System(peer=peer) for peer in _installed(against, gloo_python)]
    if any(system.peer is not None for system in systems):
        _note(f"all processes, of psum too, run with {' '.join(_openmp())}; set it to compare with another number")
    effort = Effort(steps, warmup, steps if latency else 0, idle)
    pairs = list(itertools.product(cases(workload, workers, aggregators, hosts), systems))
    found: list[Run] = []
    rounds = rounds or (_ROUNDS if len(systems) > 1 else 1)
    try:
        for run in _runs(pairs, effort, rounds, as_json):
            found.append(run)
    except FailedError as error:
        sys.exit(error.status)
    summaries = summarise(found)
    if not as_json:
        tables.show(summaries)
    elif len(found) > 1:
        for summary in summaries:
            click.echo(json.dumps(summary.as_json()))
    if output is not None:
        for file in plots.draw(found, output):
            click.echo(f"wrote {file}", err=True)


def _make(names: Sequence[str], rounds: int, gloo_python: str | None, output: pathlib.Path, as_json: bool) -> int:
    """Makes experiments and writes each down when it is done, beside those that were made before."""
    peers = _installed(rivals.NAMES, gloo_python)
    results = page.load(output / "benchmarks.json")
    failed: list[int] = []
    for name in names:
        experiment = EXPERIMENTS[name]
        _note(f"experiment {name}: {experiment.about}")
        pairs = [pair for pair in experiment.pairs(peers) if pair[1].through != "mxnet" or _has_mxnet()]
        try:
            runs = list(_runs(pairs, experiment.effort, rounds, as_json, failed))
        except FailedError as error:
            return error.status
        if runs:
            today = datetime.datetime.now(datetime.UTC).date().isoformat()
            # Paths of this machine say nothing to others.
            words = [*_openmp(), "psum", "bench", "--suite", name, "--rounds", str(rounds), "--output", output.name]
            results[name] = page.Result(today, page.machine(), shlex.join(words), runs)
            page.write(output, results)
            if not as_json:
                tables.show(summarise(runs))
    return failed[0] if failed else 0


def _runs(
    pairs: Iterable[tuple[Case, System]],
    effort: Effort,
    rounds: int,
    as_json: bool,
    failed: list[int] | None = None,
) -> Iterator[Run]:
    """Puts systems to cases, in turns.

    Args:
        pairs: What is done, and by which system.
        effort: How much.
        rounds: How often.
        as_json: Print each run as JSON; otherwise, where there are several, what it gave is told on standard error.
        failed: Takes the statuses of runs that failed, which are then left out from there on; None: they are errors.

    Raises:
        FailedError: A run failed, or was ended by a person.
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
                _note(f"{system.name} failed on {case.title}, and is left out there")
                failed.append(error.status)
                left.remove((case, system))
                continue
            if as_json:
                click.echo(json.dumps(dataclasses.asdict(run)))
            elif several:
                said = f"{run.gb_per_s_per_worker:.3f} GB/s, {run.ms_per_step:.1f} ms per step"
                _note(f"round {number + 1} of {rounds}, {case.title}: {system.name} {said}")
            yield run


def _installed(names: Iterable[str], gloo_python: str | None) -> list[Peer]:
    """Those peers that are there. Of the others it is said what to install."""
    found = []
    for name in dict.fromkeys(names):
        try:
            found.append(rivals.find(name, gloo_python))
        except MissingError as error:
            _note(str(error))
    return found


def _openmp() -> list[str]:
    return [f"{variable}={value}" for variable, value in openmp_environment().items()]


def _note(text: str) -> None:
    click.echo(f"psum: {text}", err=True)


def _check_through(through: Sequence[str], dtypes: Sequence[str]) -> None:
    if "mxnet" not in through:
        return
    if not _has_mxnet():
        raise click.ClickException("--through mxnet needs MXNet: pip install 'psum[mxnet]'")
    for dtype in dtypes:
        if not ElementType.of(dtype).in_numpy:
            raise click.UsageError(f"--through mxnet: NDArrays made from NumPy have no {dtype}")


def _has_mxnet() -> bool:
    return importlib.util.find_spec("mxnet") is not None
