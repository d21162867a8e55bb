"""Elastic jobs with real clients and aggregators: broadcasts whose root is lost, and keys that only some ranks use."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from psum import client as psum
from psum.client import Elastic

PATIENCE_SECONDS = 30.0

ELASTIC = Elastic(1, 3)


def lose_root(clients: list[psum.Client]) -> None:
    """Rank 0 ends before its work is done, and all aggregators have heard of it."""
    parted = clients[0].part(psum.WorkerLostError("rank 0 ends here", ranks=[0]))
    assert parted is not None
    parted.result(PATIENCE_SECONDS)


@pytest.fixture
def fleet(make_fleet: Callable[..., Any]) -> Any:
    return make_fleet(2)


@pytest.fixture
def clients(fleet: Any) -> Iterator[list[psum.Client]]:
    """Three workers of an elastic job."""
    made = [fleet.worker(rank, 3, elastic=ELASTIC, partition_bytes=64 << 10) for rank in range(3)]
    # A worker that has taken part in nothing may be replaced, so it would not be lost at once.
    for begun in [client.store().push_pull_async("begin", np.ones(1)) for client in made]:
        begun.result(PATIENCE_SECONDS)
    yield made
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(psum.Client.close, made))


def test_the_value_of_another_rank_takes_the_place_of_a_lost_root_s(clients: list[psum.Client]) -> None:
    """Both survivors have the same array. Each part of it is the value of one of them. So it is in the next round."""
    stores = [client.store() for client in clients]
    lose_root(clients)
    for round in range(2):
        arrays = [np.full(300_000, rank + 10 * round, np.float32) for rank in (1, 2)]
        futures = [
            store.broadcast_async("w", array, elastic=True) for store, array in zip(stores[1:], arrays, strict=True)
        ]
        for future in futures:
            future.result(PATIENCE_SECONDS)
        np.testing.assert_array_equal(arrays[0], arrays[1])
        assert set(arrays[0]) <= {1 + 10 * round, 2 + 10 * round}


def test_the_root_is_lost_while_others_wait_for_it(clients: list[psum.Client]) -> None:
    """They get the value of one of them."""
    arrays = [np.full(1000, rank, np.int32) for rank in (1, 2)]
    stores = [client.store() for client in clients[1:]]
    futures = [store.broadcast_async("w", array, elastic=True) for store, array in zip(stores, arrays, strict=True)]
    lose_root(clients)
    for future in futures:
        future.result(PATIENCE_SECONDS)
    assert arrays[0].tolist() == arrays[1].tolist() == [1] * 1000


def test_without_a_value_only_the_key_fails(clients: list[psum.Client]) -> None:
    """All that wait get an error that names rank 0 and says what to do. Other keys go on."""
    stores = [client.store() for client in clients[1:]]
    futures = [store.broadcast_async("w", np.empty(1000, np.int32)) for store in stores]
    lose_root(clients)
    for future in futures:
        with pytest.raises(psum.WorkerLostError, match="call broadcast with elastic=True") as caught:
            future.result(PATIENCE_SECONDS)
        assert caught.value.ranks == (0,)
    values = [np.full(10, 2.0) for _ in stores]
    sums = [store.push_pull_async("v", value) for store, value in zip(stores, values, strict=True)]
    for future in sums:
        future.result(PATIENCE_SECONDS)
    assert values[0].tolist() == [4.0] * 10


def test_some_ranks_use_keys_of_their_own(clients: list[psum.Client]) -> None:
    """The third rank takes no part. The root may be the higher rank."""
    stores = [client.store() for client in clients]
    ranks = (2, 0)
    arrays = {rank: np.full(300_000, rank, np.int32) for rank in ranks}
    futures = [stores[rank].broadcast_async("state", arrays[rank], ranks=ranks) for rank in ranks]
    for future in futures:
        future.result(PATIENCE_SECONDS)
        assert future.contributors == ()
    assert set(arrays[0]) == {2}
    ones = {rank: np.ones(5, np.int32) for rank in (0, 1)}
    futures = [stores[rank].push_pull_async("state", ones[rank], ranks=(0, 1)) for rank in (0, 1)]
    for future in futures:
        future.result(PATIENCE_SECONDS)
        assert future.contributors == ()
    assert ones[1].tolist() == [2] * 5


def test_the_loss_of_the_root_fails_only_the_key_of_some_ranks(clients: list[psum.Client]) -> None:
    """Another rank then sends its value under another list of ranks."""
    stores = [client.store() for client in clients]
    future = stores[2].broadcast_async("state", np.empty(10), ranks=(0, 2))
    lose_root(clients)
    with pytest.raises(psum.WorkerLostError, match="sends to ranks 0, 2, is lost"):
        future.result(PATIENCE_SECONDS)
    arrays = [np.full(10, 1.0), np.empty(10)]
    futures = [stores[rank].broadcast_async("state", arrays[rank - 1], ranks=(1, 2)) for rank in (1, 2)]
    for each in futures:
        each.result(PATIENCE_SECONDS)
    assert arrays[1].tolist() == [1.0] * 10


def test_wrong_ranks_are_refused(fleet: Any, clients: list[psum.Client]) -> None:
    """Before anything is sent."""
    store = clients[0].store()
    for ranks in ((1, 2), (0, 0), (0, 3), (-1, 0)):
        with pytest.raises(ValueError, match="expected each rank once, from 0 to 2, with rank 0"):
            store.push_pull("w", np.zeros(3), ranks=ranks)
    with fleet.worker(0, 1, job="plain") as plain, pytest.raises(psum.InvalidError, match="not elastic"):
        plain.store().push_pull("w", np.zeros(3), ranks=(0,))
