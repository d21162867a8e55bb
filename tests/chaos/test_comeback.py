"""Aggregators are killed and connections are cut in the midst of a training; its result is the same, bit for bit."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from psum import client as psum

WORKERS = 3
STEPS = 120
SIZES = (5, 70_000, 1000, 200_000, 1)


class Training:
    """A stand-in for a training: each step sums some tensors, and the next step's values depend on the sums.

    Attributes:
        steps: How many steps rank 0 has done.
    """

    def __init__(self, addresses: tuple[str, ...], steps: int = STEPS, **settings: Any) -> None:
        self.steps = 0
        self._wanted = steps
        self._settings = {"partition_bytes": 1 << 16, "connect_timeout": 30.0, "reconnect_timeout": 30.0} | settings
        self._settings["aggregators"] = addresses
        self._pool = ThreadPoolExecutor(WORKERS)
        self._results = [self._pool.submit(self._train, rank) for rank in range(WORKERS)]

    @property
    def running(self) -> bool:
        return not all(result.done() for result in self._results)

    def parameters(self) -> list[bytes]:
        """The final values, by rank; raises what a worker raised."""
        return [result.result(120) for result in self._results]

    def _train(self, rank: int) -> bytes:
        random = np.random.default_rng(rank)
        with psum.connect(psum.Settings(rank=rank, num_workers=WORKERS, **self._settings)) as client:
            store = client.store()
            values = [random.standard_normal(size).astype(np.float32) for size in SIZES]
            store.broadcast("first", values[0])
            for _ in range(self._wanted):
                futures = [store.push_pull_async(i, value, priority=-i) for i, value in enumerate(values)]
                for future in futures:
                    future.result(120)
                for value in values:
                    value *= np.float32(0.3)
                if rank == 0:
                    self.steps += 1
            return b"".join(value.tobytes() for value in values)


@pytest.fixture
def undisturbed(make_aggregator: Callable[..., Any]) -> bytes:
    """What all ranks have in the end when nothing happens."""
    addresses = tuple(make_aggregator().address for _ in range(2))
    [result] = set(Training(addresses).parameters())
    return result


def test_killed_aggregators_come_back_without_a_trace(make_aggregator: Callable[..., Any], undisturbed: bytes) -> None:
    """kill -9 of either of two aggregators at random moments, and a new one on its address, until the training ends."""
    aggregators = [make_aggregator() for _ in range(2)]
    chance = random.Random(1)
    training = Training(tuple(a.address for a in aggregators))
    kills = 0
    while training.running:
        time.sleep(chance.uniform(0, 0.4))
        victim = chance.choice(aggregators)
        victim.end()
        kills += 1
        victim.start()
    assert set(training.parameters()) == {undisturbed}
    assert kills >= 3


def test_connections_cut_at_random_bytes_do_no_harm(
    make_aggregator: Callable[..., Any], make_proxy: Callable[..., Any], undisturbed: bytes
) -> None:
    """Every connection breaks somewhere in its first megabytes, in the midst of messages, either way."""
    proxies = [make_proxy(make_aggregator().address, seed=seed) for seed in range(2)]
    for proxy in proxies:
        proxy.cut_after = (1000, 6_000_000)
        proxy.delay_seconds = 0.001
    assert set(Training(tuple(p.address for p in proxies)).parameters()) == {undisturbed}
    assert sum(p.connections for p in proxies) > 20


def test_a_silent_network_is_noticed_and_gone_around(
    make_aggregator: Callable[..., Any], make_proxy: Callable[..., Any], undisturbed: bytes
) -> None:
    """When nothing is forwarded any more, keepalive probes notice it within seconds, and a new connection goes on."""
    proxies = [make_proxy(make_aggregator("--keepalive", "1s").address) for _ in range(2)]
    training = Training(tuple(p.address for p in proxies), keepalive=1.0)
    while training.steps < STEPS // 2:
        time.sleep(0.01)
    begin = time.monotonic()
    proxies[0].stall()
    time.sleep(0.5)
    done = training.steps
    threading.Timer(3.0, proxies[0].flow).start()
    while training.steps <= done + 1:
        time.sleep(0.01)
        assert time.monotonic() - begin < 20
    assert set(training.parameters()) == {undisturbed}
    assert proxies[0].connections > WORKERS


def test_a_stopped_aggregator_is_as_a_silent_network(make_aggregator: Callable[..., Any], undisturbed: bytes) -> None:
    """SIGSTOP for longer than the probes take, then SIGCONT: the training goes on."""
    aggregators = [make_aggregator("--keepalive", "1s") for _ in range(2)]
    training = Training(tuple(a.address for a in aggregators), keepalive=1.0)
    while training.steps < STEPS // 2:
        time.sleep(0.01)
    os.kill(aggregators[1].process.pid, signal.SIGSTOP)
    time.sleep(4)
    os.kill(aggregators[1].process.pid, signal.SIGCONT)
    assert set(training.parameters()) == {undisturbed}


def test_a_rolling_restart_costs_no_step(make_aggregator: Callable[..., Any], undisturbed: bytes) -> None:
    """SIGTERM to one aggregator after the other: each finishes its open rounds, ends with 0, and comes back."""
    aggregators = [make_aggregator() for _ in range(2)]
    training = Training(tuple(a.address for a in aggregators))
    for turn in range(4):
        steps = training.steps
        while training.steps <= steps + 5:
            time.sleep(0.01)
        aggregator = aggregators[turn % 2]
        assert aggregator.end(signal.SIGTERM) == 0
        assert "ERROR" not in aggregator.log
        aggregator.start()
    assert set(training.parameters()) == {undisturbed}


def test_a_worker_may_leave_while_others_go_on(make_aggregator: Callable[..., Any]) -> None:
    """A goodbye is answered as soon as the others have their sums, not after a time-out."""
    aggregator = make_aggregator()

    def join(rank: int) -> psum.Client:
        return psum.connect(psum.Settings(rank=rank, num_workers=2, aggregators=(aggregator.address,)))

    with join(0) as zero:
        one = join(1)
        futures = [c.store().push_pull_async("w", np.ones(100_000, np.float32)) for c in (zero, one)]
        assert [f.exception(30) for f in futures] == [None, None]
        begin = time.monotonic()
        one.close()
        assert time.monotonic() - begin < 1


def test_an_aggregator_that_does_not_come_back_is_named(make_aggregator: Callable[..., Any]) -> None:
    """After reconnect_timeout every rank gets an error with its address, the cause and the time."""
    aggregators = [make_aggregator() for _ in range(2)]
    training = Training(tuple(a.address for a in aggregators), steps=100_000, reconnect_timeout=1.0)
    while training.steps < 3:
        time.sleep(0.01)
    aggregators[1].end()
    with pytest.raises(psum.AggregatorLostError, match=rf"{aggregators[1].address} .* within 1 s") as caught:
        training.parameters()
    assert caught.value.address == aggregators[1].address


def test_without_kept_sums_an_aggregator_may_come_back_between_rounds(make_aggregator: Callable[..., Any]) -> None:
    """With PSUM_KEEP_SUMS=0 a comeback between two rounds works: there no rank lacks a sum that another has."""
    aggregator = make_aggregator()

    def join(rank: int) -> psum.Client:
        return psum.connect(psum.Settings(rank=rank, num_workers=2, aggregators=(aggregator.address,), keep_sums=False))

    with join(0) as zero, join(1) as one:
        stores = [zero.store(), one.store()]
        for _ in range(3):
            futures = [store.push_pull_async("w", np.ones(3, np.float32)) for store in stores]
            assert [f.exception(30) for f in futures] == [None, None]
            aggregator.end()
            aggregator.start()
