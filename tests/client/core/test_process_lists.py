"""The fleet of workers: every listed aggregator stands for its processes."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psum.client.core.placement import Placement
from psum.client.core.process_lists import addresses_of, aggregators_of, fleet_of, process_weights
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
    """The list is used as it is, in its order, as by a worker that does not ask."""
    listed = ["host:50053", "other:1", "host:50051", "host:50055"]
    assert fleet_of(listed, [(), (), PROCESSES, ()]) == [(address,) for address in listed]


def test_a_process_that_is_listed_too_is_an_error() -> None:
    """It would get two shares of the bytes."""
    with pytest.raises(ConfigurationError, match="lists host:50053 and host:50051, and host:50053 belongs to both"):
        fleet_of(["host:50051", "host:50053"], [PROCESSES, ()])


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
    assert process_weights(weights, counts) == shares


def test_a_process_belongs_to_its_aggregator() -> None:
    """The third of the addresses is the second one of the second aggregator."""
    assert aggregators_of({0, 2}, (1, 2, 1)) == {0, 1}
    assert aggregators_of((), (1, 2)) == set()


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 8)), min_size=1, max_size=5))
def test_weights_are_shared_exactly(aggregators: list[tuple[int, int]]) -> None:
    """Each aggregator has exactly its part of the turns of placement, and its processes have equal parts of that."""
    weights, counts = [weight for weight, _ in aggregators], [count for _, count in aggregators]
    found = process_weights(weights, counts)
    total = sum(found)
    owners = [number for number, count in enumerate(counts) for _ in range(count)]
    parts = Counter[int]()
    for number, weight in zip(owners, found, strict=True):
        parts[number] += weight
        assert weight * counts[number] * sum(weights) == weights[number] * total
    assert all(Fraction(parts[n], total) == Fraction(weight, sum(weights)) for n, weight in enumerate(weights))
    turns = Counter(Placement(1 << 20, found)._turns)
    assert all(Fraction(turns[i], turns.total()) == Fraction(weight, total) for i, weight in enumerate(found))


def test_weights_that_have_no_small_shares_are_an_error() -> None:
    """Placement would need a list of millions of entries."""
    with pytest.raises(ConfigurationError, match=r"64, 63, 61, 59, 57 processes .*the same number of processes"):
        process_weights((), (64, 63, 61, 59, 57))
