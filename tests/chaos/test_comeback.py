"""Killed aggregators and cut connections during a training do not change its result, bit for bit."""

import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from faults import runs
from faults.processes import WorkerFailed
from faults.training import STEPS, WORKERS
from psum import client as psum


@pytest.mark.parametrize("plane", ["inline", "direct", "shm"])
def test_killed_aggregators_do_not_change_the_result(tmp_path: pathlib.Path, plane: str) -> None:
    """One of two aggregators is killed at random moments, and a new process starts on its address."""
    report = runs.kill_aggregators(tmp_path, kills=4, seed=1, plane=plane)
    assert report["same"]
    # Two kills in quick succession may cost a worker only one reconnection.
    assert report["reconnections"] >= 4


@pytest.mark.parametrize("plane", ["inline", "direct", "shm"])
def test_connection_faults_do_not_change_the_result(tmp_path: pathlib.Path, plane: str) -> None:
    """Connections break inside messages in both directions, data is delayed, and some connections stall."""
    report = runs.disturb_connections(tmp_path, faults=3, seed=2, plane=plane, cuts=3)
    assert report["same"]
    assert report["silences"] > 0
    assert report["cuts at a random moment"] > 0
    assert report["cuts at a random byte"] >= 3


@pytest.mark.parametrize("plane", ["direct", "shm"])
def test_a_data_port_without_a_backend_costs_no_step(
    make_aggregator: Callable[..., Any],
    make_proxy: Callable[..., Any],
    make_training: Callable[..., Any],
    undisturbed_result: dict[str, Any],
    plane: str,
) -> None:
    """If the data port starts to close connections or to stay silent, the training goes on over the stream.

    Every worker tries it once, however often its stream is cut.
    """
    aggregators = [make_aggregator() for _ in range(2)]
    proxies = [make_proxy(aggregator) for aggregator in aggregators]
    training = make_training([p.address for p in proxies], plane=plane)
    training.wait_for_step(2)
    for proxy, fault in zip(proxies, ("closed", "silent"), strict=True):
        proxy.data_port = fault
        proxy.cut()
    for _ in range(2):
        training.wait_for_step(training.steps + 2)
        for proxy in proxies:
            proxy.cut()
    assert training.result() == undisturbed_result
    assert [proxy.dead_ends for proxy in proxies] == [WORKERS, WORKERS]
    for worker in training.workers:
        assert worker.log.count("it cannot open a data connection") == 2


def test_a_silent_network_is_noticed_and_workers_reconnect(
    make_aggregator: Callable[..., Any],
    make_proxy: Callable[..., Any],
    make_training: Callable[..., Any],
    undisturbed_result: dict[str, Any],
) -> None:
    """When forwarding stops, keepalive probes notice within seconds, and the training goes on over a new connection."""
    aggregators = [make_aggregator("--keepalive", "500ms") for _ in range(2)]
    proxies = [make_proxy(aggregator) for aggregator in aggregators]
    training = make_training([p.address for p in proxies], keepalive=0.5)
    training.wait_for_step(STEPS // 2)
    begin = time.monotonic()
    proxies[0].stall()
    while any(w.log.count("lost its connection") == 0 for w in training.workers):
        time.sleep(0.01)
        assert time.monotonic() - begin < 10
    proxies[0].flow()
    assert training.result() == undisturbed_result
    assert proxies[0].connections > WORKERS


def test_a_stopped_aggregator_is_handled_as_a_silent_network(
    make_aggregator: Callable[..., Any], make_training: Callable[..., Any], undisturbed_result: dict[str, Any]
) -> None:
    """SIGSTOP for longer than the probes take, then SIGCONT: the training goes on."""
    aggregators = [make_aggregator("--keepalive", "500ms") for _ in range(2)]
    training = make_training([a.address for a in aggregators], keepalive=0.5)
    training.wait_for_step(STEPS // 2)
    begin = time.monotonic()
    os.kill(aggregators[1].process.pid, signal.SIGSTOP)
    while any(w.log.count("lost its connection") == 0 for w in training.workers):
        time.sleep(0.01)
        assert time.monotonic() - begin < 10
    os.kill(aggregators[1].process.pid, signal.SIGCONT)
    assert training.result() == undisturbed_result


def test_a_rolling_restart_costs_no_step(
    make_aggregator: Callable[..., Any], make_training: Callable[..., Any], undisturbed_result: dict[str, Any]
) -> None:
    """Aggregators get SIGTERM one after the other. Each finishes its open rounds, exits with status 0 and restarts."""
    aggregators = [make_aggregator() for _ in range(2)]
    training = make_training([a.address for a in aggregators])
    for turn in range(3):
        training.wait_for_step(training.steps + 5)
        aggregator = aggregators[turn % 2]
        assert aggregator.end(signal.SIGTERM) == 0
        assert "ERROR" not in aggregator.log
        aggregator.start()
    assert training.result() == undisturbed_result


def test_a_worker_may_leave_while_others_go_on(make_aggregator: Callable[..., Any]) -> None:
    """A goodbye is answered as soon as the other ranks have their sums, not after a time-out."""
    aggregator = make_aggregator()

    def join(rank: int) -> psum.Client:
        return psum.connect(psum.Settings(rank=rank, num_workers=2, aggregators=(aggregator.address,)))

    with join(0) as zero:
        one = join(1)
        futures = [c.store().push_pull_async("w", np.ones(100_000, np.float32)) for c in (zero, one)]
        assert [f.exception(30) for f in futures] == [None, None]
        begin = time.monotonic()
        one.close()
        # The time-out is 3 s.
        assert time.monotonic() - begin < 2.5


def test_an_aggregator_that_does_not_come_back_is_named(
    make_aggregator: Callable[..., Any], make_training: Callable[..., Any]
) -> None:
    """After reconnect_timeout every rank gets an error with the aggregator's address, the cause and the time."""
    aggregators = [make_aggregator() for _ in range(2)]
    training = make_training([a.address for a in aggregators], steps=None, reconnect_timeout=1.0)
    training.wait_for_step(3)
    aggregators[1].end()
    for worker in training.workers:
        with pytest.raises(WorkerFailed, match=rf"{aggregators[1].address} .* within 1 s") as caught:
            worker.next("trained")
        assert caught.value.error["kind"] == "AggregatorLostError"
        assert caught.value.error["address"] == aggregators[1].address


def test_without_kept_sums_an_aggregator_can_restart_between_rounds(make_aggregator: Callable[..., Any]) -> None:
    """With PSUM_KEEP_SUMS=0 a restart between two rounds works, because no rank lacks a sum that another has."""
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
