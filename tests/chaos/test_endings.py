"""A worker process exits in various ways, or forks, while operations are outstanding."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

WORKER_TIMEOUT = 1.0


@pytest.fixture
def pair(make_aggregator: Callable[..., Any], make_worker: Callable[..., Any]) -> tuple[Any, Any]:
    """Two workers with two aggregators. Each has pushed a key that the other has not: rank 0 'x', rank 1 'y'."""
    flags = ("--worker-timeout", f"{WORKER_TIMEOUT:g}s", "--keepalive", "1s")
    addresses = [make_aggregator(*flags).address for _ in range(2)]
    zero, one = (make_worker(aggregators=addresses, rank=rank, num_workers=2) for rank in range(2))
    for worker, key in ((zero, "x"), (one, "y")):
        worker.send("push", key=key, size=300_000)
        worker.next("pushed")
    return zero, one


def check_peer_error(peer: Any, begin: float, patience: float) -> None:
    # The next push of a training may hear of it before the sum that is waited for.
    error = peer.next("sum", "error", timeout=patience)["error"]
    assert error["kind"] == "WorkerLostError"
    assert error["ranks"] == [1]
    assert "rank 1" in error["text"]
    assert time.monotonic() - begin < patience


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ({"do": "exit"}, 0, ""),
        ({"do": "raise", "within": False}, 1, "ValueError: raised on command"),
        ({"do": "raise", "within": True}, 1, "ValueError: raised on command"),
        ({"do": "_exit"}, 0, ""),
    ],
    ids=["exit", "exception", "exception within a with statement", "os._exit"],
)
def test_an_exit_with_outstanding_operations_is_quick_and_reported(
    pair: tuple[Any, Any], command: dict[str, Any], status: int, words: str
) -> None:
    """The process ends within seconds, with the exit status that it would have without psum. Its peer gets an error."""
    zero, one = pair
    begin = time.monotonic()
    one.send(**command)
    assert one.wait(10) == status
    assert words in one.log
    check_peer_error(zero, begin, WORKER_TIMEOUT + 5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_step_ends_the_process_and_is_reported(pair: tuple[Any, Any], number: signal.Signals) -> None:
    """Ctrl-C while the main thread waits for a sum raises KeyboardInterrupt there, and the process ends promptly."""
    zero, one = pair
    for worker in pair:
        worker.send("train", steps=None)
    one.next("step")
    begin = time.monotonic()
    one.signal(number)
    assert one.wait(10) == -number
    assert ("KeyboardInterrupt" in one.log) == (number is signal.SIGINT)
    check_peer_error(zero, begin, WORKER_TIMEOUT + 5)


@pytest.mark.parametrize("ends", ["_exit", "exit", "multiprocessing"])
@pytest.mark.parametrize("uses", [False, True])
def test_a_fork_with_outstanding_operations_is_safe(pair: tuple[Any, Any], ends: str, uses: bool) -> None:
    """The child can exit in any way and gets ForkedError if it uses psum. The parent's operations complete."""
    zero, one = pair
    one.send("fork", uses=uses, ends=ends)
    if uses:
        error = one.next("child")["error"]
        assert error["kind"] == "ForkedError"
        assert f"forked from pid {one.process.pid}" in error["text"]
    event = one.next("forked", timeout=10)
    assert event["status"] == 0
    assert event["seconds"] < 5
    for worker, key in ((zero, "y"), (one, "x")):
        worker.send("push", key=key, size=300_000)
    for worker in pair:
        assert [worker.next("sum")["right"] for _ in range(2)] == [True, True]


def test_a_forked_child_that_outlives_its_parent_does_not_hide_its_death(pair: tuple[Any, Any]) -> None:
    """The child keeps the connection open, but keepalive probes notice that the parent no longer answers."""
    zero, one = pair
    one.send("fork", uses=False, ends="stays")
    child = one.next("child")["pid"]
    try:
        one.signal(signal.SIGKILL)
        check_peer_error(zero, time.monotonic(), 2 * 1 + WORKER_TIMEOUT + 5)
    finally:
        os.kill(child, signal.SIGKILL)
