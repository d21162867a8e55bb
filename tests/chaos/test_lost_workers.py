"""A worker is killed, and another process may take its rank."""

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from faults.processes import WorkerFailed
from faults.watching import find_job, holds_nothing, is_gone, is_over, resident_bytes, rounds_waiting, wait_until
from psum import client as psum

WORKER_TIMEOUT = 1.5
KEYS = ("a", "b", "c", "d")


def has_keys(address: str) -> bool:
    """Return whether some worker has reconnected and declared its keys."""
    job = find_job(address)
    return job is not None and job.keys > 0


def all_keys_wait(addresses: list[str], job: str) -> bool:
    return {key for key, *_ in rounds_waiting(addresses, job)} == set(KEYS)


def test_a_killed_worker_fails_all_peers_and_its_job_is_freed(
    make_aggregator: Callable[..., Any], make_worker: Callable[..., Any]
) -> None:
    """Every operation of every peer fails in time with an error that names the rank. Aggregators free the memory."""
    aggregators = [make_aggregator("--worker-timeout", f"{WORKER_TIMEOUT:g}s") for _ in range(2)]
    addresses = [a.address for a in aggregators]
    workers = [make_worker() for _ in range(3)]
    resident = []
    for job in ("first", "second"):
        if job != "first":
            workers[-1] = make_worker()
        for rank, worker in enumerate(workers):
            worker.send("join", settings={"job": job, "aggregators": addresses, "rank": rank, "num_workers": 3})
            # Some rounds get contributions from all ranks, the others from all ranks but the killed one.
            for key in KEYS[: 3 if rank < 2 else 2]:
                worker.send("push", key=key, size=1_000_000)
        for worker in workers:
            assert [worker.next("sum")["right"] for _ in KEYS[:2]] == [True, True]
        for worker in workers[:2]:
            for key in KEYS:
                worker.send("push", key=key, size=1_000_000)
        wait_until(all_keys_wait, addresses, job, what="all keys wait")
        *peers, killed = workers
        killed.signal(signal.SIGKILL)
        begin = time.monotonic()
        for peer in peers:
            for _ in range(1 + len(KEYS)):
                error = peer.next("sum", timeout=WORKER_TIMEOUT + 5)["error"]
                assert error["kind"] == "WorkerLostError"
                assert error["ranks"] == [2]
                assert f"rank 2 of job '{job}', " in error["text"]
                assert f"pid {killed.process.pid} " in error["text"]
        assert WORKER_TIMEOUT < time.monotonic() - begin < WORKER_TIMEOUT + 5
        for address in addresses:
            wait_until(holds_nothing, address, job, what="nothing is held")
        for peer in peers:
            peer.send("close")
            peer.next("closed")
        for address in addresses:
            wait_until(is_over, address, job, what="the job is over")
            [ended] = psum.fetch_status(address, job=job).ended
            assert "vanished" in ended.failure
        resident.append([resident_bytes(a.process.pid) for a in aggregators])
    assert all(last < first + (16 << 20) for first, last in zip(resident[0], resident[-1], strict=True))


def test_a_worker_that_joins_after_another_has_left_gets_an_error_and_the_next_run_does_not(
    make_aggregator: Callable[..., Any], make_worker: Callable[..., Any]
) -> None:
    """It does not wait for the round time-out of ten minutes. Processes started later form a new run."""
    addresses = [make_aggregator().address for _ in range(2)]
    common = {"aggregators": addresses, "num_workers": 2, "partition_bytes": 1 << 16}
    late = make_worker()
    early = make_worker(rank=1, **common)
    early.send("close")
    early.next("closed")
    for address in addresses:
        wait_until(is_over, address, "default", what="rank 1 has left")
    late.send("join", settings={"rank": 0, **common})
    late.next("joined")
    late.send("push", key="w", size=300_000)
    error = late.next("sum", timeout=10)["error"]
    assert error["kind"] == "WorkerLostError"
    assert error["ranks"] == [1]
    assert "has left job 'default' without contributing" in error["text"]
    late.send("close")
    late.next("closed")
    # Rank 0 joins long before rank 1.
    zero = make_worker(rank=0, **common)
    zero.next("joined")
    zero.send("push", key="w", size=300_000)
    make_worker(rank=1, **common).send("push", key="w", size=300_000)
    assert zero.next("sum")["right"]


def test_a_worker_that_took_part_in_nothing_can_be_replaced(
    make_aggregator: Callable[..., Any], make_worker: Callable[..., Any]
) -> None:
    """A new process takes the rank of a worker that was killed before its first push, and all sums are right."""
    address = make_aggregator().address
    common = {"aggregators": [address], "num_workers": 2}
    zero, first = (make_worker(rank=rank, **common) for rank in range(2))
    first.next("joined")
    zero.send("push", key="w", size=1000)
    zero.next("pushed")
    first.signal(signal.SIGKILL)
    wait_until(is_gone, address, 1, what="its end is noticed")
    second = make_worker(rank=1, **common)
    for round in range(2):
        second.send("push", key="w", size=1000)
        for worker in (zero, second):
            event = worker.next("sum")
            assert (event["round"], event["right"]) == (round, True)
        zero.send("push", key="w", size=1000)


def test_a_worker_waits_for_the_end_of_the_process_that_had_its_rank(
    make_aggregator: Callable[..., Any], make_worker: Callable[..., Any]
) -> None:
    """As where a pod is replaced whose program takes its time to end: the next run begins when the last one is over."""
    addresses = [make_aggregator().address for _ in range(2)]
    common = {"aggregators": addresses, "num_workers": 2}
    zero, first = (make_worker(rank=rank, **common) for rank in range(2))
    for worker in (zero, first):
        worker.send("push", key="w", size=300_000)
    for worker in (zero, first):
        assert worker.next("sum")["right"]
    second = make_worker(rank=1, **common)
    wait_until(lambda: "PSUM_RANK_TIMEOUT) for the end of another" in second.log, what="it says that it waits")
    for worker in (first, zero):
        worker.send("close")
        worker.next("closed")
    second.next("joined")
    third = make_worker(rank=0, **common)
    for worker in (second, third):
        worker.send("push", key="w", size=300_000)
    for worker in (second, third):
        assert worker.next("sum")["right"]


def test_two_workers_with_one_rank_are_told_of_both_causes(
    make_aggregator: Callable[..., Any], make_worker: Callable[..., Any]
) -> None:
    """The one that came later has an error in the end; the other one does not notice."""
    common = {"aggregators": [make_aggregator().address], "num_workers": 2}
    zero, first = (make_worker(rank=rank, **common) for rank in range(2))
    for worker in (zero, first):
        worker.next("joined")
    begin = time.monotonic()
    with pytest.raises(WorkerFailed, match=r"rank 1 of job 'default' is taken by .*, connected ") as caught:
        make_worker(rank=1, rank_timeout=1.0, **common).next("joined")
    assert time.monotonic() - begin > 1
    assert caught.value.error["kind"] == "TakenError"
    for part in ("still ending", "its own PSUM_RANK", "Waited for 1 s (PSUM_RANK_TIMEOUT)"):
        assert part in caught.value.error["text"]
    for worker in (zero, first):
        worker.send("push", key="w", size=1000)
    assert first.next("sum")["right"]


@pytest.mark.parametrize("in_an_open_round", [False, True])
def test_a_worker_that_took_part_is_replaced_in_the_next_run(
    make_aggregator: Callable[..., Any], make_worker: Callable[..., Any], in_an_open_round: bool
) -> None:
    """A new process of its rank ends the job at once for all ranks. What the old process contributed still counts.

    Otherwise the place of a vanished worker would be kept for 30 s. Nothing of the old process gets into a sum of the
    next run, which the new process joins when the others have gone. One of the aggregators knows nothing of the job.
    """
    addresses = [make_aggregator().address for _ in range(2)]
    common = {"aggregators": addresses, "num_workers": 2}
    zero, first = (make_worker(rank=rank, **common) for rank in range(2))
    first.send("push", key="w", size=1000)
    if not in_an_open_round:
        zero.send("push", key="w", size=1000)
        assert first.next("sum")["right"]
    else:
        wait_until(lambda: rounds_waiting(addresses) == [("w", 0, (0,))], what="it has contributed")
    first.signal(signal.SIGKILL)
    for address in addresses:
        wait_until(is_gone, address, 1, what="its end is noticed")
    if in_an_open_round:
        zero.send("push", key="w", size=1000)
    # Contributions that the killed worker made before still count.
    assert zero.next("sum")["right"]
    zero.send("push", key="w", size=1000)
    begin = time.monotonic()
    second = make_worker(rank=1, **common)
    error = zero.next("sum", timeout=10)["error"]
    assert (error["kind"], error["ranks"]) == ("WorkerLostError", [1])
    assert f"pid {second.process.pid} " in error["text"]
    assert "has come in its place" in error["text"]
    zero.send("close")
    zero.next("closed")
    third = make_worker(rank=0, **common)
    for worker in (second, third):
        worker.next("joined")
        worker.send("push", key="w", size=1000)
    for worker in (second, third):
        told = worker.next("sum")
        assert (told["round"], told["right"]) == (0, True)
    assert time.monotonic() - begin < 15


def test_a_second_worker_with_one_rank_does_no_harm_while_a_connection_is_opened_anew(
    make_aggregator: Callable[..., Any], make_worker: Callable[..., Any], make_proxy: Callable[..., Any]
) -> None:
    """It was there before, so it is not what has come in the place of the first, which is back at once."""
    proxy = make_proxy(make_aggregator())
    common = {"num_workers": 2}
    zero, first = (make_worker(rank=rank, aggregators=[proxy.address], **common) for rank in range(2))
    for worker in (zero, first):
        worker.send("train", steps=None)
    first.next("step")
    second = make_worker(rank=1, aggregators=[proxy.address], **common)
    wait_until(lambda: "PSUM_RANK_TIMEOUT" in second.log, what="the second one waits")
    for _ in range(5):
        proxy.cut()
        # All three are back.
        for worker in (zero, first):
            count = len(worker.events)
            wait_until(lambda: len(worker.events) > count + 5, what="the training goes on")  # noqa: B023
    assert not any(event["event"] == "error" for worker in (zero, first) for event in worker.events)


@pytest.mark.parametrize("newcomer_first", [False, True])
def test_a_replaced_worker_gets_no_old_sum_from_an_aggregator_that_was_started_again(
    make_aggregator: Callable[..., Any], make_worker: Callable[..., Any], newcomer_first: bool
) -> None:
    """If worker and aggregator die together, as on one machine, a new process of the rank is not mistaken for the old.

    The new process starts with the first round. Its peer has that round's sum, which contains the old process's values,
    and hears of the new process long before the worker timeout.
    """
    aggregator = make_aggregator()
    common = {"aggregators": [aggregator.address], "num_workers": 2}
    zero, first = (make_worker(rank=rank, **common) for rank in range(2))
    for worker in (zero, first):
        worker.send("push", key="w", size=1000)
    assert [worker.next("sum")["right"] for worker in (zero, first)] == [True, True]
    if newcomer_first:
        zero.signal(signal.SIGSTOP)
    first.signal(signal.SIGKILL)
    aggregator.end()
    aggregator.start()
    if newcomer_first:
        second = make_worker(rank=1, **common)
        second.send("push", key="w", size=1000)
        wait_until(lambda: rounds_waiting([aggregator.address]) == [("w", 0, (0,))], what="it has contributed")
        zero.signal(signal.SIGCONT)
        zero.send("push", key="w", size=1000)
        for worker in (zero, second):
            error = worker.next("sum")["error"]
            assert error is not None
            assert "rank 1" in error["text"]
            assert "started again in the middle of the job" in error["text"]
    else:
        wait_until(has_keys, aggregator.address, what="the peer has come back")
        second = make_worker(rank=1, **common)
        second.next("joined")
        zero.send("push", key="w", size=1000)
        error = zero.next("sum", "error")["error"]
        assert (error["kind"], error["ranks"]) == ("WorkerLostError", [1])
        assert "has come in its place" in error["text"]
        # The new process is in the next run, with a new process of its peer.
        third = make_worker(rank=0, **common)
        for worker in (second, third):
            worker.send("push", key="w", size=1000)
        assert [worker.next("sum")["right"] for worker in (second, third)] == [True, True]
