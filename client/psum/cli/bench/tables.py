"""Show results for people: as tables on a terminal, otherwise as lines."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from psum.cli.bench.runs import FIGURES, Spread, Summary


def show(summaries: Sequence[Summary]) -> None:
    """Print each case with all its systems."""
    console = Console(highlight=False) if sys.stdout.isatty() else None
    for case in dict.fromkeys(summary.case for summary in summaries):
        compared = [summary for summary in summaries if summary.case == case]
        if console is None:
            print("\n".join(lines(compared)))
        else:
            console.print(title(compared), soft_wrap=True)
            console.print(table(compared))


def title(summaries: Sequence[Summary]) -> str:
    """Return a headline with the case, the number of rounds, the machine and its load."""
    rounds = max(len(summary.runs) for summary in summaries)
    often = f", median (lowest-highest) of {rounds} rounds" if rounds > 1 else ""
    runs = [run for summary in summaries for run in summary.runs]
    load = Spread.of([run.load for run in runs])
    # Some systems and planes may have been given more than others.
    given = dict.fromkeys(word for run in runs for word in run.environment.split())
    about = "; ".join(filter(None, (runs[0].processor, " ".join(given))))
    return f"{summaries[0].case.title}{often}; {about}; load average {load.show(1)}"


def label(summary: Summary) -> str:
    """Return the name of a system. For psum auto, include the plane that it chose."""
    plane = summary.runs[0].plane
    return summary.variant.replace("psum auto", f"psum auto ({plane})", 1)


def lines(summaries: Sequence[Summary]) -> list[str]:
    """Return one case as lines of text."""
    found = [title(summaries)]
    for summary in summaries:
        found.append(label(summary))
        found += [
            f"  {name}: {spread.show(decimals)}"
            for figure, name, decimals in FIGURES
            if (spread := summary.spread(figure)) is not None
        ]
    return found


def table(summaries: Sequence[Summary]) -> Table:
    """Return one case with a row per figure and a column per system. Five systems fit in a common terminal."""
    shown = Table()
    shown.add_column(style="bold")
    for summary in summaries:
        shown.add_column(label(summary), justify="right")
    for figure, name, decimals in FIGURES:
        spreads = [summary.spread(figure) for summary in summaries]
        if any(spread is not None for spread in spreads):
            cells = ["" if spread is None else spread.show(decimals) for spread in spreads]
            shown.add_row(name, *(cell.replace(" (", "\n(") for cell in cells))
    return shown
