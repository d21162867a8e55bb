"""SIGTERM to a worker whose program has no handler for it, as a process like others and as process 1."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from faults.processes import PROCESS_1, WorkerProcess
from faults.watching import find_job, is_gone, wait_until
from tests.silent_server import silent_server

#: How soon a worker has to end, and its peers have to hear of it. A worker may take 2 s, of which it waits 1.5 s for
#: aggregators; the rest is for a busy machine. Without a goodbye, aggregators and peers would notice after 10 s at the
#: earliest, when a silent connection is probed.
LIMIT_SECONDS = 8.0


@pytest.fixture(params=["a process", "process 1"])
def process_1(request: pytest.FixtureRequest) -> bool:
    """Whether the worker that is to end is process 1."""
    if request.param == "a process":
        return False
    try:
        subprocess.run([*PROCESS_1, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not make namespaces of processes")
    return True


@pytest.fixture
def pair(make_aggregator: Callable[..., Any], make_worker: Callable[..., Any], process_1: bool) -> tuple[Any, Any, Any]:
    """Two workers, the second one perhaps process 1, and one of their two aggregators."""
    aggregators = [make_aggregator() for _ in range(2)]
    settings = {"aggregators": [a.address for a in aggregators], "num_workers": 2}
    zero, one = make_worker(rank=0, **settings), make_worker(process_1, rank=1, **settings)
    for worker in (zero, one):
        worker.next("joined")
    return zero, one, aggregators[0]


def sum_once(*workers: WorkerProcess) -> None:
    for worker in workers:
        worker.send("push", key="w", size=300_000)
    for worker in workers:
        assert worker.next("sum")["right"]


def terminate(worker: WorkerProcess, *, is_stuck: bool = False) -> float:
    """Asks it to end, and sees that it does so at once and with the right status; returns when it was asked."""
    begin = time.monotonic()
    worker.signal(signal.SIGTERM)
    status = worker.wait(LIMIT_SECONDS)
    assert status == (143 if is_stuck or worker.is_process_1 else -signal.SIGTERM), worker.log
    return begin


def check_that_it_was_heard(peer: WorkerProcess, begin: float) -> None:
    error = peer.next("sum", "error", timeout=LIMIT_SECONDS)["error"]
    assert (error["kind"], error["ranks"]) == ("WorkerLostError", [1])
    assert "rank 1 of job 'default', " in error["text"]
    assert "was ended by SIGTERM before its work was done" in error["text"]
    assert time.monotonic() - begin < LIMIT_SECONDS


@pytest.mark.parametrize("phase", ["trains", "waits for a peer", "is waited for", "is in a long call into C"])
def test_a_worker_ends_and_its_peer_hears_of_it_at_once(pair: tuple[Any, Any, Any], phase: str) -> None:
    """In mid-step, with sums under way either way, and where Python could not run a handler."""
    zero, one, _ = pair
    sum_once(zero, one)
    if phase == "trains":
        for worker in pair[:2]:
            worker.send("train", steps=None)
        one.next("step")
    elif phase == "waits for a peer":
        one.send("push", key="w", size=300_000)
        one.next("pushed")
    else:
        zero.send("push", key="w", size=300_000)
        zero.next("pushed")
    if phase == "is in a long call into C":
        one.send("compute")
        one.next("computing")
    begin = terminate(one, is_stuck=phase == "is in a long call into C")
    if phase == "waits for a peer":
        zero.send("push", key="w", size=300_000)
    check_that_it_was_heard(zero, begin)


def test_a_worker_ends_while_it_waits_for_an_aggregator_that_does_not_answer(pair: tuple[Any, Any, Any]) -> None:
    """The aggregator's process is stopped; the other one tells the peer."""
    zero, one, stopped = pair
    sum_once(zero, one)
    stopped.process.send_signal(signal.SIGSTOP)
    try:
        for worker in pair[:2]:
            worker.send("push", key="w", size=300_000)
            worker.next("pushed")
        begin = terminate(one)
        check_that_it_was_heard(zero, begin)
    finally:
        stopped.process.send_signal(signal.SIGCONT)


def has_two_workers(address: str) -> bool:
    job = find_job(address)
    return job is not None and len(job.workers) == 2


@pytest.mark.parametrize("waits_for", ["an aggregator", "other ranks"])
def test_a_worker_that_has_taken_part_in_nothing_leaves_its_place_to_another(
    make_aggregator: Callable[..., Any], make_worker: Callable[..., Any], process_1: bool, waits_for: str
) -> None:
    """It ends while it joins: its peer is told at once, and goes on with the process that comes in its place."""
    aggregators = [make_aggregator() for _ in range(2)]
    addresses = [a.address for a in aggregators]
    zero = make_worker(rank=0, num_workers=2, aggregators=addresses)
    zero.next("joined")
    with contextlib.ExitStack() as stack:
        if waits_for == "an aggregator":
            aggregators[1].end()
            stack.enter_context(silent_server(addresses[1]))
        one = make_worker(process_1, rank=1, num_workers=2, aggregators=addresses)
        wait_until(has_two_workers, addresses[0], what="it has joined one aggregator")
        if waits_for == "other ranks":
            one.next("joined")
        terminate(one)
    wait_until(is_gone, addresses[0], 1, what="its end is noticed", timeout=LIMIT_SECONDS)
    wait_until(lambda: "was ended by SIGTERM" in zero.log, what="the peer is told", timeout=LIMIT_SECONDS)
    if waits_for == "an aggregator":
        aggregators[1].start()
    two = make_worker(rank=1, num_workers=2, aggregators=addresses)
    sum_once(zero, two)
