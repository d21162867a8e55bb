"""The roles of aggregators: which run beside workers, and the weights that follow.

A worker knows only which aggregators are on its own host. So each reports that, as numbers that can be added, and all
ranks compute the weights from the sum of the reports, which is the same for all.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from psum.client.core.link_shares import Fleet, Host, small_weights


def report(aggregators: int, beside: Collection[int], *, is_member: bool = True) -> npt.NDArray[np.int64]:
    """A worker's report, as 64-bit integers.

    For each aggregator, whether it is on the worker's host: 1 or 0. Then, for each of these, a number for the host: the
    index of the first aggregator there, plus 1. Last, a 1 for the worker itself.

    Args:
        aggregators: How many aggregators there are.
        beside: The indices of those on the worker's host.
        is_member: Whether the worker counts. Only one of the workers that share a relay does; the others report zeros.
    """
    numbers = np.zeros(2 * aggregators + 1, np.int64)
    if is_member:
        for index in beside:
            numbers[index] = 1
            numbers[aggregators + index] = 1 + min(beside)
        numbers[-1] = 1
    return numbers


def weights_of(total: Sequence[int]) -> tuple[int, ...]:
    """The weights of all aggregators, from the sum of all reports. All are 1 if no aggregator is beside a worker.

    A weight of 0 is that of an aggregator that is to own nothing.
    """
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


def link_shares(weights: Sequence[int], beside: Collection[int]) -> tuple[float, ...]:
    """Each aggregator's share of the bytes that a worker exchanges with other hosts and with that aggregator.

    An aggregator on another host has its part of what crosses the worker's link. The other end of its connection has
    the same share, since as many bytes come back as are sent.

    Args:
        weights: The weights of all aggregators.
        beside: The indices of those on the worker's host.
    """
    elsewhere = sum(weight for index, weight in enumerate(weights) if index not in beside)
    return tuple(weight / (elsewhere + weight) if weight else 0.0 for weight in weights)
