"""The fleet as workers place keys on it: each listed aggregator stands for all of its processes.

Every rank derives the same fleet from the same list, because an aggregator tells all of them the same.
"""

import math
from collections.abc import Collection, Iterable, Sequence
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


def fleet_of(listed: Sequence[str], processes: Sequence[Processes]) -> list[tuple[str, ...]]:
    """The addresses of all processes of each aggregator, in the order of the list.

    The list may also have all processes of an aggregator. Then each counts as an aggregator.

    Args:
        listed: The addresses that workers list.
        processes: What each says of its processes.

    Raises:
        ConfigurationError: An address cannot be derived, or some processes of an aggregator are listed, and not all.
    """
    known = {canonical(address) for address in listed}
    found = [addresses_of(address, told) for address, told in zip(listed, processes, strict=True)]
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
    return found


def process_weights(weights: Sequence[int], counts: Sequence[int]) -> tuple[int, ...]:
    """The weights of all processes, if those of aggregators do not follow from their roles.

    Args:
        weights: A weight for each aggregator; empty: all are equal.
        counts: How many processes each has.

    Returns:
        A weight for each process; empty if all are equal and none were given.

    Raises:
        ConfigurationError: The numbers of processes make the weights' sum too large.
    """
    if len(set(counts)) == 1 and (not weights or counts[0] == 1):
        return tuple(weights)
    given = weights or (1,) * len(counts)
    found = shared(given, counts)
    if sum(found) > _MAX_TURNS:
        raise ConfigurationError(
            [
                f"the aggregators have {', '.join(map(str, counts))} processes (--processes), which share the weights"
                f" {', '.join(map(str, given))} (PSUM_AGGREGATOR_WEIGHTS): no exact shares with small whole numbers."
                " Give aggregators the same number of processes, or simpler weights"
            ]
        )
    return found


def aggregators_of(processes: Collection[int], counts: Iterable[int]) -> set[int]:
    """The aggregators that processes belong to, all by their indices.

    Args:
        processes: The processes.
        counts: How many processes each aggregator has.
    """
    owners = [aggregator for aggregator, count in enumerate(counts) for _ in range(count)]
    return {owners[process] for process in processes}


def shared(weights: Sequence[int], counts: Sequence[int]) -> tuple[int, ...]:
    """The weights of all processes, each with an equal part of its aggregator's weight, as small as possible.

    Args:
        weights: A weight for each aggregator.
        counts: How many processes each has.
    """
    common = math.lcm(*counts)
    parts = [weight * common // count for weight, count in zip(weights, counts, strict=True)]
    divisor = math.gcd(*parts)
    return tuple(part // divisor for part, count in zip(parts, counts, strict=True) for _ in range(count))
