"""The weights of aggregators from what workers report about their hosts."""

from collections.abc import Collection, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psum.client.core.roles import Aggregators


def agreed(aggregators: int, hosts: Sequence[tuple[int, Collection[int]]], *, relays: bool = False) -> tuple[int, ...]:
    """The weights on which ranks agree.

    Args:
        aggregators: How many there are.
        hosts: For each host, its workers, and the indices of its aggregators.
        relays: Whether the workers of a host share a relay.
    """
    fleet = Aggregators(range(aggregators))
    reports = [
        fleet.report(beside, is_member=local == 0 or not relays)
        for workers, beside in hosts
        for local in range(workers)
    ]
    return fleet.weights_of(np.sum(reports, axis=0).tolist())


@pytest.mark.parametrize(
    ("aggregators", "hosts", "weights"),
    [
        (3, [(1, [0]), (1, [1])], (1, 1, 0)),
        (4, [(1, [2]), (1, [0])], (1, 0, 1, 0)),
        (5, [(1, [0]), (1, [1]), (1, [2])], (1, 1, 1, 4, 4)),
        (6, [(1, [host]) for host in range(4)], (1, 1, 1, 1, 3, 3)),
        (8, [(1, [host]) for host in range(4)], (0, 0, 0, 0, 1, 1, 1, 1)),
        (6, [(1, [host + 2]) for host in range(4)], (3, 3, 1, 1, 1, 1)),
        # Two aggregators on each host share what one would own, wherever they are in the list.
        (10, [(1, [host, host + 4]) for host in range(4)], (1, 1, 1, 1, 1, 1, 1, 1, 6, 6)),
        # Four workers on each host, each for itself or all through a relay: the same shares.
        (6, [(4, [host]) for host in range(4)], (1, 1, 1, 1, 3, 3)),
        # All are alike: all beside workers, all dedicated, or nothing is known, as with pods.
        (4, [(1, [host]) for host in range(4)], (1, 1, 1, 1)),
        (4, [(2, [])] * 4, (1, 1, 1, 1)),
        # All workers are on one host with one of the aggregators.
        (2, [(8, [0])], (1, 0)),
        # Two hosts have an aggregator, two have none.
        (2, [(1, [0]), (1, [1]), (1, []), (1, [])], (1, 1)),
    ],
)
def test_weights_suit_the_roles(aggregators: int, hosts: list[tuple[int, list[int]]], weights: tuple[int, ...]) -> None:
    """All links are equally full, as far as small weights can do that."""
    assert agreed(aggregators, hosts) == weights


def test_a_host_whose_workers_share_a_relay_counts_once() -> None:
    """Hosts with different numbers of workers are alike then."""
    hosts = [(workers, [host]) for host, workers in enumerate((1, 2, 4, 8))]
    assert agreed(6, hosts, relays=True) == (1, 1, 1, 1, 3, 3)
    assert agreed(6, hosts) != (1, 1, 1, 1, 3, 3)


@pytest.mark.parametrize("relays", [False, True])
@pytest.mark.parametrize(
    ("processes", "hosts", "weights"),
    [
        # Four hosts with workers and an aggregator of two processes each, and two dedicated aggregators of two.
        ([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5], 4, (1,) * 8 + (3,) * 4),
        # The dedicated ones are one process each: twice the weight of two that share one host's.
        ([0, 0, 1, 1, 2, 2, 3, 3, 4, 5], 4, (1,) * 8 + (6,) * 2),
        # They have different numbers of processes, and so do the hosts' own.
        ([0, 1, 1, 2, 3, 4, 4, 4, 5], 4, (2, 1, 1, 2, 2, 2, 2, 2, 6)),
        # All processes are listed, in any order.
        ([0, 1, 2, 2, 1, 0], 2, (1, 1, 0, 0, 1, 1)),
    ],
)
def test_processes_share_the_weight_of_their_aggregator(
    processes: list[int], hosts: int, weights: tuple[int, ...], relays: bool
) -> None:
    """Aggregators get the weights that they have as one process each, since a host has one link. It is enough that a
    worker knows of one process that it is on its host."""
    fleet = Aggregators(processes)
    by_host = [[index for index, number in enumerate(processes) if number == host] for host in range(hosts)]
    reports = [fleet.report([here[local]], is_member=local == 0 or not relays) for here in by_host for local in (0, -1)]
    assert fleet.weights_of(np.sum(reports, axis=0).tolist()) == weights


@given(st.lists(st.integers(1, 9), min_size=2, max_size=9), st.data())
def test_shares_of_any_numbers_of_processes_are_near_those_of_hosts(counts: list[int], data: st.DataObject) -> None:
    """Exact where that takes few turns. Otherwise no link carries noticeably more."""
    hosts = data.draw(st.integers(1, len(counts)))
    numbers = [number for number, count in enumerate(counts) for _ in range(count)]
    fleet, hosts_only = Aggregators(numbers), Aggregators(range(len(counts)))
    reports = [fleet.report([numbers.index(host)]) for host in range(hosts)]
    total = np.sum(reports, axis=0).tolist()
    assert total == np.sum([hosts_only.report([host]) for host in range(hosts)], axis=0).tolist()
    weights, expected = fleet.weights_of(total), hosts_only.weights_of(total)
    assert sum(weights) <= 65 * len(numbers)
    for number, weight in enumerate(expected):
        share = sum(each for each, of in zip(weights, numbers, strict=True) if of == number) / sum(weights)
        assert share == pytest.approx(weight / sum(expected), rel=0.05, abs=0.01)


@settings(max_examples=40)
@given(st.data())
def test_contradictory_reports_lead_to_weights_too(data: st.DataObject) -> None:
    """Whatever workers report, each aggregator has a weight, and some aggregator owns something."""
    aggregators = data.draw(st.integers(2, 9))
    beside = st.sets(st.integers(0, aggregators - 1))
    hosts = data.draw(st.lists(st.tuples(st.integers(1, 3), beside), min_size=1, max_size=9))
    weights = agreed(aggregators, hosts, relays=data.draw(st.booleans()))
    assert len(weights) == aggregators
    assert all(isinstance(weight, int) and 0 <= weight <= 1000 for weight in weights)
    assert any(weights)


@pytest.mark.parametrize(
    ("aggregators", "hosts", "shares"),
    [
        # Each link carries both what a worker and what an aggregator sends to three others.
        (4, [(1, [host]) for host in range(4)], (1 / 6, 1 / 6, 1 / 6)),
        # Each link is only a worker's or only an aggregator's.
        (2, [(1, []), (1, [])], (1 / 2, 1 / 2)),
        # Four workers share the link of a dedicated aggregator, and two such connections a worker's link.
        (2, [(1, [])] * 4, (1 / 4, 1 / 4)),
        # A worker's link carries 9/10 of the bytes for its worker, and 3/10 for others.
        (6, [(1, [host]) for host in range(4)], (1 / 12, 1 / 12, 1 / 12, 1 / 4, 1 / 4)),
    ],
)
def test_connections_share_links_as_their_bytes_do(
    aggregators: int, hosts: list[tuple[int, list[int]]], shares: tuple[float, ...]
) -> None:
    """A connection's share is that of its bytes on the link where they are the lesser part."""
    fleet = Aggregators(range(aggregators))
    total = np.sum([fleet.report(beside) for _, beside in hosts], axis=0).tolist()
    beside = hosts[0][1]
    found = fleet.link_shares(fleet.weights_of(total), beside, total)
    assert [share for index, share in enumerate(found) if index not in beside] == pytest.approx(shares)


def test_processes_of_one_aggregator_share_its_link() -> None:
    """With two processes each, connections have half the share."""
    fleet = Aggregators((0, 0, 1, 1))
    total = np.sum([fleet.report(())] * 4, axis=0).tolist()
    assert fleet.link_shares((1, 1, 1, 1), (), total) == pytest.approx([1 / 8] * 4)
