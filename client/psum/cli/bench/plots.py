"""Draw results as SVG with matplotlib."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from psum.cli.bench.cases import Case, count
from psum.cli.bench.runs import Run, Spread, Summary, summarise
from psum.cli.bench.workloads import sizes

_MISSING: Final = "plots need matplotlib, which is not installed: pip install 'psum[bench]'"

#: Colours that colour-blind people can distinguish (Okabe and Ito).
_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999999", "#f0e442")

_SIZE: Final = (8.0, 4.2)


class NoPlotsError(Exception):
    """matplotlib is not installed. The text says how to install it."""


def check() -> None:
    """Check that plots can be drawn.

    Raises:
        NoPlotsError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise NoPlotsError(_MISSING) from None


def draw(runs: Sequence[Run], directory: pathlib.Path, prefix: str = "") -> list[pathlib.Path]:
    """Draw throughput, latency if it was measured, and scaling if job sizes differ.

    Returns:
        The files, named after their content.

    Raises:
        NoPlotsError: matplotlib is not installed.
    """
    check()
    directory.mkdir(parents=True, exist_ok=True)
    summaries = summarise(runs)
    drawn = []
    for name, plot in (
        ("throughput", throughput),
        ("latency", latency),
        ("scaling-workers", scaling_over_workers),
        ("scaling-aggregators", scaling_over_aggregators),
    ):
        file = directory / f"{prefix}{name}.svg"
        if plot(summaries, file):
            drawn.append(file)
    return drawn


def throughput(summaries: Sequence[Summary], file: pathlib.Path) -> bool:
    """Draw GB/s per worker as bars, grouped by case, with whiskers from the lowest to the highest.

    Returns:
        Whether there was anything to draw.
    """
    cases = list(dict.fromkeys(summary.case for summary in summaries))
    if not cases:
        return False
    by_place = {(summary.case, summary.variant): summary for summary in summaries}
    with _figure(file, height=1.2 + 0.34 * len(summaries) + 0.2 * len(cases)) as axes:
        place, places = 0.0, []
        colours = _colours(summaries)
        for case in cases:
            found = [(variant, by_place[case, variant]) for variant in colours if (case, variant) in by_place]
            places.append(place + (len(found) - 1) / 2)
            for variant, summary in found:
                spread = _spread(summary, "gb_per_s_per_worker")
                whisker = [[spread.median - spread.lowest], [spread.highest - spread.median]]
                axes.barh(place, spread.median, color=colours[variant], xerr=whisker, ecolor="#444444", capsize=2)
                axes.text(spread.highest, place, f"  {spread.median:.2g}", va="center", fontsize=8)
                place += 1
            place += 0.7
        axes.set_yticks(places, [_short(case) for case in cases])
        axes.invert_yaxis()
        axes.set_xlabel("GB/s per worker, median; whiskers: lowest and highest")
        axes.set_ylabel("workload, workers / aggregators")
        axes.margins(x=0.12)
        _legend(axes, colours)
    return True


def latency(summaries: Sequence[Summary], file: pathlib.Path) -> bool:
    """Draw the time from each tensor's push-pull until it can be read, by urgency, for the largest measured case.

    Returns:
        Whether there was anything to draw.
    """
    measured = [summary for summary in summaries if summary.latency_ms()]
    if not measured:
        return False
    case = max((summary.case for summary in measured), key=lambda case: sum(sizes(case.workload)))
    with _figure(file) as axes:
        colours = _colours(measured)
        for summary in measured:
            if summary.case == case:
                axes.plot(summary.latency_ms(), color=colours[summary.variant], label=summary.variant, linewidth=1.4)
        axes.set_xlabel("tensor, the most urgent first; it is pushed last")
        axes.set_ylabel("ms from its push-pull until it can be read")
        axes.set_title(case.title, fontsize=10)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
    return True


def scaling_over_workers(summaries: Sequence[Summary], file: pathlib.Path) -> bool:
    """Draw the total throughput over the number of workers. Returns as `throughput` does."""
    return _scaling(summaries, file, "workers", "servers")


def scaling_over_aggregators(summaries: Sequence[Summary], file: pathlib.Path) -> bool:
    """Draw the total throughput over the number of aggregators. Returns as `throughput` does."""
    return _scaling(summaries, file, "servers", "workers")


def _scaling(summaries: Sequence[Summary], file: pathlib.Path, over: str, fixed: str) -> bool:
    lines: dict[tuple[str, str, int], dict[int, Spread]] = {}
    for summary in summaries:
        run = summary.runs[0]
        # Runs on simulated hosts are not comparable with the others.
        if run.hosts == 1:
            spread = _spread(summary, "gb_per_s_per_worker")
            workers = run.workers
            total = Spread(spread.median * workers, spread.lowest * workers, spread.highest * workers)
            lines.setdefault((summary.variant, run.workload, getattr(run, fixed)), {})[getattr(run, over)] = total
    # A line needs at least two points.
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not lines:
        return False
    with _figure(file) as axes:
        for (variant, workload, other), points in lines.items():
            places = sorted(points)
            medians = [points[place].median for place in places]
            whiskers = [
                [points[place].median - points[place].lowest for place in places],
                [points[place].highest - points[place].median for place in places],
            ]
            name = f"{variant}, {workload}, {count(other, 'worker' if fixed == 'workers' else 'aggregator')}"
            axes.errorbar(places, medians, yerr=whiskers, marker="o", capsize=3, label=name)
        axes.set_xticks(sorted({place for points in lines.values() for place in points}))
        axes.set_xlabel("workers" if over == "workers" else "aggregators or servers")
        axes.set_ylabel("GB/s of all workers together")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7)
    return True


@contextlib.contextmanager
def _figure(file: pathlib.Path, height: float = _SIZE[1]) -> Iterator[Any]:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Keep text as text, and make the file reproducible.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "psum", "font.size": 9, "axes.axisbelow": True}):
        figure = Figure(figsize=(_SIZE[0], height), layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_prop_cycle(color=_COLOURS)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        yield axes
        figure.savefig(file, format="svg", metadata={"Date": None})


def _legend(axes: Any, colours: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    axes.legend(handles=[Patch(color=colour, label=name) for name, colour in colours.items()], fontsize=8)


def _colours(summaries: Sequence[Summary]) -> dict[str, str]:
    variants = dict.fromkeys(summary.variant for summary in summaries)
    return {variant: _COLOURS[index % len(_COLOURS)] for index, variant in enumerate(variants)}


def _short(case: Case) -> str:
    hosts = f", {case.hosts} hosts" if case.hosts > 1 else ""
    return f"{case.workload}\n{case.workers} / {case.aggregators}{hosts}"


def _spread(summary: Summary, figure: str) -> Spread:
    spread = summary.spread(figure)
    assert spread is not None
    return spread
