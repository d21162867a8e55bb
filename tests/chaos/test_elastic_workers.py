"""Workers of an elastic job are killed or stopped. The others go on with the same bits, and without an error."""

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pytest

from faults.aggregators import AggregatorProcess, aggregators
from faults.processes import WorkerFailed, WorkerProcess
from faults.steps import Steps
from faults.watching import rounds_waiting, wait_until

#: Less than the time after which a silent worker is lost, and more than that for a closed connection.
CLOSED_SECONDS: Final = 4.0
SILENT_SECONDS: Final = 2.0


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The addresses of two aggregators with the usual time-outs."""
    with aggregators(tmp_path_factory.mktemp("aggregators"), 2) as pair:
        yield [each.address for each in pair]


@pytest.fixture
def make_job(make_worker: Callable[..., Any], request: pytest.FixtureRequest) -> Callable[..., list[WorkerProcess]]:
    """Start the workers of an elastic job, which is named after the test."""

    def make(addresses: Sequence[str], size: int = 4, least: int = 1, **settings: Any) -> list[WorkerProcess]:
        common = {
            "job": request.node.name,
            "aggregators": list(addresses),
            "num_workers": size,
            "elastic": [least, size],
            "partition_bytes": 1 << 17,
            "reconnect_timeout": 30.0,
        }
        workers = [make_worker(rank=rank, **common | settings) for rank in range(size)]
        for worker in workers:
            worker.next("joined")
        return workers

    return make


@pytest.mark.parametrize("plane", ["inline", "direct", "shm"])
def test_survivors_go_on_with_the_same_bits(addresses: list[str], make_job: Callable[..., Any], plane: str) -> None:
    """Rank 0 and others are killed, down to the minimum. Each part of each sum has as many ranks as its count says."""
    steps = Steps(make_job(addresses, least=2, plane=plane))
    steps.wait(5)
    for rank in (0, 2):
        steps.end(rank)
        steps.wait(8)
    steps.stop()
    assert steps.longest(1) < CLOSED_SECONDS
    counts = steps.counts
    assert counts[0] == set()
    assert counts[-1] == {2}
    # In one step after each death, some parts may count the dead rank and others not.
    assert all(fewer <= {2, 3} for fewer in counts)
    assert {3} in counts


def test_what_a_worker_contributed_before_it_was_killed_counts(
    addresses: list[str], make_job: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    """In the first step, one rank contributes to one of two keys, and is killed."""
    *others, killed = make_job(addresses, size=3)
    killed.send("push", key="a", size=100_000)
    others[0].send("push", key="a", size=100_000)

    def waits_for_one() -> bool:
        waiting = rounds_waiting(addresses, request.node.name)
        return len(waiting) == 4 and all(ranks == (1,) for _, _, ranks in waiting)

    wait_until(waits_for_one, what="two ranks have contributed to all shards")
    killed.signal(signal.SIGKILL)
    others[0].send("push", key="b", size=1000)
    others[1].send("push", key="b", size=1000)
    for worker in others:
        [(_, _, count)] = worker.next("sum")["counts"]
        assert count == 2
    others[1].send("push", key="a", size=100_000)
    for worker in others:
        event = worker.next("sum")
        assert (event["key"], event["right"], event["counts"], event["error"]) == ("a", True, [], None)
        worker.send("close")
    for worker in others:
        worker.next("closed")


def test_a_job_below_its_minimum_waits_and_then_says_so(
    make_aggregator: Callable[..., AggregatorProcess], make_job: Callable[..., Any]
) -> None:
    """The error says how many ranks are left and how many are needed."""
    address = make_aggregator("--round-timeout", "4s", "--elastic-timeout", "1s").address
    *others, killed = make_job([address], size=3, least=3)
    for worker in others:
        worker.send("push", key="w", size=1000)
    killed.signal(signal.SIGKILL)
    for worker in others:
        error = worker.next("sum")["error"]
        assert (error["kind"], error["ranks"]) == ("RoundTimeoutError", [2])
        assert (
            "2 of 3 ranks are left, and an elastic job that needs 3 (PSUM_ELASTIC) goes on with no fewer"
            in error["text"]
        )


def test_an_aggregator_that_is_started_again_after_a_loss_learns_of_it(
    make_aggregator: Callable[..., AggregatorProcess], make_job: Callable[..., Any]
) -> None:
    """It does not wait for the lost rank, and gives the sums of the last round again with their counts."""
    pair = [make_aggregator() for _ in range(2)]
    steps = Steps(make_job([each.address for each in pair], size=3))
    steps.wait(3)
    steps.end(1)
    steps.wait(3)
    for each in pair:
        each.end()
        each.start()
        steps.wait(3)
    steps.stop()
    assert steps.counts[-1] == {2}


@pytest.mark.parametrize("plane", ["inline", "shm"])
def test_a_worker_that_was_stopped_for_too_long_never_contributes_again(
    make_aggregator: Callable[..., AggregatorProcess], make_job: Callable[..., Any], plane: str
) -> None:
    """The others go on after the time-out. When it continues, it ends with an error that says why."""
    pair = [make_aggregator("--elastic-timeout", f"{SILENT_SECONDS:g}s") for _ in range(2)]
    addresses = [each.address for each in pair]
    workers = make_job(addresses, size=3, plane=plane)
    steps = Steps(workers)
    steps.wait(3)
    stopped = steps.end(1, signal.SIGSTOP)
    steps.wait(8)
    # 1 s between beats of the others and checks, and a busy machine.
    assert steps.longest(0) < SILENT_SECONDS + 3
    stopped.signal(signal.SIGCONT)
    with pytest.raises(WorkerFailed, match=r"rank 1 of elastic job .* was excluded") as caught:
        stopped.next("stepped")
    assert caught.value.error["kind"] == "ExcludedError"
    steps.wait(5)
    steps.stop()
    assert steps.counts[-1] == {2}
