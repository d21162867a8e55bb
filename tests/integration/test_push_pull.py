"""Sums through real aggregators are exact, and the same on every rank and in every run."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from psum import client as psum

SHAPES: list[tuple[int, ...]] = [(), (1,), (7,), (1023,), (3, 5, 11), (40_009,), (0,), (2, 0, 3)]


def narrow(numbers: Any) -> np.ndarray[Any, Any]:
    """Return numbers that are exact in bfloat16, as the uint16 of their storage."""
    bits: np.ndarray[Any, Any] = numbers.view(np.uint32) >> 16
    return bits.astype(np.uint16)


def wide(stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (stored.astype(np.uint32) << 16).view(np.float32)


def value(rank: int, shape: tuple[int, ...], element_type: psum.ElementType) -> np.ndarray[Any, Any]:
    """Return values whose sums are exact in each type."""
    numbers = (np.arange(np.prod(shape, dtype=int)) * 3 + rank * 5) % 16
    if element_type is psum.ElementType.BFLOAT16:
        return narrow(numbers.astype(np.float32)).reshape(shape)
    return numbers.astype(element_type.numpy).reshape(shape)


def total(num_workers: int, shape: tuple[int, ...], element_type: psum.ElementType) -> np.ndarray[Any, Any]:
    values = [value(r, shape, element_type) for r in range(num_workers)]
    if element_type is psum.ElementType.BFLOAT16:
        return narrow(sum(wide(v.reshape(-1)) for v in values)).reshape(shape)
    return sum(values[1:], values[0].copy())


@pytest.mark.parametrize("aggregators", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_sums_are_exact_over_all_types_and_odd_sizes(make_fleet: Any, workers: int, aggregators: int) -> None:
    """This holds for any number of workers and aggregators, every element type, and sizes from 0 to many odd shards."""

    def work(client: psum.Client) -> list[bytes]:
        store = client.store()
        outs, futures = [], []
        for element_type in psum.ElementType:
            for index, shape in enumerate(SHAPES):
                out = np.empty_like(value(0, shape, element_type))
                outs.append(out)
                futures.append(
                    store.push_pull_async(
                        f"{element_type.label}-{index}",
                        value(client.rank, shape, element_type),
                        out,
                        priority=-len(outs),
                        element_type=element_type.label,
                    )
                )
        for future in futures:
            future.result(30)
        return [out.tobytes() for out in outs]

    results = make_fleet(aggregators).on_every_rank(workers, work, partition_bytes=1 << 14)
    expected = [total(workers, shape, t).tobytes() for t in psum.ElementType for shape in SHAPES]
    for result in results:
        assert result == expected


def test_floats_are_the_same_bits_on_all_ranks_and_in_a_second_run(make_fleet: Callable[..., Any]) -> None:
    """Sums are in rank order, whatever arrives first, so that runs repeat bit for bit."""

    def work(client: psum.Client) -> bytes:
        store, random = client.store(), np.random.default_rng(client.rank)
        gradient = (random.standard_normal(100_003) * 10.0 ** random.integers(-8, 8, 100_003)).astype(np.float32)
        for _ in range(3):
            store.push_pull("gradient", gradient)
            gradient *= np.float32(0.3)
        return gradient.tobytes()

    runs = [make_fleet(2).on_every_rank(3, work, partition_bytes=1 << 16) for _ in range(2)]
    assert len({result for run in runs for result in run}) == 1


def test_value_is_untouched_where_out_is_another_array(fleet: Any) -> None:
    """With `out`, the value stays unchanged. Without `out`, the sum replaces the value."""

    def work(client: psum.Client) -> None:
        store = client.store()
        value, out = np.full(1000, 2.0, np.float32), np.zeros(1000, np.float32)
        store.push_pull("a", value, out)
        assert (value == 2).all()
        assert (out == 6).all()
        store.push_pull("a", value)
        assert (value == 6).all()

    fleet.on_every_rank(3, work)


def test_a_broadcast_gives_all_ranks_the_value_of_rank_0(make_fleet: Any) -> None:
    """It replaces the values of other ranks, including NaN. Rank 0 keeps its value."""

    def work(client: psum.Client) -> None:
        store = client.store()
        for round in range(3):
            value = np.full(40_000, np.nan, np.float32)
            if client.rank == 0:
                value = np.arange(40_000, dtype=np.float32) + round
            store.broadcast("weight", value)
            np.testing.assert_array_equal(value, np.arange(40_000) + round)

    make_fleet(2).on_every_rank(3, work, partition_bytes=1 << 14)


def test_many_rounds_of_one_key_can_be_under_way(fleet: Any) -> None:
    """Calls on one key are rounds in the order of calls, for any number of calls at once."""

    def work(client: psum.Client) -> None:
        store = client.store()
        values = [np.full(10, i + client.rank, np.int64) for i in range(50)]
        for future in [store.push_pull_async("a", v) for v in values]:
            future.result(30)
        assert [v[0] for v in values] == [2 * i + 1 for i in range(50)]

    fleet.on_every_rank(2, work)


def test_stores_are_namespaces_of_their_own(fleet: Any) -> None:
    """A key may have different shapes in two stores. Within a store, 3 and '3' are the same key."""

    def work(client: psum.Client) -> None:
        one, two = client.store(), client.store()
        a, b, c = np.ones(4, np.float32), np.ones((2, 2), np.float64), np.ones(4, np.float32)
        futures = [one.push_pull_async(3, a), two.push_pull_async(3, b), one.push_pull_async("3", c)]
        for future in futures:
            future.result(30)
        assert a[0] == b[0, 0] == c[0] == 2

    fleet.on_every_rank(2, work)


def test_jobs_share_a_fleet_without_touching_each_other(make_fleet: Any) -> None:
    """Two jobs with the same keys of different shapes run side by side."""
    shared = make_fleet(2)

    def work(size: int, count: float) -> Callable[[psum.Client], None]:
        def run(client: psum.Client) -> None:
            store = client.store()
            for _ in range(20):
                value = np.full(size, count, np.float32)
                store.push_pull("w", value)
                assert (value == 2 * count).all()

        return run

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(shared.on_every_rank, 2, work(size, size), job=f"job {size}") for size in (10, 30_000)]
        for job in jobs:
            job.result(30)


def test_workers_that_push_different_keys_first_do_not_block_each_other(fleet: Any) -> None:
    """With very little credit and opposite orders, credit returns while rounds wait for the other worker."""

    def work(client: psum.Client) -> None:
        store = client.store()
        keys = list(range(20))
        if client.rank == 1:
            keys.reverse()
        futures = []
        for key in keys:
            futures.append(store.push_pull_async(key, np.ones(50_000, np.float32)))
        for future in futures:
            future.result(30)

    fleet.on_every_rank(2, work, credit_bytes=1)


def test_any_thread_may_use_a_client(fleet: Any) -> None:
    """Threads of one worker push-pull their own keys at the same time."""

    def work(client: psum.Client) -> None:
        store = client.store()

        def one(key: int) -> float:
            value = np.full(1000, key, np.float32)
            for _ in range(10):
                store.push_pull(key, value, out := np.empty_like(value))
                assert (out == 2 * key).all()
            return float(out[0])

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(one, range(8))) == [2.0 * k for k in range(8)]

    fleet.on_every_rank(2, work)


def test_a_fleet_can_be_reached_through_unix_sockets(make_fleet: Any, tmp_path: Any) -> None:
    """An address may be a path, also beside a port. Only the aggregator's user can use its socket."""
    path = tmp_path / "psum.sock"
    fleet = make_fleet(listen=(f"unix:{path}", "127.0.0.1:0"))
    assert path.stat().st_mode & 0o777 == 0o600

    def work(client: psum.Client) -> float:
        value = np.ones(3, np.float32)
        client.store().push_pull("a", value)
        return float(value[0])

    assert fleet.on_every_rank(2, work) == [2.0, 2.0]
    assert len(psum.fetch_status(fleet.servers[0].addresses[1]).ended) == 1


def test_one_worker_needs_no_aggregator() -> None:
    """Without any configuration, the sum is the value itself."""
    with psum.connect(psum.Settings()) as client:
        store = client.store()
        value, out = np.arange(5, dtype=np.float32), np.zeros(5, np.float32)
        store.push_pull("a", value, out)
        np.testing.assert_array_equal(out, value)
        store.broadcast("b", value)
        np.testing.assert_array_equal(value, np.arange(5))


def test_a_job_frees_everything_when_its_last_worker_has_left(fleet: Any) -> None:
    """After the last goodbye the aggregator holds nothing of the job."""
    fleet.on_every_rank(2, lambda client: client.store().push_pull("a", np.ones(100_000, np.float32)))
    status = psum.fetch_status(fleet.addresses[0])
    assert list(status.jobs) == []
    assert [list(e.joined) for e in status.ended] == [[0, 1]]


def test_clients_that_come_and_go_disturb_no_other(fleet: Any, caplog: pytest.LogCaptureFixture) -> None:
    """gRPC's late events for a closed client do not reach the event loop of another client."""
    for _ in range(20):
        fleet.on_every_rank(3, lambda client: client.store().push_pull("w", np.ones(100_000, np.float32)))
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_the_end_of_a_job_is_logged_once(fleet: Any, caplog: pytest.LogCaptureFixture) -> None:
    """This holds for any number of workers."""
    with caplog.at_level("INFO", "psum.aggregator"):
        fleet.on_every_rank(3, lambda client: client.store().push_pull("w", np.ones(3, np.float32)))
        while not psum.fetch_status(fleet.addresses[0]).ended:
            pass
    assert [r.message for r in caplog.records if r.message.endswith("ended")] == ["job default: ended"]
