"""Writes the results of the suite: its runs as JSON, and the last section of docs/benchmarks.md."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Final

from psum.cli.bench.page import APPENDIX
from psum.cli.bench.runs import Spread
from tests.bench.netlab.runs import FIGURES, Run, summarise
from tests.bench.netlab.suite import EXPERIMENTS
from tests.bench.netlab.tables import markdown

_TITLES: Final = {name: title for name, title, _ in FIGURES}

_INTRODUCTION: Final = """\
## Networks of hosts

`scripts/netlab --suite all --output docs` writes this section. Each host is a network namespace. Its link to the
switch has the given rate in both directions. The link's only delay is that of its queues. Hosts do not share memory
with each other.

- of_bound is the shortest step time that the links allow, divided by the measured step time. The bound holds for any
  software in that placement. It counts the workers of one host once. Headers take 4 to 5 % of a link, so the best
  possible value is 0.95.
- link_bytes is what the busiest link carried in one direction, divided by the least that it has to carry.
- links used is the average part of their rate that the links of the workers' hosts carried.
- Through torch, psum is the backend psum of torch.distributed. It and Gloo all-reduce the buckets into which
  DistributedDataParallel packs the gradients of that workload.
- Figures are medians of alternating runs. The lowest and the highest value follow if they differ.
"""


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of an experiment.

    Attributes:
        date: The day of the experiment, as 2026-11-23.
        machine: The machine that it ran on.
        command: The command that ran it.
        runs: All its runs.
    """

    date: str
    machine: str
    command: str
    runs: Sequence[Run]


def load(file: pathlib.Path) -> dict[str, Result]:
    """Reads results from a file, by the experiments' names; returns none if there is no file."""
    if not file.exists():
        return {}
    return {
        name: Result(**{**result, "runs": [Run(**run) for run in result["runs"]]})
        for name, result in json.loads(file.read_text()).items()
    }


def write(directory: pathlib.Path, results: Mapping[str, Result]) -> list[pathlib.Path]:
    """Writes network.json, and the appendix of benchmarks.md, in the order of EXPERIMENTS; returns both paths.

    The rest of benchmarks.md stays. If there is no such file, it gets the appendix alone.
    """
    ordered = {name: results[name] for name in EXPERIMENTS if name in results}
    directory.mkdir(parents=True, exist_ok=True)
    data, page = directory / "network.json", directory / "benchmarks.md"
    data.write_text(_dump(ordered))
    rest = page.read_text().partition(APPENDIX)[0] if page.exists() else ""
    page.write_text(rest + appendix(ordered))
    return [data, page]


def appendix(results: Mapping[str, Result]) -> str:
    """Returns the appendix of benchmarks.md with the line that begins it."""
    return f"{APPENDIX}\n\n{render(results)}"


def _dump(results: Mapping[str, Result]) -> str:
    """Returns results as JSON, with one run per line so that diffs are readable."""
    parts = []
    for name, result in results.items():
        runs = ",\n".join("   " + json.dumps(dataclasses.asdict(run)) for run in result.runs)
        about = ",\n".join(f'  "{key}": {json.dumps(getattr(result, key))}' for key in ("date", "machine", "command"))
        parts.append(f' {json.dumps(name)}: {{\n{about},\n  "runs": [\n{runs}\n  ]\n }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def render(results: Mapping[str, Result]) -> str:
    """Returns the section as Markdown."""
    parts = [_INTRODUCTION]
    for name, result in results.items():
        summaries = summarise(result.runs)
        versions = dict.fromkeys(f"{run.variant} is version {run.version}" for run in result.runs if run.version)
        parts += [f"### {name}\n\n{EXPERIMENTS[name].about}\n", markdown(summaries), _targets(name, result)]
        controls = ", ".join(dict.fromkeys(run.congestion_control for run in result.runs))
        load = f"load average before a run {Spread.of([run.load for run in result.runs]).show(1)}"
        about = [result.date, result.machine, *versions, f"TCP with {controls}", load, f"`{result.command}`"]
        parts.append("; ".join(about) + "\n")
    return "\n".join(parts)


def _targets(name: str, result: Result) -> str:
    summaries = summarise(result.runs)
    rows = ["| placement | system | figure | target | measured | |", "|---|---|---|---|---|---|"]
    for target in EXPERIMENTS[name].targets:
        found = target.verdict(summaries)
        measured = "not measured" if found is None else f"{found[0]:.3f}"
        if target.times != 1 and (ratio := target.ratio(summaries)) is not None:
            measured += f" ({ratio:.2f} × {target.against})"
        verdict = "" if found is None else "reached" if found[1] else "**missed**"
        cells = (target.placement.title, target.variant, _TITLES[target.figure], target.words(), measured, verdict)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
