"""The shares of the bytes with which the busiest link of a fleet carries as little as possible.

All links have the same rate in each direction. A member is a worker, or a relay that stands for all workers of its
host. A host with m of the fleet's N members, whose aggregators own a share x of the bytes, sends m·(1 - x) for its
members, and (N - m)·x as results for the others: m + (N - 2m)·x. It receives as much. A dedicated aggregator with a
share y carries N·y.

With one member on each of n >= 3 hosts, and k <= n dedicated aggregators, these are the shares of section 4 of the
BytePS paper (OSDI 2020): (n - k) / (n² + kn - 2k) beside a member, and 2(n - 1) / (n² + kn - 2k) for a dedicated one.
With n = 2 too the links are as full as with those, but so they are with any shares. Then, what crosses least is best:
the two hosts own everything. Their flows do not have to share the dedicated aggregators' links, and a step takes a
fifth less time than with those shares.
"""

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Final

#: How much more than the least possible the busiest link may carry, so that weights are small.
_TOLERANCE: Final = Fraction(101, 100)

#: The most turns for each aggregator, on average. With it, the busiest link carries at most 4 % more than the least.
_TURNS_EACH: Final = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """What a host with members and aggregators has.

    Attributes:
        members: How many send by themselves.
        aggregators: How many aggregators run there.
    """

    members: int
    aggregators: int


@dataclasses.dataclass(frozen=True, slots=True)
class Fleet:
    """Where members and aggregators run.

    Attributes:
        hosts: How many hosts with members and aggregators there are of each kind, at least one.
        dedicated: How many aggregators run on hosts of their own.
        members: How many members there are, also on hosts without aggregators.
    """

    hosts: Mapping[Host, int]
    dedicated: int
    members: int

    def slope(self, host: Host) -> int:
        """What a whole share adds to the bytes on a host's link, as a multiple of the payload."""
        return self.members - 2 * host.members

    def busiest(self, shares: "Shares") -> Fraction:
        """What the busiest link to an aggregator carries in one direction, as a multiple of the payload."""
        loads = [host.members + self.slope(host) * share for host, share in shares.hosts.items()]
        return max([*loads, self.members * shares.dedicated if self.dedicated else Fraction(0)])


@dataclasses.dataclass(frozen=True, slots=True)
class Shares:
    """How the bytes are divided. All shares together are 1.

    Attributes:
        hosts: The share of a host of each kind, of all its aggregators together.
        dedicated: The share of a dedicated aggregator.
    """

    hosts: Mapping[Host, Fraction]
    dedicated: Fraction


def best_shares(fleet: Fleet) -> Shares:
    """The shares with which the busiest link carries the least.

    Hosts without aggregators need not be known: their links carry the same with any shares.
    """
    hosts, dedicated, members = fleet.hosts, fleet.dedicated, fleet.members
    slopes = {host: fleet.slope(host) for host in hosts}
    if min(slopes.values()) <= 0:
        # With most of the members on one host, its link carries less the more it owns. With half of them, it carries
        # the same whatever it owns, and all other links carry less the more it owns.
        owners = {host: count if slopes[host] <= 0 else 0 for host, count in hosts.items()}
        return Shares({host: Fraction(bool(n), sum(owners.values())) for host, n in owners.items()}, Fraction(0))
    # All links are equally full, unless the members of some host fill its link by themselves.
    members_of_all = sum(Fraction(host.members * count, slopes[host]) for host, count in hosts.items())
    rooms = Fraction(dedicated, members) + sum(Fraction(count, slopes[host]) for host, count in hosts.items())
    level = max(Fraction(max(host.members for host in hosts)), (1 + members_of_all) / rooms)
    each = min(level / members, Fraction(1, dedicated)) if dedicated else Fraction(0)
    room = {host: (level - host.members) / slope for host, slope in slopes.items()}
    rest, whole = 1 - dedicated * each, sum(room[host] * count for host, count in hosts.items())
    return Shares({host: rest * part / whole if rest else Fraction(0) for host, part in room.items()}, each)


def small_weights(fleet: Fleet) -> tuple[Mapping[Host, int], int]:
    """Small whole weights with which the busiest link carries as little as possible, or at most 1 % more.

    Large weights would make the placement costly, and uneven: an aggregator gets its share of small keys only where
    there are many more keys than turns.

    Returns:
        The weight of each aggregator on a host of each kind, and that of a dedicated aggregator.
    """
    best = best_shares(fleet)
    each = {host: share / host.aggregators for host, share in best.hosts.items()}
    largest = max(*each.values(), best.dedicated)
    aggregators = fleet.dedicated + sum(host.aggregators * count for host, count in fleet.hosts.items())
    found: tuple[Fraction, Mapping[Host, int], int] | None = None
    for most in range(1, _TURNS_EACH * aggregators + 1):
        weights = {host: round(share * most / largest) for host, share in each.items()}
        dedicated = round(best.dedicated * most / largest)
        turns = fleet.dedicated * dedicated
        turns += sum(weights[host] * host.aggregators * count for host, count in fleet.hosts.items())
        if found is not None and turns > _TURNS_EACH * aggregators:
            break
        shares = {host: Fraction(weights[host] * host.aggregators, turns) for host in weights}
        load = fleet.busiest(Shares(shares, Fraction(dedicated, turns)))
        if found is None or load < found[0]:
            found = load, weights, dedicated
        if load <= _TOLERANCE * fleet.busiest(best):
            break
    assert found is not None
    return found[1:]
