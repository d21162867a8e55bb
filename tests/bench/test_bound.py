"""The shortest step time that the links allow."""

import pytest

from tests.bench.netlab.bound import least_link_bytes, least_seconds, shares
from tests.bench.netlab.placement import Placement

PAYLOAD = 1000


@pytest.mark.parametrize("hosts", range(2, 9))
def test_beside_workers_it_is_that_of_an_optimal_all_reduce(hosts: int) -> None:
    """Each host sends 2 (n - 1) / n of the payload. How many workers and aggregators it has does not matter."""
    for local, beside in ((1, 1), (8, 1), (2, 3)):
        placement = Placement(hosts, local, beside)
        assert least_link_bytes(placement, PAYLOAD) == pytest.approx(PAYLOAD * 2 * (hosts - 1) / hosts)


@pytest.mark.parametrize("hosts", range(2, 9))
def test_dedicated_aggregators_halve_it_at_most(hosts: int) -> None:
    """The bound has the BytePS paper's formula. It falls with each dedicated aggregator, down to one payload."""
    n = hosts
    bounds = [least_link_bytes(Placement(n, dedicated=k), PAYLOAD) for k in range(n + 1)]
    assert bounds == pytest.approx([2 * n * (n - 1) * PAYLOAD / (n * n + k * n - 2 * k) for k in range(n + 1)])
    assert bounds[-1] == pytest.approx(PAYLOAD)
    # With two hosts, a dedicated aggregator takes no load off a worker's link.
    assert n == 2 or sorted(bounds, reverse=True) == bounds
    assert least_link_bytes(Placement(n, dedicated=n + 3), PAYLOAD) == PAYLOAD


@pytest.mark.parametrize(("hosts", "dedicated"), [(n, k) for n in range(2, 9) for k in range(n + 1)])
def test_no_other_shares_are_better(hosts: int, dedicated: int) -> None:
    """The busiest link carries at least the bound for every share that the dedicated aggregators could take."""
    bound = least_link_bytes(Placement(hosts, dedicated=dedicated), 1)
    beside, alone = shares(Placement(hosts, dedicated=dedicated))
    assert hosts * beside + dedicated * alone == pytest.approx(1)
    for percent in range(101):
        of_dedicated = percent / 100 / dedicated if dedicated else 0.0
        of_host = (1 - dedicated * of_dedicated) / hosts
        link_of_host = (1 - of_host) + (hosts - 1) * of_host
        assert max(link_of_host, hosts * of_dedicated) >= bound - 1e-9


@pytest.mark.parametrize(("hosts", "dedicated", "expected"), [(4, 4, 1.0), (4, 8, 1.0), (4, 2, 2.0), (3, 1, 3.0)])
def test_with_dedicated_aggregators_only(hosts: int, dedicated: int, expected: float) -> None:
    """A worker's link carries one payload. An aggregator's link carries its share for each host."""
    assert least_link_bytes(Placement(hosts, beside=0, dedicated=dedicated), PAYLOAD) == expected * PAYLOAD


def test_one_host_needs_no_link() -> None:
    """The workers and the aggregator of one host share memory."""
    for dedicated in (0, 1, 2):
        assert least_link_bytes(Placement(1, local=4, dedicated=dedicated), PAYLOAD) == 0


def test_seconds() -> None:
    """Four hosts sum 100 MB over 200 Mbit/s in six seconds."""
    assert least_seconds(Placement(4), 100_000_000, 25e6) == pytest.approx(6)
