"""Tables for people: Markdown tables of runs, and tables of how full the links were over time."""

from collections.abc import Iterator, Sequence
from typing import Final

from tests.bench.netlab.runs import FIGURES, Summary, Trace

#: Number of rows for each step in a table over time.
_ROWS_PER_STEP: Final = 20


def markdown(summaries: Sequence[Summary]) -> str:
    """A table with a row for each case and system."""
    figures = [figure for figure in FIGURES if any(summary.spread(figure[0]) for summary in summaries)]
    rows = [
        "| hosts | workers | dedicated | Mbit/s | workload | system | "
        + " | ".join(title for _, title, _ in figures)
        + " |",
        "|---|---|---|---|---|---|" + "---|" * len(figures),
    ]
    for summary in summaries:
        case = summary.case
        spreads = [(summary.spread(name), decimals) for name, _, decimals in figures]
        cells = [
            _hosts(summary),
            str(case.placement.local),
            str(case.placement.dedicated),
            f"{case.mbit:g}",
            case.workload,
            _system(summary),
            *("" if spread is None else spread.show(decimals) for spread, decimals in spreads),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def watch(trace: Trace, bytes_per_second: float) -> Iterator[str]:
    """Yields the lines of a table of how full each host's link was over the timed steps, in percent.

    A row shows a twentieth of a step. Its last column names the ranks that ended a step within that time.
    """
    hosts = range(len(trace.samples.carried(trace.begin, trace.end)))
    first, last = trace.timed
    rows = _ROWS_PER_STEP * (last - first)
    interval = (trace.end - trace.begin) / rows
    header = "".join(f"{host:4}" for host in hosts)
    yield f"{'s':>7}  out of host:{header}  into host:{header}  what the ranks did"
    for number in range(rows):
        begin = trace.begin + number * interval
        full = trace.samples.fullness(begin, begin + interval, bytes_per_second)
        out, into = ("".join(f"{100 * pair[way]:4.0f}" for pair in full) for way in (0, 1))
        events = ", ".join(_events(trace, begin, begin + interval))
        yield f"{begin - trace.begin:7.2f}              {out}            {into}  {events}".rstrip()


def _events(trace: Trace, begin: float, end: float) -> Iterator[str]:
    """Yields which ranks ended a timed step between two times, as '0, 2 ended step 1'."""
    first, last = trace.timed
    for step in range(first, last):
        ranks = [rank for rank, steps in enumerate(trace.steps) if begin < steps[step][1] <= end]
        if ranks:
            yield f"{', '.join(map(str, ranks))} ended step {step - first}"


def _hosts(summary: Summary) -> str:
    placement = summary.case.placement
    return f"{placement.hosts}" if placement.beside else f"{placement.hosts} without aggregators"


def _system(summary: Summary) -> str:
    """The system's name, with the planes that psum chose where it had the choice, and psum's settings."""
    run = summary.runs[0]
    name = summary.variant.replace("psum auto", f"psum auto ({run.plane})", 1)
    return " ".join([name, *(f"{variable}={value}" for variable, value in run.settings.items())])
