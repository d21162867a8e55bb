"""Placement is the same everywhere, covers every byte, and spreads evenly."""

import subprocess
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from psum.client.core.placement import Placement, key_id
from psum.v1 import aggregator_pb2 as pb

weights = st.lists(st.integers(1, 5), min_size=1, max_size=5)


@given(st.integers(0, 2**64 - 1), st.integers(0, 5000), st.sampled_from([1, 2, 4, 8]), st.integers(16, 999), weights)
def test_shards_cover_a_key_without_gap_or_overlap(
    key: int, elements: int, itemsize: int, partition_bytes: int, weights: list[int]
) -> None:
    """Shards are contiguous, whole elements, at most a partition long, and together the key."""
    shards = Placement(partition_bytes, weights).shards(key, elements, itemsize)
    assert [s.index for s in shards] == list(range(len(shards)))
    assert [s.start for s in shards] == [0, *(s.stop for s in shards)][: len(shards)]
    assert (shards[-1].stop if shards else 0) == elements * itemsize
    assert all(0 < s.size <= partition_bytes and s.size % itemsize == 0 for s in shards)


@given(st.integers(0, 2**64 - 1), weights)
def test_each_turn_deals_by_weight(key: int, weights: list[int]) -> None:
    """Of every sum(weights) consecutive shards each aggregator gets its weight, and `first` names the first one."""
    placement = Placement(16, weights)
    shards = placement.shards(key, sum(weights) * 3, 16)
    assert Counter(s.aggregator for s in shards) == {a: 3 * w for a, w in enumerate(weights)}
    assert shards[0].aggregator == placement.first(key)


def test_a_heavier_aggregator_does_not_take_its_shards_in_a_row() -> None:
    """Weights are interleaved, so that a few shards of an urgent key are spread too."""
    owners = [s.aggregator for s in Placement(16, [2, 1, 1]).shards(0, 4, 16)]
    assert owners == [0, 1, 2, 0]


def test_small_keys_spread_over_the_aggregators() -> None:
    """Keys of one shard begin at different aggregators."""
    placement = Placement(1 << 20, [1, 1, 1])
    owners = Counter(placement.first(key_id(0, str(k), pb.OPERATION_SUM)) for k in range(300))
    assert all(70 <= owners[a] <= 130 for a in range(3))


def test_ids_tell_stores_keys_and_operations_apart() -> None:
    """Two stores, two keys or two operations never share an id."""
    ids = {
        key_id(store, key, operation)
        for store in (0, 1)
        for key in ("1", "2", "1/2")
        for operation in (pb.OPERATION_SUM, pb.OPERATION_BROADCAST)
    }
    assert len(ids) == 12


def test_ids_are_the_same_in_every_process() -> None:
    """The hash does not depend on the process, as Python's own does."""
    code = "from psum.client.core.placement import key_id; print(key_id(1, 'weight', 1))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert int(other.stdout) == key_id(1, "weight", pb.OPERATION_SUM)
