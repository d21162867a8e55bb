"""Names of keys and ranks in text for people."""

from collections.abc import Iterable
from typing import Final

#: The most runs of ranks that are named. A group may have thousands of ranks, also in a hello that is refused.
_MAX_RUNS: Final = 8


def titled(name: str, label: str) -> str:
    """Return the name for sentences, such as "'0' (dense0_weight)", or "'w'" without a label."""
    return f"{name!r} ({label})" if label else repr(name)


def captioned(name: str, label: str) -> str:
    """Return the name for tables and pictures, such as "0 (dense0_weight)", or "w" without a label."""
    return f"{name} ({label})" if label else name


def rank_names(ranks: Iterable[int]) -> str:
    """Return ranks for sentences, such as "rank 5", "ranks 1, 4-7" or, of many, "ranks 0, 2, … and 90 more".

    They are in ascending order.
    """
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    several = len(runs) > 1 or any(first != last for first, last in runs)
    names = [f"{first}-{last}" if first < last else str(first) for first, last in runs[:_MAX_RUNS]]
    unnamed = sum(last - first + 1 for first, last in runs[_MAX_RUNS:])
    more = f" and {unnamed} more" if unnamed else ""
    return f"rank{'s' if several else ''} {', '.join(names)}{more}"
