"""Write the results of the suite: runs as JSON, plots, and a page with tables."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from psum.cli.bench.cases import count
from psum.cli.bench.plots import draw
from psum.cli.bench.runs import FIGURES, Run, Spread, Summary, processor, summarise
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
- Experiments may have been run on several kinds of processors. Each table says which.
- "of limit" is the processor time that the same pipeline takes without psum, divided by what all workers and
  aggregators took. The pipeline is measured once in the same run: bare processes move and add the same bytes in the
  same order, through shared memory, TCP or gRPC. For dist_sync it is that of TCP. 1 means that psum adds nothing. More
  is possible, because psum can save copies.
- Figures are medians of the rounds, with the lowest and the highest figure if they differ. Ratios and CPU seconds carry
  over to other machines. Single figures do not.
- MiB of a worker are what rank 0's process uses beyond its own tensors and sums. MiB of aggregators are what all of
  them together use beyond their memory at the start. Memory that both share counts on both sides.
"""

_MEMORY: Final = """\
The bounds are the most memory that psum should need. A worker needs one partition for each shard, which holds
its last sum, and the credit of each aggregator. The aggregators together need two partitions for each shard, for the
open round and the last sum, and what all workers have under way. Measured memory includes what allocators keep for
later, and contributions that wait for a late rank. Tensors in shared memory are the workers'; the aggregators, which
read them there, show them too.
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

    @property
    def processor(self) -> str:
        """The first part of `machine`, such as '2 cores of AMD EPYC'."""
        return self.machine.partition(", ")[0]


def key(experiment: str, result: Result) -> str:
    """Return the key of a result among all results: there is one for each experiment and processor."""
    return f"{experiment}, {result.processor}"


def _experiment(key: str) -> str:
    return key.partition(", ")[0]


def machine() -> str:
    """Describe this machine in one line."""
    try:
        version = importlib.metadata.version("psum")
    except importlib.metadata.PackageNotFoundError:
        version = "from source"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    # Caches and memory are those of the whole machine, also for runs that may use a part of it.
    all_cores = os.cpu_count() or 1
    part = f"of {all_cores} in the machine, " if len(os.sched_getaffinity(0)) < all_cores else ""
    return (
        f"{processor()}, {part}{memory:.0f} GiB, Linux"
        f" {platform.release().partition('-')[0]}, Python {platform.python_version()}, psum {version}"
    )


def load(file: pathlib.Path) -> dict[str, Result]:
    """Read the results of a file, by their keys. A missing file has none.

    Raises:
        ValueError, TypeError, AttributeError, KeyError: The file is not one that `save` of this version has written.
    """
    if not file.exists():
        return {}
    found: dict[str, Any] = json.loads(file.read_text())
    results = {}
    for name, fields in found.items():
        result = Result(**{**fields, "runs": [Run(**run) for run in fields["runs"]]})
        # Older files have one result for each experiment, by its name.
        results[key(_experiment(name), result)] = result
    return results


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
    ordered = {found: results[found] for name in EXPERIMENTS for found in results if _experiment(found) == name}
    save(directory / "benchmarks.json", ordered)
    plots: dict[str, list[pathlib.Path]] = {}
    for name, result in ordered.items():
        plots[name] = draw(result.runs, directory / "benchmarks", _file_name(name) + "-")
    page = directory / "benchmarks.md"
    text = render(ordered, {name: [f"benchmarks/{file.name}" for file in plots[name]] for name in plots})
    _, marker, appendix = page.read_text().partition(APPENDIX) if page.exists() else ("", "", "")
    page.write_text(f"{text}\n{marker}{appendix}" if marker else text)
    return [page, directory / "benchmarks.json", *(file for files in plots.values() for file in files)]


def render(results: Mapping[str, Result], plots: Mapping[str, Sequence[str]]) -> str:
    """Return the page.

    Args:
        results: The results by their keys.
        plots: The paths of each result's plots.
    """
    summaries = {name: summarise(result.runs) for name, result in results.items()}
    on = {name: result.processor for name, result in results.items()}
    parts = [_INTRODUCTION, "## Targets\n", _claims(summaries, on), "## Memory\n", _MEMORY, _memory(summaries, on)]
    for name, result in results.items():
        versions = dict.fromkeys(f"{run.variant} is of {run.version}" for run in result.runs if run.version)
        busy = Spread.of([run.load for run in result.runs])
        rounds = max(len(summary.runs) for summary in summaries[name])
        experiment = _experiment(name)
        parts.append(f"## {experiment}, {on[name]}\n\n{EXPERIMENTS[experiment].about}\n")
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


def _file_name(key: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(\w+\)", "", key.lower())).strip("-")


def _claims(summaries: Mapping[str, Sequence[Summary]], processors: Mapping[str, str]) -> str:
    rows = [
        "| experiment | case | system | figure | against | target | measured | | processor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, found in summaries.items():
        name = _experiment(key)
        for claim in EXPERIMENTS[name].claims:
            reached = claim.reached(found)
            measured = "not measured"
            if reached is not None:
                each = claim.by_round(found) or [reached]
                measured = Spread(reached, min(each), max(each)).show(4 if claim.target < 0.1 else 2)
            verdict = "" if reached is None else "reached" if claim.holds(reached) else "**missed**"
            wanted = f"{'≥' if claim.more_is_better else '≤'} {claim.target:g}"
            cells = (name, claim.case.title, claim.variant, _figure(claim), _against(claim), wanted, measured, verdict)
            rows.append("| " + " | ".join((*cells, processors[key])) + " |")
    return "\n".join(rows) + "\n"


def _memory(summaries: Mapping[str, Sequence[Summary]], processors: Mapping[str, str]) -> str:
    credit = Settings().credit_bytes
    rows = [
        "| experiment | case | system | MiB, worker | bound | MiB, aggregators | bound | processor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, summary in ((name, found) for name in summaries for found in _of_psum(summaries[name])):
        case, run = summary.case, summary.runs[0]
        payload = sum(sizes(case.workload)) * ElementType.of(run.dtype).itemsize
        under_way = credit * case.aggregators
        worker, servers = summary.spread("worker_mib"), summary.spread("aggregator_mib")
        cells = [
            _experiment(key),
            case.title,
            label(summary),
            "" if worker is None else worker.show(0),
            f"{(payload + under_way) / _MIB:.0f}",
            "" if servers is None else servers.show(0),
            f"{(2 * payload + under_way * case.workers) / _MIB:.0f}",
            processors[key],
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
