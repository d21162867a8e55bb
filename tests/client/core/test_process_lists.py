"""The fleet of workers: every listed aggregator stands for its processes."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psum.client.core.placement import Placement
from psum.client.core.process_lists import addresses_of, aggregators_of, fleet_of
from psum.wire.errors import ConfigurationError

PROCESSES = [
    ("10.0.0.5:50051", "unix:/run/psum/a", "[::]:60051"),
    ("10.0.0.5:50053", "unix:/run/psum/a.1", "[::]:60053"),
    ("10.0.0.5:50055", "unix:/run/psum/a.2", "[::]:60055"),
]


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("node-7.example:50051", ("node-7.example:50051", "node-7.example:50053", "node-7.example:50055")),
        ("[fd00::7]:60051", ("[fd00::7]:60051", "[fd00::7]:60053", "[fd00::7]:60055")),
        ("unix:/run/psum/a", ("unix:/run/psum/a", "unix:/run/psum/a.1", "unix:/run/psum/a.2")),
        # The directory of the socket is mounted elsewhere.
        ("unix:/mnt/s", ("unix:/mnt/s", "unix:/mnt/s.1", "unix:/mnt/s.2")),
    ],
)
def test_a_worker_reaches_all_processes_as_it_reaches_the_first(listed: str, found: tuple[str, ...]) -> None:
    """The host is the one that the worker knows, the ports are those that the aggregator tells."""
    assert addresses_of(listed, PROCESSES) == found


def test_an_aggregator_that_is_one_process_is_reached_as_before() -> None:
    """Nothing is derived, whatever is in between."""
    assert addresses_of("proxy:443", ()) == ("proxy:443",)
    assert addresses_of("proxy:443", PROCESSES[:1]) == ("proxy:443",)


@pytest.mark.parametrize(("listed", "processes"), [("proxy:443", PROCESSES), ("unix:/a", [("h:1",), ("h:3",)])])
def test_an_address_with_another_port_is_an_error(listed: str, processes: list[tuple[str, ...]]) -> None:
    """A proxy that maps ports hides the other processes; the error says so, and what to do."""
    with pytest.raises(ConfigurationError, match=rf"aggregator {listed} has \d processes .*--processes 1"):
        addresses_of(listed, processes)


def test_all_processes_may_be_listed() -> None:
    """The list is used as it is, in its order and with its weights, as by a worker that does not ask."""
    listed = ["host:50053", "other:1", "host:50051", "host:50055"]
    assert fleet_of(listed, (4, 3, 2, 1), [(), (), PROCESSES, ()]) == (tuple(listed), (4, 3, 2, 1))


def test_a_process_that_is_listed_too_is_an_error() -> None:
    """It would get two shares of the bytes."""
    with pytest.raises(ConfigurationError, match="lists host:50053 and host:50051, and host:50053 belongs to both"):
        fleet_of(["host:50051", "host:50053"], (), [PROCESSES, ()])


def test_ranks_know_alike_which_processes_belong_together() -> None:
    """However they list them: the first process of an aggregator, or all, also in another order and spelling."""
    fleets = {
        ("other:1", "host:50051"): [(), PROCESSES],
        ("other:1", "host:50051", "Host:50053", "host:50055"): [(), PROCESSES, (), ()],
    }
    for listed, processes in fleets.items():
        addresses, _ = fleet_of(listed, (), processes)
        assert aggregators_of(listed, addresses, processes) == (0, 1, 1, 1)
    listed = ("host:50055", "other:1", "host:50051", "host:50053")
    assert aggregators_of(listed, listed, [(), (), PROCESSES, ()]) == (0, 1, 0, 0)
    assert aggregators_of((), (), ()) == ()


@pytest.mark.parametrize(
    ("weights", "counts", "shares"),
    [
        ((), (1, 1), ()),
        ((), (3, 3), ()),
        ((6, 3), (1, 1), (6, 3)),
        # Without weights, aggregators have equal shares, however many processes they have.
        ((), (1, 3), (3, 1, 1, 1)),
        ((2, 1), (2, 1), (1, 1, 1)),
        ((3, 5), (2, 3), (9, 9, 10, 10, 10)),
    ],
)
def test_processes_share_the_weight_of_their_aggregator(
    weights: tuple[int, ...], counts: tuple[int, ...], shares: tuple[int, ...]
) -> None:
    """Small whole numbers, in the order of the list."""
    listed = [f"host-{number}:50051" for number in range(len(counts))]
    addresses, found = fleet_of(listed, weights, [PROCESSES[:count] if count > 1 else () for count in counts])
    assert found == shares
    assert len(addresses) == sum(counts)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 8)), min_size=1, max_size=5))
def test_weights_are_shared_exactly(aggregators: list[tuple[int, int]]) -> None:
    """Each aggregator has exactly its part of the turns of placement, and its processes have equal parts of that."""
    listed = [f"host-{number}:50051" for number in range(len(aggregators))]
    processes = [[(f"x:{50051 + 2 * i}",) for i in range(count)] for _, count in aggregators]
    weights = [weight for weight, _ in aggregators]
    addresses, found = fleet_of(listed, weights, processes)
    assert [address.split(":")[0] for address in addresses] == [
        host.split(":")[0] for host, (_, count) in zip(listed, aggregators, strict=True) for _ in range(count)
    ]
    total = sum(found)
    parts = Counter[str]()
    for address, weight in zip(addresses, found, strict=True):
        parts[address.split(":")[0]] += weight
    for host, weight in zip(listed, weights, strict=True):
        assert Fraction(parts[host.split(":")[0]], total) == Fraction(weight, sum(weights))
    turns = Counter(Placement(1 << 20, found)._turns)
    assert all(Fraction(turns[i], turns.total()) == Fraction(weight, total) for i, weight in enumerate(found))


def test_weights_that_have_no_small_shares_are_an_error() -> None:
    """Placement would need a list of millions of entries."""
    counts = (64, 63, 61, 59, 57)
    processes = [[(f"x:{50051 + 2 * i}",) for i in range(count)] for count in counts]
    with pytest.raises(ConfigurationError, match=r"64, 63, 61, 59, 57 processes .*the same number of processes"):
        fleet_of([f"host-{count}:50051" for count in counts], (), processes)
