"""Names of keys and ranks in text for people."""

from collections.abc import Iterable
from typing import Final

#: The most runs of ranks that a sentence names. A stranger may claim any ranks, and the log is for people. The name by
#: which a relay introduces itself has ranks in it too, and a name's length is limited.
_MOST_RUNS: Final = 12


def titled(name: str, label: str) -> str:
    """Return the name for sentences, such as "'0' (dense0_weight)", or "'w'" without a label."""
    return f"{name!r} ({label})" if label else repr(name)


def captioned(name: str, label: str) -> str:
    """Return the name for tables and pictures, such as "0 (dense0_weight)", or "w" without a label."""
    return f"{name} ({label})" if label else name


def rank_names(ranks: Iterable[int]) -> str:
    """Return ranks for sentences, such as "rank 5" or "ranks 1, 4-7". They are in ascending order.

    Of ranks with many gaps, only the first ones are named: "ranks 0, 2, 4 and 997 more".
    """
    runs: list[list[int]] = []
    more = 0
    for rank in ranks:
        if runs and not more and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        elif len(runs) < _MOST_RUNS:
            runs.append([rank, rank])
        else:
            more += 1
    several = len(runs) > 1 or any(first != last for first, last in runs)
    names = [f"{first}-{last}" if first < last else str(first) for first, last in runs]
    return f"rank{'s' if several else ''} {', '.join(names)}{f' and {more} more' if more else ''}"
