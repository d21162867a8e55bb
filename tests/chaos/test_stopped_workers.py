"""A worker is stopped by SIGSTOP. Its peers continue as far as they can, and it gets the right sums when it resumes."""

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from faults.processes import WorkerFailed
from faults.training import STEPS, WORKERS
from faults.watching import is_gone, is_over, rounds_waiting, wait_until

#: More than the socket buffers hold, so that the stopped worker has received its sum only in part.
SIZE = 2_000_000
SHARD_BYTES = 1 << 19
KEYS = ("v", "w")
SHARDS = len(KEYS) * -(-SIZE * 4 // SHARD_BYTES)


def test_a_worker_stopped_between_push_and_sum_gets_exactly_that_sum(
    make_aggregator: Callable[..., Any], make_worker: Callable[..., Any]
) -> None:
    """The other ranks complete its round and start the next one, which waits. No rank sees a torn or a newer sum."""
    addresses = [make_aggregator().address for _ in range(2)]
    common = {"aggregators": addresses, "num_workers": WORKERS, "partition_bytes": SHARD_BYTES}
    *others, stopped = workers = [make_worker(rank=rank, **common) for rank in range(WORKERS)]

    def push(senders: list[Any]) -> None:
        for worker in senders:
            for key in KEYS:
                worker.send("push", key=key, size=SIZE)

    def check(receivers: list[Any], round: int) -> None:
        for worker in receivers:
            sums = [worker.next("sum") for _ in KEYS]
            assert [(s["round"], s["right"], s["error"]) for s in sums] == [(round, True, None)] * len(KEYS)
            assert {s["key"] for s in sums} == set(KEYS)

    def all_wait_for(round: int, ranks: tuple[int, ...]) -> bool:
        expected = sorted([(key, round, ranks) for key in KEYS] * (SHARDS // len(KEYS)))
        return sorted(rounds_waiting(addresses)) == expected

    push([stopped])
    wait_until(all_wait_for, 0, (0, 1), what="all that the last rank pushed is there")
    stopped.signal(signal.SIGSTOP)
    push(others)
    check(others, 0)
    push(others)
    wait_until(all_wait_for, 1, (2,), what="the others are one round ahead")
    assert stopped.last == "pushed"
    stopped.signal(signal.SIGCONT)
    check([stopped], 0)
    push([stopped])
    check(workers, 1)


def test_a_worker_stopped_for_longer_than_probes_take_comes_back(
    make_aggregator: Callable[..., Any], make_training: Callable[..., Any], undisturbed_result: dict[str, Any]
) -> None:
    """The aggregators notice that it does not answer. If it resumes within worker_timeout, the result is unchanged."""
    aggregators = [make_aggregator("--keepalive", "500ms", "--worker-timeout", "30s") for _ in range(2)]
    training = make_training([a.address for a in aggregators], keepalive=0.5)
    training.wait_for_step(STEPS // 2)
    training.workers[1].signal(signal.SIGSTOP)
    for aggregator in aggregators:
        wait_until(is_gone, aggregator.address, 1, what="its silence is noticed", timeout=10)
    training.workers[1].signal(signal.SIGCONT)
    assert training.result() == undisturbed_result


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_worker_stopped_for_too_long_is_an_error_for_all_ranks(
    make_aggregator: Callable[..., Any], make_training: Callable[..., Any], forgotten: bool
) -> None:
    """After worker_timeout its peers get errors that name it. It gets the same error as soon as it resumes.

    This also holds if the aggregators keep nothing of the job but an entry in their history.
    """
    aggregators = [make_aggregator("--keepalive", "500ms", "--worker-timeout", "2s") for _ in range(2)]
    training = make_training([a.address for a in aggregators], steps=None, keepalive=0.5)
    training.wait_for_step(3)
    *_, stopped = training.workers
    stopped.signal(signal.SIGSTOP)
    begin = time.monotonic()
    for peer in training.workers[:-1]:
        with pytest.raises(WorkerFailed, match=r"rank 2 of job 'default', .* vanished") as caught:
            peer.next("trained")
        assert caught.value.error["ranks"] == [2]
    # 1 s for keepalive probes, 2 s worker_timeout, 5 s tolerance.
    assert time.monotonic() - begin < 1 + 2 + 5
    if forgotten:
        for peer in training.workers[:-1]:
            peer.send("close")
            peer.next("closed")
        for aggregator in aggregators:
            wait_until(is_over, aggregator.address, what="the job is over")
        # An aggregator remembers a failed job for worker_timeout.
        time.sleep(2.5)
    stopped.signal(signal.SIGCONT)
    begin = time.monotonic()
    with pytest.raises(WorkerFailed, match=r"rank 2 of job 'default', .* vanished") as caught:
        stopped.next("trained")
    assert caught.value.error["ranks"] == [2]
    assert time.monotonic() - begin < 1.5
