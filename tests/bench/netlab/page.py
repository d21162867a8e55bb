"""Writes the results of the suite: its runs as JSON, and a section for docs/benchmarks.md."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Final

from tests.bench.netlab.runs import FIGURES, Run, summarise
from tests.bench.netlab.suite import EXPERIMENTS
from tests.bench.netlab.tables import markdown

_TITLES: Final = {name: title for name, title, _ in FIGURES}

_INTRODUCTION: Final = """\
## Networks of hosts

`scripts/netlab --suite all` makes these tables. Each host is a network namespace. Its link to the switch has the given
rate in both directions. The link's only delay is that of its queues. Hosts do not share memory with each other.

- of_bound is the shortest step time that the links allow, divided by the measured step time. The bound holds for any
  software in that placement. It counts the workers of one host once. Headers take 4 to 5 % of a link, so the best
  possible value is 0.95.
- link_bytes is what the busiest link carried in one direction, divided by the least that it has to carry.
- links used is the average part of their rate that the links of the workers' hosts carried.
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
    """Writes network.json and network.md, with the experiments in the order of EXPERIMENTS; returns both paths."""
    ordered = {name: results[name] for name in EXPERIMENTS if name in results}
    directory.mkdir(parents=True, exist_ok=True)
    data, page = directory / "network.json", directory / "network.md"
    data.write_text(json.dumps({name: dataclasses.asdict(result) for name, result in ordered.items()}, indent=1) + "\n")
    page.write_text(render(ordered))
    return [data, page]


def render(results: Mapping[str, Result]) -> str:
    """Returns the section as Markdown."""
    parts = [_INTRODUCTION]
    for name, result in results.items():
        summaries = summarise(result.runs)
        versions = dict.fromkeys(f"{run.variant} is version {run.version}" for run in result.runs if run.version)
        parts += [f"### {name}\n\n{EXPERIMENTS[name].about}\n", markdown(summaries), _targets(name, result)]
        parts.append("; ".join([result.date, result.machine, *versions, f"`{result.command}`"]) + "\n")
    return "\n".join(parts)


def _targets(name: str, result: Result) -> str:
    summaries = summarise(result.runs)
    rows = ["| placement | system | figure | target | measured | |", "|---|---|---|---|---|---|"]
    for target in EXPERIMENTS[name].targets:
        found = target.verdict(summaries)
        measured = "not measured" if found is None else f"{found[0]:.3f}"
        verdict = "" if found is None else "reached" if found[1] else "**missed**"
        cells = (target.placement.title, target.variant, _TITLES[target.figure], target.words(), measured, verdict)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
