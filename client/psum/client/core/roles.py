"""The roles of aggregators: which run beside workers, and the weights that follow.

A worker knows only which aggregators are on its own host. So each reports that, as numbers that can be added, and all
ranks compute the weights from the sum of the reports, which is the same for all.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from psum.client.core.link_shares import Fleet, Host, small_weights
from psum.client.core.process_lists import shares

#: The most turns of placement for each process, on average.
_TURNS_EACH: Final = 64


class Aggregators:
    """The aggregators of a fleet, each of one process or of several.

    A host's link is one, however many processes use it. So ranks report, and weights are found, for aggregators as if
    each was one process, and its processes share its weight evenly.

    Args:
        numbers: For each process, as placement knows them, the number of its aggregator. Aggregators are numbered from
            0 in the order of their first processes.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = tuple(numbers)
        self._count = len(set(self._numbers))

    def __len__(self) -> int:
        """How many processes there are."""
        return len(self._numbers)

    def report(self, beside: Collection[int], *, is_member: bool = True) -> npt.NDArray[np.int64]:
        """A worker's report, as 64-bit integers.

        For each aggregator, whether it is on the worker's host: 1 or 0. Then, for each of these, a number for the host:
        the index of the first aggregator there, plus 1. Last, a 1 for the worker itself.

        Args:
            beside: The indices of the processes on the worker's host. Some of an aggregator's are as good as all.
            is_member: Whether the worker counts. Only one of the workers that share a relay does; the others report
                zeros.
        """
        numbers = np.zeros(2 * self._count + 1, np.int64)
        if is_member:
            here = {self._numbers[process] for process in beside}
            for index in here:
                numbers[index] = 1
                numbers[self._count + index] = 1 + min(here)
            numbers[-1] = 1
        return numbers

    def weights_of(self, total: Sequence[int]) -> tuple[int, ...]:
        """The weights of all processes, from the sum of all reports.

        A weight of 0 is that of a process that is to own nothing.
        """
        counts = Counter(self._numbers)
        each = shares(_weights_of(total), [counts[number] for number in range(self._count)])
        turns = sum(each[number] for number in self._numbers)
        if turns > (most := _TURNS_EACH * len(self)):
            # Exact shares of aggregators with very different numbers of processes can take far too many turns.
            each = tuple((2 * part * most + turns) // (2 * turns) for part in each)
        return tuple(each[number] for number in self._numbers)

    def link_shares(self, weights: Sequence[int], beside: Collection[int], total: Sequence[int]) -> tuple[float, ...]:
        """For each process, which share its connection has of the bytes on the link between the hosts.

        The worker's link carries what it sends to other hosts, and what the aggregators beside it send to the other
        members. The aggregator's link carries the bytes of all members, or more. The share is the lesser of the two. It
        is the same in both directions, since as many bytes come back as are sent.

        Args:
            weights: The weights of all processes.
            beside: The indices of those on the worker's host.
            total: The sum of all reports.

        Returns:
            The shares, from 0 to 1. That of a process on the worker's host means nothing.
        """
        members = max(total[-1], *total[: self._count], 1)
        whole = sum(weights)
        of_aggregator = Counter[int]()
        for number, weight in zip(self._numbers, weights, strict=True):
            of_aggregator[number] += weight
        own = sum(weights[index] for index in beside) / whole
        carried = (1 - own) + own * (members - 1)
        return tuple(
            weight / max(whole * carried, members * of_aggregator[number]) if weight else 0.0
            for number, weight in zip(self._numbers, weights, strict=True)
        )


def _weights_of(total: Sequence[int]) -> tuple[int, ...]:
    """The weights of all aggregators. All are 1 if no aggregator is beside a worker."""
    count = len(total) // 2
    beside, named = total[:count], total[count : 2 * count]
    # Reports that contradict each other must lead to some weights too, and to the same on all ranks.
    host_of = {index: named[index] // beside[index] for index in range(count) if beside[index]}
    if not host_of:
        return (1,) * count
    members: defaultdict[int, int] = defaultdict(int)
    for index, host in host_of.items():
        members[host] = max(members[host], beside[index])
    aggregators = Counter(host_of.values())
    kinds = {host: Host(members[host], aggregators[host]) for host in members}
    fleet = Fleet(Counter(kinds.values()), count - len(host_of), max(total[-1], *beside))
    weights, dedicated = small_weights(fleet)
    return tuple(weights[kinds[host_of[index]]] if index in host_of else dedicated for index in range(count))
