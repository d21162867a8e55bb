"""The weights of aggregators from what workers report about their hosts."""

from collections.abc import Collection, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psum.client.core.roles import link_shares, report, weights_of


def agreed(aggregators: int, hosts: Sequence[tuple[int, Collection[int]]], *, relays: bool = False) -> tuple[int, ...]:
    """The weights on which ranks agree.

    Args:
        aggregators: How many there are.
        hosts: For each host, its workers, and the indices of its aggregators.
        relays: Whether the workers of a host share a relay.
    """
    reports = [
        report(aggregators, beside, is_member=local == 0 or not relays)
        for workers, beside in hosts
        for local in range(workers)
    ]
    return weights_of(np.sum(reports, axis=0).tolist())


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


def test_connections_share_a_worker_s_links_as_the_weights_say() -> None:
    """Those that cross the link have limits in proportion to their bytes."""
    assert link_shares([1, 1, 1, 1], [2]) == (0.25, 0.25, 0.25, 0.25)
    shares = link_shares([1, 1, 1, 1, 3, 3], [0])
    limits = [share / (1 - share) for share in shares]
    assert limits == pytest.approx([1 / 9, 1 / 9, 1 / 9, 1 / 9, 3 / 9, 3 / 9])
    assert link_shares([1, 1, 0], [0]) == (0.5, 0.5, 0)
