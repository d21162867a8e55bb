"""A worker's process ends in some way, or forks, while operations are outstanding."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

WORKER_TIMEOUT = 1.0


@pytest.fixture
def pair(make_aggregator: Callable[..., Any], make_worker: Callable[..., Any]) -> tuple[Any, Any]:
    """Two workers over two aggregators; each has pushed what the other has not: rank 0 'x', rank 1 'y'."""
    flags = ("--worker-timeout", f"{WORKER_TIMEOUT:g}s", "--keepalive", "1s")
    addresses = [make_aggregator(*flags).address for _ in range(2)]
    zero, one = (make_worker(aggregators=addresses, rank=rank, num_workers=2) for rank in range(2))
    for worker, key in ((zero, "x"), (one, "y")):
        worker.send("push", key=key, size=300_000)
        worker.next("pushed")
    return zero, one


def check_that_it_was_heard(peer: Any, begin: float, patience: float) -> None:
    error = peer.next("sum", timeout=patience)["error"]
    assert error["kind"] == "WorkerLostError"
    assert error["ranks"] == [1]
    assert "rank 1" in error["text"]
    assert time.monotonic() - begin < patience


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ({"do": "exit"}, 0, ""),
        ({"do": "raise", "within": False}, 1, "ValueError: told to"),
        ({"do": "raise", "within": True}, 1, "ValueError: told to"),
        ({"do": "_exit"}, 0, ""),
    ],
    ids=["exit", "exception", "exception within a with statement", "os._exit"],
)
def test_an_end_with_outstanding_operations_is_quick_and_heard(
    pair: tuple[Any, Any], command: dict[str, Any], status: int, words: str
) -> None:
    """The process ends within seconds, with the status that it would have without psum; its peer is told of it."""
    zero, one = pair
    begin = time.monotonic()
    one.send(**command)
    assert one.wait(10) == status
    assert words in one.log
    check_that_it_was_heard(zero, begin, WORKER_TIMEOUT + 5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_mid_step_ends_the_process_and_is_heard(pair: tuple[Any, Any], number: signal.Signals) -> None:
    """Ctrl-C while the main thread waits for a sum is a KeyboardInterrupt there, and nothing holds up the end."""
    zero, one = pair
    for worker in pair:
        worker.send("train", steps=None)
    one.next("step")
    begin = time.monotonic()
    one.signal(number)
    assert one.wait(10) == -number
    assert ("KeyboardInterrupt" in one.log) == (number is signal.SIGINT)
    check_that_it_was_heard(zero, begin, WORKER_TIMEOUT + 5)


@pytest.mark.parametrize("ends", ["_exit", "exit", "multiprocessing"])
@pytest.mark.parametrize("uses", [False, True])
def test_a_fork_with_outstanding_operations_does_no_harm(pair: tuple[Any, Any], ends: str, uses: bool) -> None:
    """The child ends as it likes, and is told that it cannot use psum; the parent's operations are completed."""
    zero, one = pair
    one.send("fork", uses=uses, ends=ends)
    if uses:
        error = one.next("child")["error"]
        assert error["kind"] == "ForkedError"
        assert f"forked from pid {one.process.pid}" in error["text"]
    told = one.next("forked", timeout=10)
    assert told["status"] == 0
    assert told["seconds"] < 5
    for worker, key in ((zero, "y"), (one, "x")):
        worker.send("push", key=key, size=300_000)
    for worker in pair:
        assert [worker.next("sum")["right"] for _ in range(2)] == [True, True]


def test_a_forked_child_that_outlives_its_parent_hides_its_end_from_nobody(pair: tuple[Any, Any]) -> None:
    """The child keeps the connection open; that the parent does not answer any more is found out by probes."""
    zero, one = pair
    one.send("fork", uses=False, ends="stays")
    child = one.next("child")["pid"]
    try:
        one.signal(signal.SIGKILL)
        check_that_it_was_heard(zero, time.monotonic(), 2 * 1 + WORKER_TIMEOUT + 5)
    finally:
        os.kill(child, signal.SIGKILL)
