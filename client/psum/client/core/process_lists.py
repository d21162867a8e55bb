"""The fleet as workers place keys on it: each listed aggregator stands for all of its processes.

Every rank derives the same fleet from the same list, because an aggregator tells all of them the same.
"""

import math
from collections.abc import Sequence
from typing import Final

from psum.wire import canonical, split_address
from psum.wire.errors import ConfigurationError

#: Placement makes a list of as many entries as the weights' sum.
_MAX_TURNS: Final = 1 << 20

#: Of each process of an aggregator, its addresses; see GetStatusResponse.processes.
Processes = Sequence[Sequence[str]]


def addresses_of(listed: str, processes: Processes) -> tuple[str, ...]:
    """The addresses by which this worker reaches the processes of an aggregator.

    Args:
        listed: The address by which the worker knows it, which is the first process's.
        processes: What the first process says; empty if it is the only one.

    Raises:
        ConfigurationError: The others' addresses cannot be derived from the listed one.
    """
    if len(processes) < 2:
        return (listed,)
    known = processes[0]
    if listed.startswith("unix:"):
        sockets = [number for number, address in enumerate(known) if address.startswith("unix:")]
        # The path may be another one here, as in a container that mounts the socket's directory elsewhere.
        same = [number for number in sockets if known[number] == listed] or sockets[:1]
        if same:
            return tuple(listed + process[same[0]].removeprefix(known[same[0]]) for process in processes)
    else:
        host, _, port = listed.rpartition(":")
        for number, address in enumerate(known):
            if not address.startswith("unix:") and address.rpartition(":")[2] == port:
                return tuple(f"{host}:{split_address(process[number])[1]}" for process in processes)
    raise ConfigurationError(
        [
            f"aggregator {listed} has {len(processes)} processes (--processes), and its first one listens on"
            f" {', '.join(known)}: the addresses of the others cannot be derived from {listed}. A proxy or a mapping of"
            " ports must keep the port numbers. Otherwise start aggregators with --processes 1, and list each"
        ]
    )


def fleet_of(
    listed: Sequence[str], weights: Sequence[int], processes: Sequence[Processes]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """All processes of a fleet in the order of the list, and their weights.

    The processes of an aggregator share its weight evenly. The list may also have all of its processes.

    Args:
        listed: The addresses that workers list.
        weights: A weight for each; empty: all are equal.
        processes: What each says of its processes.

    Returns:
        The addresses, and a weight for each. No weights if all are equal and none were given.

    Raises:
        ConfigurationError: An address cannot be derived, a process is listed too, or the numbers of processes make the
            weights' sum too large.
    """
    known = {canonical(address) for address in listed}
    found = [addresses_of(address, told) for address, told in zip(listed, processes, strict=True)]
    # Somebody may list all processes. Then each is an aggregator with a weight of its own.
    found = [(each[0],) if all(canonical(process) in known for process in each) else each for each in found]
    owners: dict[str, str] = {}
    for address, reached in zip(listed, found, strict=True):
        for process in reached:
            if (other := owners.setdefault(canonical(process), address)) != address:
                raise ConfigurationError(
                    [
                        f"PSUM_AGGREGATORS lists {address} and {other}, and {process} belongs to both: list an"
                        " aggregator with several processes once, by its first address, or list all of its processes"
                    ]
                )
    counts = [len(reached) for reached in found]
    addresses = tuple(process for reached in found for process in reached)
    if len(addresses) == len(listed) or (not weights and len(set(counts)) == 1):
        return addresses, tuple(weights)
    parts = shares(weights or [1] * len(counts), counts)
    each = tuple(part for part, count in zip(parts, counts, strict=True) for _ in range(count))
    if sum(each) > _MAX_TURNS:
        raise ConfigurationError(
            [
                f"the aggregators have {', '.join(map(str, counts))} processes (--processes), which share the weights"
                f" {', '.join(map(str, weights or [1] * len(counts)))} (PSUM_AGGREGATOR_WEIGHTS): no exact shares with"
                " small whole numbers. Give aggregators the same number of processes, or simpler weights"
            ]
        )
    return addresses, each


def aggregators_of(listed: Sequence[str], addresses: Sequence[str], processes: Sequence[Processes]) -> tuple[int, ...]:
    """For each process of a fleet, the number of its aggregator, counted from 0 in the order of the first processes.

    Ranks that list the same addresses in different ways, the first process or all of them, get the same numbers.

    Args:
        listed: The addresses that workers list.
        addresses: The addresses of all processes, from `fleet_of`.
        processes: What each listed one says of its processes.
    """
    first: dict[str, str] = {}
    for address, told in zip(listed, processes, strict=True):
        for process in addresses_of(address, told) if len(told) > 1 else ():
            first[canonical(process)] = canonical(address)
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(first.get(canonical(each), canonical(each)), len(numbers)) for each in addresses)


def shares(weights: Sequence[int], counts: Sequence[int]) -> tuple[int, ...]:
    """For each aggregator, the weight of each of its processes, which share the aggregator's; as small as possible.

    Args:
        weights: A weight for each aggregator, at least one of which is not 0.
        counts: How many processes each has.
    """
    common = math.lcm(*counts)
    parts = [weight * common // count for weight, count in zip(weights, counts, strict=True)]
    divisor = math.gcd(*parts)
    return tuple(part // divisor for part in parts)
