"""`psum bench`: measure how fast this machine push-pulls, and compare psum with other systems."""

import datetime
import importlib.util
import itertools
import json
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Final

import click

from psum.cli.bench import (
    page,
    plots,
    rivals,
    tables,
    workloads,
)
from psum.cli.bench.cases import THROUGH, Effort, System, cases, psum_systems
from psum.cli.bench.limits import Limits
from psum.cli.bench.runs import FailedError, Run, openmp_environment, summarise
from psum.cli.bench.suite import EXPERIMENTS
from psum.cli.bench.turns import installed, note, take_turns
from psum.cli.options import PLANES, Several, check_variables
from psum.wire import ElementType

#: The default number of rounds for comparisons. Fewer rounds say little on a busy machine.
_ROUNDS: Final = 5


@click.command()
@click.option(
    "--workers",
    type=Several(click.IntRange(1, workloads.MAX_WORKERS)),
    default="2",
    show_default=True,
    metavar="N,…",
    help="The number of worker processes.",
)
@click.option(
    "--aggregators",
    type=Several(click.IntRange(1, 64)),
    default="1",
    show_default=True,
    metavar="N,…",
    help="The number of aggregators, or of a rival's servers.",
)
@click.option(
    "--workload",
    type=Several(click.Choice(workloads.NAMES)),
    default="big",
    show_default=True,
    metavar="NAME,…",
    help="The tensors of each step: big (16 tensors of 1 Mi elements), wide (16 of 2 Mi), small (256 of 1 Ki), many"
    " (10,000 of 256), resnet50, vgg16 or transformer (a network's parameters).",
)
@click.option(
    "--dtype",
    type=Several(click.Choice([element_type.label for element_type in ElementType])),
    default="float32",
    show_default=True,
    metavar="TYPE,…",
    help="The element type.",
)
@click.option(
    "--plane",
    "planes",
    envvar="PSUM_PLANE",
    type=click.Choice(PLANES),
    multiple=True,
    default=["auto"],
    show_default=True,
    help="How payloads cross between workers and aggregators. Repeat it to compare planes.",
)
@click.option(
    "--through",
    type=Several(click.Choice(THROUGH)),
    default="numpy",
    show_default=True,
    metavar="numpy,shared,mxnet",
    help="The interface: NumPy arrays with psum.client, the program's own (numpy) or those of Client.empty, which need"
    " no copy (shared); or NDArrays with the MXNet KVStore (mxnet).",
)
@click.option(
    "--against",
    type=Several(click.Choice(rivals.NAMES)),
    default="",
    metavar="RIVAL,…",
    help="The systems to compare with: dist_sync (MXNet's own KVStore, ps-lite), gloo (PyTorch's all-reduce).",
)
@click.option(
    "--gloo-python",
    type=click.Path(exists=True, dir_okay=False),
    help="An interpreter with PyTorch, if this one has none.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help=f"The number of runs of each system, in turns.  [default: {_ROUNDS} for comparisons, else 1]",
)
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="The number of timed steps.")
@click.option("--warmup", type=click.IntRange(min=0), default=2, show_default=True, help="Steps before the timed ones.")
@click.option("--latency", is_flag=True, help="Also measure how long each tensor of a whole step takes.")
@click.option(
    "--idle",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Also measure for so long what aggregators use while workers are connected and idle.",
)
@click.option(
    "--hosts",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Simulate this many hosts: workers and aggregators share memory only within one host.",
)
@click.option(
    "--limit/--no-limit",
    default=True,
    show_default=True,
    help="Also measure, once for each case and plane, what the same pipeline takes without psum, and show its processor"
    " time divided by that of each run. Only for float32.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print a line of JSON for each run, and one for each summary of several."
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="The directory for plots (SVG). Needs psum[bench]. With --suite: benchmarks.md, benchmarks.json, benchmarks/.",
)
@click.option(
    "--suite",
    type=Several(click.Choice(["all", *EXPERIMENTS])),
    default="",
    metavar="NAME,…",
    help="Run the experiments of docs/benchmarks.md, or some of them: " + ", ".join(["all", *EXPERIMENTS]) + ".",
)
@click.option(
    "--merge",
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    help="Run nothing: add the results of another machine, a benchmarks.json that --suite has written there, to those"
    " of --output. They replace results of the same experiment on the same kind of processor.",
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
    limit: bool,
    as_json: bool,
    output: pathlib.Path | None,
    suite: Sequence[str],
    merge: pathlib.Path | None,
) -> None:
    """Measure how fast worker processes on this machine push-pull, and compare psum with other systems.

    In each step, all workers push-pull all tensors of the workload at once and wait for all sums. The benchmark checks
    psum's sums after the timed steps. GB are 10^9 bytes of one worker's payload, counted once for push and pull
    together. CPU seconds are per GB: for a worker those of rank 0's process, for the aggregators those of all together.

    All processes, also those of other systems, run with OMP_NUM_THREADS=1 unless it is set. More OpenMP threads spin
    while they wait, which costs dist_sync more than half of its speed on 16 cores.

    'of limit' compares processor time with that of bare processes which move and add the same bytes in the same order,
    through shared memory, TCP or gRPC. 1 means that psum adds nothing to it. More is possible: psum can save copies.

    Options with commas take several values. Each combination runs once per round.

    Example: psum bench --plane inline --plane shm --against dist_sync,gloo
    """
    check_variables()
    if output is not None:
        try:
            plots.check()
        except plots.NoPlotsError as error:
            raise click.ClickException(str(error)) from None
    if merge is not None:
        _merge(merge, suite, output)
        return
    limits = Limits(note) if limit else None
    if suite:
        if output is None:
            raise click.UsageError("--suite needs --output, a directory such as docs")
        names = list(EXPERIMENTS) if "all" in suite else list(dict.fromkeys(suite))
        sys.exit(_make(names, rounds or _ROUNDS, gloo_python, output, as_json, limits))
    if against and set(dtype) != {"float32"}:
        raise click.UsageError("--against works with --dtype float32 only")
    _check_through(through, dtype)
    systems = psum_systems(planes, through, dtype)
    systems += [System(rival=rival) for rival in installed(against, gloo_python)]
    if any(system.rival is not None for system in systems):
        note(f"all processes, also psum's, run with {' '.join(_openmp())}; set the variable to use another number")
    effort = Effort(steps, warmup, steps if latency else 0, idle)
    pairs = list(itertools.product(cases(workload, workers, aggregators, hosts), systems))
    found: list[Run] = []
    rounds = rounds or (_ROUNDS if len(systems) > 1 else 1)
    try:
        for run in take_turns(pairs, effort, rounds, as_json, limits=limits):
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


def _make(
    names: Sequence[str],
    rounds: int,
    gloo_python: str | None,
    output: pathlib.Path,
    as_json: bool,
    limits: Limits | None,
) -> int:
    """Run experiments, and write the results of each one as soon as it is done. Results of earlier runs stay."""
    present = installed(rivals.NAMES, gloo_python)
    results = page.load(output / "benchmarks.json")
    failed: list[int] = []
    for name in names:
        experiment = EXPERIMENTS[name]
        note(f"experiment {name}: {experiment.about}")
        pairs = [pair for pair in experiment.pairs(present) if pair[1].through != "mxnet" or _has_mxnet()]
        try:
            runs = list(take_turns(pairs, experiment.effort, rounds, as_json, failed, limits))
        except FailedError as error:
            return error.status
        if runs:
            today = datetime.datetime.now(datetime.UTC).date().isoformat()
            # The page names the directory only: full paths mean nothing on other machines.
            words = [*_openmp(), "psum", "bench", "--suite", name, "--rounds", str(rounds), "--output", output.name]
            result = page.Result(today, page.machine(), shlex.join(words), runs)
            results[page.key(name, result)] = result
            page.write(output, results)
            if not as_json:
                tables.show(summarise(runs))
    return failed[0] if failed else 0


def _merge(file: pathlib.Path, suite: Sequence[str], output: pathlib.Path | None) -> None:
    """Add the results of a file to those of a directory, and write the page and the plots again."""
    if output is None or suite:
        raise click.UsageError("--merge needs --output, a directory such as docs, and no --suite")
    try:
        results = page.load(file)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise click.ClickException(
            f"{file} has no results of `psum bench --suite`: {error}; name a benchmarks.json of this version"
        ) from None
    for written in page.write(output, {**page.load(output / "benchmarks.json"), **results}):
        note(f"wrote {written}")


def _openmp() -> list[str]:
    return [f"{variable}={value}" for variable, value in openmp_environment().items()]


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
