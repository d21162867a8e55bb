"""Write the results of the suite: runs as JSON, plots, and a page with tables."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any, Final

from psum.cli.bench.cases import count
from psum.cli.bench.plots import draw
from psum.cli.bench.runs import FIGURES, Run, Spread, Summary, summarise
from psum.cli.bench.suite import EXPERIMENTS, Claim
from psum.cli.bench.tables import label
from psum.cli.bench.workloads import sizes
from psum.client import Settings
from psum.wire import ElementType

_TITLES: Final = {figure: title for figure, title, _ in FIGURES}

_INTRODUCTION: Final = """\
# Benchmarks

`psum bench --suite` writes this page; do not edit it.

- GB are 10^9 bytes of one worker's payload, counted once for push and pull together.
- A step lasts from the first push-pull until the last sum can be read.
- All processes run on one machine. In each round every system runs once, so that other load on the machine affects all
  systems.
- Figures are medians of the rounds, with the lowest and the highest figure if they differ. Ratios and CPU seconds carry
  over to other machines. Single figures do not.
- MiB of a worker are what rank 0's process uses beyond its own tensors and sums. MiB of aggregators are what all of
  them together use beyond their memory at the start. Memory that both share counts on both sides.
"""

_MEMORY: Final = """\
The bounds are the most memory that psum should need. A worker needs one partition for each shard, which holds
its last sum, and the credit of each aggregator. The aggregators together need two partitions for each shard, for the
open round and the last sum, and what all workers have under way. Measured memory includes what allocators keep for
later, and contributions that wait for a late rank.
"""

#: What follows this line in benchmarks.md is not this suite's, and is kept.
APPENDIX: Final = "<!-- scripts/netlab --suite writes what follows; do not edit it -->"

_MIB: Final = 1 << 20


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of an experiment.

    Attributes:
        date: The date, such as 2026-11-23.
        machine: A description of the machine.
        command: The command that ran it.
        runs: All runs.
    """

    date: str
    machine: str
    command: str
    runs: Sequence[Run]


def machine() -> str:
    """Describe this machine in one line."""
    cpus = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpus if line.startswith("model name")), "")
    try:
        version = importlib.metadata.version("psum")
    except importlib.metadata.PackageNotFoundError:
        version = "from source"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model or platform.machine()}, {memory:.0f} GiB, Linux"
        f" {platform.release().partition('-')[0]}, Python {platform.python_version()}, psum {version}"
    )


def load(file: pathlib.Path) -> dict[str, Result]:
    """Read the results of a file, by name of experiment. A missing file has none."""
    if not file.exists():
        return {}
    found: dict[str, Any] = json.loads(file.read_text())
    return {
        name: Result(**{**result, "runs": [Run(**run) for run in result["runs"]]}) for name, result in found.items()
    }


def save(file: pathlib.Path, results: Mapping[str, Result]) -> None:
    """Write results as JSON, with one run per line so that diffs are readable."""
    parts = []
    for name, result in results.items():
        runs = ",\n".join("   " + json.dumps(dataclasses.asdict(run)) for run in result.runs)
        about = ",\n".join(
            f"  {json.dumps(key)}: {json.dumps(getattr(result, key))}" for key in ("date", "machine", "command")
        )
        parts.append(f' {json.dumps(name)}: {{\n{about},\n  "runs": [\n{runs}\n  ]\n }}')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def write(directory: pathlib.Path, results: Mapping[str, Result]) -> list[pathlib.Path]:
    """Write benchmarks.md, benchmarks.json and the plots, and return their paths.

    The appendix of benchmarks.md stays.

    Raises:
        NoPlotsError: matplotlib is not installed.
    """
    ordered = {name: results[name] for name in EXPERIMENTS if name in results}
    save(directory / "benchmarks.json", ordered)
    plots: dict[str, list[pathlib.Path]] = {}
    for name, result in ordered.items():
        plots[name] = draw(result.runs, directory / "benchmarks", f"{name}-")
    page = directory / "benchmarks.md"
    text = render(ordered, {name: [f"benchmarks/{file.name}" for file in plots[name]] for name in plots})
    _, marker, appendix = page.read_text().partition(APPENDIX) if page.exists() else ("", "", "")
    page.write_text(f"{text}\n{marker}{appendix}" if marker else text)
    return [page, directory / "benchmarks.json", *(file for files in plots.values() for file in files)]


def render(results: Mapping[str, Result], plots: Mapping[str, Sequence[str]]) -> str:
    """Return the page.

    Args:
        results: The results by name of experiment.
        plots: The paths of each experiment's plots.
    """
    summaries = {name: summarise(result.runs) for name, result in results.items()}
    parts = [_INTRODUCTION, "## Targets\n", _claims(summaries), "## Memory\n", _MEMORY, _memory(summaries)]
    for name, result in results.items():
        versions = dict.fromkeys(f"{run.variant} is of {run.version}" for run in result.runs if run.version)
        busy = Spread.of([run.load for run in result.runs])
        rounds = max(len(summary.runs) for summary in summaries[name])
        parts.append(f"## {name}\n\n{EXPERIMENTS[name].about}\n")
        parts += [_table(summaries[name])]
        parts += [f"![{pathlib.PurePath(plot).stem}]({plot})\n" for plot in plots.get(name, ())]
        about = "; ".join(
            [
                result.date,
                result.machine,
                *versions,
                count(rounds, "round"),
                f"load average before a run {busy.show(1)}",
                f"`{result.command}`",
            ]
        )
        parts.append(about + "\n")
    return "\n".join(parts)


def _claims(summaries: Mapping[str, Sequence[Summary]]) -> str:
    rows = [
        "| experiment | case | system | figure | against | target | measured | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in summaries.items():
        for claim in EXPERIMENTS[name].claims:
            reached = claim.reached(found)
            measured = "not measured"
            if reached is not None:
                each = claim.by_round(found) or [reached]
                measured = Spread(reached, min(each), max(each)).show(4 if claim.target < 0.1 else 2)
            verdict = "" if reached is None else "reached" if claim.holds(reached) else "**missed**"
            wanted = f"{'≥' if claim.more_is_better else '≤'} {claim.target:g}"
            cells = (name, claim.case.title, claim.variant, _figure(claim), _against(claim), wanted, measured, verdict)
            rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _memory(summaries: Mapping[str, Sequence[Summary]]) -> str:
    credit = Settings().credit_bytes
    rows = [
        "| experiment | case | system | MiB, worker | bound | MiB, aggregators | bound |",
        "|---|---|---|---|---|---|---|",
    ]
    for experiment, summary in ((name, found) for name in summaries for found in _of_psum(summaries[name])):
        case, run = summary.case, summary.runs[0]
        payload = sum(sizes(case.workload)) * ElementType.of(run.dtype).itemsize
        under_way = credit * case.aggregators
        worker, servers = summary.spread("worker_mib"), summary.spread("aggregator_mib")
        cells = [
            experiment,
            case.title,
            label(summary),
            "" if worker is None else worker.show(0),
            f"{(payload + under_way) / _MIB:.0f}",
            "" if servers is None else servers.show(0),
            f"{(2 * payload + under_way * case.workers) / _MIB:.0f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _of_psum(summaries: Sequence[Summary]) -> list[Summary]:
    return [summary for summary in summaries if summary.runs[0].system == "psum"]


def _figure(claim: Claim) -> str:
    if claim.relative_to:
        return f"{_TITLES[claim.figure]} / {_TITLES[claim.relative_to]}"
    return "GB/s of all workers" if claim.total else _TITLES[claim.figure]


def _against(claim: Claim) -> str:
    if claim.against_case is None:
        return claim.against
    title = claim.against_case.title
    return title if claim.against == claim.variant else f"{claim.against} on {title}"


def _table(summaries: Sequence[Summary]) -> str:
    figures = [figure for figure in FIGURES if any(summary.spread(figure[0]) for summary in summaries)]
    rows = [
        "| case | system | " + " | ".join(title for _, title, _ in figures) + " |",
        "|---|---|" + "---|" * len(figures),
    ]
    for summary in summaries:
        spreads = [(summary.spread(figure), decimals) for figure, _, decimals in figures]
        cells = ["" if spread is None else spread.show(decimals) for spread, decimals in spreads]
        rows.append(f"| {summary.case.title} | {label(summary)} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"
