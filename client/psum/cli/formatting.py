"""Format values for people, and print to a terminal or a file."""

import sys
from collections.abc import Sequence
from typing import Final

from rich.console import Console

#: The most runs of consecutive ranks that are listed.
_MAX_RUNS: Final = 8

#: The width in pipes and files: wide enough for each table row to fit on one line.
_PLAIN_WIDTH: Final = 160


def console() -> Console:
    """Return a console for standard output."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)


def printable(text: str) -> str:
    """Replace unprintable characters: control characters in a name could make a terminal do anything."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def ranks(numbers: Sequence[int]) -> str:
    """Return ascending ranks as text, such as 'ranks 0-2, 7'."""
    return f"rank{'' if len(numbers) == 1 else 's'} {runs_of(numbers)}"


def runs_of(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text, such as '0-2, 7'."""
    runs: list[list[int]] = []
    for rank in numbers:
        if runs and runs[-1][-1] == rank - 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    listed = ", ".join("-".join(map(str, run)) for run in runs[:_MAX_RUNS])
    return f"{listed}{', …' if len(runs) > _MAX_RUNS else ''}"


def size(count: float) -> str:
    """Return a number of bytes as text, such as '1.5 MiB'."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        del units[0]
    return f"{count:.0f} {units[0]}" if units[0] == "B" or count >= 100 else f"{count:.1f} {units[0]}"


def seconds(count: float) -> str:
    """Return a time as text, such as '20 ms', '1.5 s' or '2 h 5 min'."""
    if count < 1:
        return f"{count * 1000:.0f} ms"
    if count < 60:
        return f"{count:.1f} s"
    minutes, rest = divmod(round(count), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
