"""The roll call of an elastic job: a small sum in which each member has a row of its own.

All members read the same table, and apply the functions of this module to it. So they agree on who is a member, who
leaves, and who is admitted, without a vote.
"""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.int64]
"""The sum: a row for each rank that the job may have, in which a rank that has not contributed has only zeros."""

#: The numbers of a row: incarnation, flags, candidate's rank + 1, candidate's incarnation.
COLUMNS: Final = 4

_PRESENT: Final = 1
_LEAVING: Final = 2
_READY: Final = 4


class Process(NamedTuple):
    """One process of a rank.

    Attributes:
        rank: The rank.
        incarnation: The number of the process, from 0 to 2^64 - 1.
    """

    rank: int
    incarnation: int


class Row(NamedTuple):
    """What one member says.

    Attributes:
        incarnation: The number of its process.
        leaving: Whether it leaves at this boundary.
        ready: Whether it has the state of the others. Only a process that is about to join has not.
        candidate: The process that it would admit, None if it knows of none.
    """

    incarnation: int
    leaving: bool = False
    ready: bool = True
    candidate: Process | None = None


class Reading(NamedTuple):
    """What all members read in a table.

    Attributes:
        rows: The rows of those who have contributed, by rank, in ascending order.
        members: The ranks that are members after the boundary: those with a row that do not leave, ascending.
        leaving: The ranks that leave at the boundary.
        admitted: The process that all members name, and so admit; None if there is none.
    """

    rows: Mapping[int, Row]
    members: tuple[int, ...]
    leaving: frozenset[int]
    admitted: Process | None


def contribution(ranks: int, rank: int, row: Row) -> Table:
    """What one member contributes.

    Args:
        ranks: The most ranks that the job may have.
        rank: The member's rank.
        row: What it says.

    Returns:
        A new table, zero except for the member's row.
    """
    table = np.zeros((ranks, COLUMNS), np.int64)
    numbers = table.view(np.uint64)[rank]
    numbers[0] = row.incarnation
    numbers[1] = _PRESENT | (_LEAVING if row.leaving else 0) | (_READY if row.ready else 0)
    if row.candidate is not None:
        numbers[2:] = row.candidate.rank + 1, row.candidate.incarnation
    return table


def read(table: Table) -> Reading:
    """Reads a table.

    Most tables are the same as that of the step before. Such a table is not read again, because a job of a thousand
    ranks would take more than a millisecond for it in each step.
    """
    return _read(table.tobytes())


def donors(rows: Mapping[int, Row]) -> tuple[int, ...]:
    """The members that have the state, in the order in which they are asked for it. Those who leave come last."""
    return tuple(sorted((rank for rank, row in rows.items() if row.ready), key=lambda r: (rows[r].leaving, r)))


# A process may have a few clients, each in a job of its own.
@functools.lru_cache(maxsize=4)
def _read(table: bytes) -> Reading:
    numbers = np.frombuffer(table, np.uint64).reshape(-1, COLUMNS)
    rows = {}
    for rank in np.flatnonzero(numbers[:, 1]).tolist():
        incarnation, flags, named, process = numbers[rank].tolist()
        candidate = Process(named - 1, process) if named else None
        rows[rank] = Row(incarnation, bool(flags & _LEAVING), bool(flags & _READY), candidate)
    leaving = frozenset(rank for rank, row in rows.items() if row.leaving)
    named_by_members = {row.candidate for row in rows.values()}
    candidate = named_by_members.pop() if len(named_by_members) == 1 else None
    return Reading(
        rows=MappingProxyType(rows),
        members=tuple(rank for rank in rows if rank not in leaving),
        leaving=leaving,
        # The process before it may be a member still, if the rank has a row.
        admitted=None if candidate is None or candidate.rank in rows else candidate,
    )
