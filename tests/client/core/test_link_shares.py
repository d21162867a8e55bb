"""The shares of the bytes with which links carry the least, and the whole weights near them."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psum.client.core.link_shares import Fleet, Host, Shares, best_shares, small_weights
from tests.bench.netlab.bound import least_link_bytes, shares
from tests.bench.netlab.placement import Placement

fleets = st.builds(
    lambda hosts, dedicated, others: Fleet(
        {host: count for host, count in hosts.items()},
        dedicated,
        others + sum(host.members * count for host, count in hosts.items()),
    ),
    st.dictionaries(st.builds(Host, st.integers(1, 4), st.integers(1, 3)), st.integers(1, 5), min_size=1, max_size=3),
    st.integers(0, 6),
    st.integers(0, 6),
)


def total(fleet: Fleet, divided: Shares) -> Fraction:
    """All shares together."""
    beside = sum(divided.hosts[host] * count for host, count in fleet.hosts.items())
    return beside + fleet.dedicated * divided.dedicated


def weighted(fleet: Fleet) -> Shares:
    """The shares that small weights give."""
    weights, dedicated = small_weights(fleet)
    turns = fleet.dedicated * dedicated
    turns += sum(weights[host] * host.aggregators * count for host, count in fleet.hosts.items())
    beside = {host: Fraction(weight * host.aggregators, turns) for host, weight in weights.items()}
    return Shares(beside, Fraction(dedicated, turns))


@pytest.mark.parametrize("members", [1, 3])
def test_hosts_with_an_aggregator_each_have_the_shares_of_the_formula(members: int) -> None:
    """They reach the bound of the lab, also if the workers of a host do not share a relay: then all counts are as
    many times larger."""
    host = Host(members, 1)
    for n in range(3, 20):
        for k in range(n + 1):
            placement, fleet = Placement(n, dedicated=k), Fleet({host: n}, k, n * members)
            best = best_shares(fleet)
            beside, dedicated = shares(placement)
            assert float(best.hosts[host]) == pytest.approx(beside)
            assert float(best.dedicated) == pytest.approx(dedicated if k else 0)
            assert float(fleet.busiest(best)) == pytest.approx(members * least_link_bytes(placement, 1000) / 1000)


def test_more_dedicated_aggregators_than_hosts_own_everything() -> None:
    """The workers' links are full then, and carry each byte once."""
    fleet = Fleet({Host(1, 1): 3}, 5, 3)
    assert best_shares(fleet) == Shares({Host(1, 1): Fraction(0)}, Fraction(1, 5))
    assert fleet.busiest(best_shares(fleet)) == 1


def test_two_hosts_own_everything_themselves() -> None:
    """Whatever dedicated aggregators would own, the two hosts' links carry each byte once in each direction."""
    host = Host(1, 1)
    for dedicated in range(4):
        fleet = Fleet({host: 2}, dedicated, 2)
        assert best_shares(fleet) == Shares({host: Fraction(1, 2)}, Fraction(0))
        assert small_weights(fleet) == ({host: 1}, 0)
        assert fleet.busiest(best_shares(fleet)) == least_link_bytes(Placement(2, dedicated=dedicated), 1) == 1


def test_a_host_with_most_of_the_members_owns_everything() -> None:
    """Its own members then send nothing over its link. So a single host uses its own aggregators only."""
    many, few = Host(5, 2), Host(1, 1)
    fleet = Fleet({many: 1, few: 3}, 2, 8)
    assert best_shares(fleet) == Shares({many: Fraction(1), few: Fraction(0)}, Fraction(0))
    assert small_weights(fleet) == ({many: 1, few: 0}, 0)
    assert fleet.busiest(best_shares(fleet)) == 3


@settings(max_examples=40)
@given(fleets, st.data())
def test_no_other_shares_are_better(fleet: Fleet, data: st.DataObject) -> None:
    """The shares add up to 1, and moving some bytes from one aggregator to another makes no link less busy."""
    best = best_shares(fleet)
    least = fleet.busiest(best)
    assert total(fleet, best) == 1
    assert min([*best.hosts.values(), best.dedicated]) >= 0
    kinds = [*fleet.hosts, None] if fleet.dedicated else [*fleet.hosts]
    giver, taker = data.draw(st.sampled_from(kinds)), data.draw(st.sampled_from(kinds))

    def changed(kind: Host | None, share: Fraction, moved: Fraction) -> Fraction:
        """The share of each host of a kind, or of each dedicated aggregator, after the move."""
        moved = moved * ((kind == taker) - (kind == giver))
        return share + moved / (fleet.hosts[kind] if kind is not None else fleet.dedicated)

    moved = Fraction(1, data.draw(st.integers(2, 1000)))
    other = Shares(
        {host: changed(host, share, moved) for host, share in best.hosts.items()},
        changed(None, best.dedicated, moved) if fleet.dedicated else Fraction(0),
    )
    if min([*other.hosts.values(), other.dedicated]) >= 0:
        assert fleet.busiest(other) >= least


@settings(max_examples=40)
@given(fleets)
def test_small_weights_are_near_the_best_shares(fleet: Fleet) -> None:
    """A link carries at most 6 % more than the least, and there are few turns."""
    weights, dedicated = small_weights(fleet)
    aggregators = fleet.dedicated + sum(host.aggregators * count for host, count in fleet.hosts.items())
    turns = fleet.dedicated * dedicated
    turns += sum(weights[host] * host.aggregators * count for host, count in fleet.hosts.items())
    assert 1 <= turns <= 8 * aggregators
    assert fleet.busiest(weighted(fleet)) <= Fraction(106, 100) * fleet.busiest(best_shares(fleet))


def test_weights_of_equal_hosts_are_within_4_percent_of_the_best() -> None:
    """Mostly within 1 %: those of 2 and 4 hosts, and of many hosts with few dedicated aggregators."""
    for n in (*range(2, 9), 16, 31):
        for k in range(n + 2):
            fleet = Fleet({Host(1, 1): n}, k, n)
            worse = fleet.busiest(weighted(fleet)) / fleet.busiest(best_shares(fleet))
            assert worse <= Fraction(101 if n <= 4 or k <= 3 else 104, 100)
