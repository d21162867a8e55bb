"""Relays with real servers and real clients: hosts whose workers hand everything to the aggregator beside them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from tests.integration.conftest import PATIENCE_SECONDS, Fleet

#: Small shards, so that a key has many, and owners of each.
PARTITION_BYTES = 1 << 16

#: Elements of keys: one small shard, several shards, and large ones that other planes carry.
SIZES = (5, 40_000, 300_000)


def value(rank: int, size: int, step: int = 0) -> Any:
    """The values of a rank. Their sum depends on the order."""
    return np.random.default_rng([rank, size, step]).standard_normal(size).astype(np.float32)


def expected(size: int, step: int = 0, groups: Sequence[Sequence[int]] = ((0, 1), (2, 3))) -> bytes:
    """The sum over hosts of the sums over each host's ranks."""
    partials = []
    for group in groups:
        partial = value(group[0], size, step)
        for rank in group[1:]:
            partial = partial + value(rank, size, step)
        partials.append(partial)
    total = partials[0]
    for partial in partials[1:]:
        total = total + partial
    return total.tobytes()  # type: ignore[no-any-return]


def on_every_host(
    fleet: Fleet,
    work: Callable[[psum.Client], Any],
    *,
    relays: Sequence[str],
    local_size: int = 2,
    **settings: Any,
) -> list[Any]:
    """Does the work on each rank of hosts of as many workers, with a relay each; returns the results by rank."""
    num_workers = local_size * len(relays)

    def run(rank: int) -> Any:
        given = {"local_size": local_size, "local_rank": rank % local_size} | settings
        with fleet.worker(rank, num_workers, relay=relays[rank // local_size], **given) as client:
            return work(client)

    with ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(run, range(num_workers), timeout=PATIENCE_SECONDS))


def train(client: psum.Client, steps: int = 3) -> list[bytes]:
    """Broadcasts and some steps of all keys at a time; returns all results."""
    store = client.store()
    root = value(99, 1000) if client.rank == 0 else np.zeros(1000, np.float32)
    store.broadcast("weights", root)
    results = [root.tobytes()]
    for step in range(steps):
        arrays = [value(client.rank, size, step) for size in SIZES]
        futures = [store.push_pull_async(str(size), array, array) for size, array in zip(SIZES, arrays, strict=True)]
        for future in futures:
            future.result(PATIENCE_SECONDS)
        results += [array.tobytes() for array in arrays]
    return results


def all_expected(steps: int = 3) -> list[bytes]:
    return [value(99, 1000).tobytes(), *(expected(size, step) for step in range(steps) for size in SIZES)]


@pytest.mark.parametrize("plane", ["inline", "direct", "shm"])
def test_sums_are_those_of_hosts_then_of_the_fleet(make_fleet: Callable[..., Fleet], plane: str) -> None:
    """Two hosts of two workers, each with an aggregator that is relay and owner at once: bit for bit, on each plane."""
    fleet = make_fleet(2, plane=plane)
    results = on_every_host(fleet, train, relays=fleet.addresses, plane=plane, partition_bytes=PARTITION_BYTES)
    assert results == [all_expected()] * 4
