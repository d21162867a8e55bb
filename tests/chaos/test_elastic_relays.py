"""Workers of relays' groups, and relays, are killed in an elastic job. The others go on with the same bits."""

import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest

from faults.aggregators import AggregatorProcess
from faults.processes import WorkerFailed, WorkerProcess
from faults.steps import Steps

#: Less than the time after which a silent worker is lost, and more than that for a closed connection.
CLOSED_SECONDS: Final = 4.0

#: How many workers a host has.
LOCAL_SIZE: Final = 2

Make = Callable[..., Any]


class Job:
    """Two hosts with a relay and two workers each, and two aggregators elsewhere.

    Args:
        make_aggregator: Starts an aggregator.
        make_worker: Starts a worker.
        name: The job's name.
        flags: Of the aggregators.
    """

    def __init__(self, make_aggregator: Make, make_worker: Make, name: str, flags: Sequence[str] = ()) -> None:
        self.owners: list[AggregatorProcess] = [make_aggregator(*flags) for _ in range(2)]
        self.relays: list[AggregatorProcess] = [make_aggregator(*flags) for _ in range(2)]
        self._make_worker = make_worker
        self._name = name

    def start(self, **settings: Any) -> list[WorkerProcess]:
        """Start all workers, and wait until they have joined."""
        common = {
            "job": self._name,
            "aggregators": [each.address for each in self.owners],
            "num_workers": 4,
            "local_size": LOCAL_SIZE,
            "elastic": [1, 4],
            "partition_bytes": 1 << 17,
            "reconnect_timeout": 30.0,
        }
        workers = [
            self._make_worker(rank=rank, relay=self.relays[rank // LOCAL_SIZE].address, **common | settings)
            for rank in range(4)
        ]
        for worker in workers:
            worker.next("joined")
        return workers


class Away:
    """Within the block, an aggregator is killed. It is started again at the end.

    Attributes:
        seconds: How long it was away. On a busy machine, its start may take longer than all that follows from it.
    """

    def __init__(self, aggregator: AggregatorProcess) -> None:
        self._aggregator = aggregator
        self._since = 0.0
        self.seconds = 0.0

    def __enter__(self) -> "Away":
        self._since = time.monotonic()
        self._aggregator.end()
        return self

    def __exit__(self, *_: object) -> None:
        self._aggregator.start()
        self.seconds = time.monotonic() - self._since


@pytest.fixture
def job(make_aggregator: Make, make_worker: Make, request: pytest.FixtureRequest) -> Job:
    return Job(make_aggregator, make_worker, request.node.name)


@pytest.mark.parametrize("plane", ["direct", "shm"])
def test_the_others_go_on_without_workers_of_groups(job: Job, plane: str) -> None:
    """One worker of a group is killed, then the whole other group. Each part of each sum has as many ranks as its count
    says, and all survivors hold the same bits."""
    steps = Steps(job.start(plane=plane), LOCAL_SIZE)
    steps.wait(5)
    steps.end(0)
    steps.wait(5)
    steps.end(2)
    steps.end(3)
    steps.wait(5)
    steps.stop()
    assert steps.longest(1) < CLOSED_SECONDS
    assert steps.counts[0] == set()
    assert steps.counts[-1] == {1}


def test_a_relay_that_is_started_again_costs_nobody_its_place(job: Job) -> None:
    """It is killed before and after a worker of its group was. The other one tells its next process of the loss."""
    steps = Steps(job.start(), LOCAL_SIZE)
    steps.wait(3)
    with Away(job.relays[1]) as first:
        pass
    steps.wait(3)
    steps.end(3)
    steps.wait(3)
    with Away(job.relays[1]) as second:
        pass
    steps.wait(3)
    steps.stop()
    assert steps.counts[-1] == {3}
    assert steps.longest(2) < max(first.seconds, second.seconds) + CLOSED_SECONDS


def test_a_relay_and_a_worker_of_its_group_are_killed(job: Job) -> None:
    """The next process of the relay waits for the time-out of silent workers, and goes on without the worker."""
    steps = Steps(job.start(), LOCAL_SIZE)
    steps.wait(3)
    with Away(job.relays[1]) as relay:
        steps.end(3)
    steps.wait(5)
    steps.stop()
    assert steps.counts[-1] == {3}
    assert steps.longest(0) < relay.seconds + 5 + CLOSED_SECONDS


def test_a_relay_and_all_of_its_workers_are_killed(job: Job) -> None:
    """None of the workers tells the owners that it lives. So these do not wait for the relay's next process."""
    steps = Steps(job.start(), LOCAL_SIZE)
    # By then the owners have heard all workers once.
    steps.run(4.0)
    job.relays[1].end()
    steps.end(2)
    steps.end(3)
    steps.wait(5)
    steps.stop()
    assert steps.counts[-1] == {2}
    assert 4 < steps.longest(0) < 5 + CLOSED_SECONDS


def test_all_processes_of_a_host_are_killed_whose_aggregator_is_relay_and_owner(job: Job) -> None:
    """Its next process owns shards again. The other one misses the workers as soon as all aggregators are there."""
    job.relays = job.owners
    steps = Steps(job.start(), LOCAL_SIZE)
    # By then the owners have heard all workers once.
    steps.run(4.0)
    with Away(job.relays[1]) as relay:
        steps.end(2)
        steps.end(3)
    steps.wait(5)
    steps.stop()
    assert steps.counts[-1] == {2}
    assert 4 < steps.longest(0) < relay.seconds + 5 + CLOSED_SECONDS


def test_a_host_that_is_silent_is_lost_and_excluded_when_it_is_heard_again(
    make_aggregator: Make, make_worker: Make, request: pytest.FixtureRequest
) -> None:
    """Relay and workers are stopped, as if the network of their host were cut. No connection is closed."""
    job = Job(make_aggregator, make_worker, request.node.name, ["--elastic-timeout", "2s"])
    workers = job.start()
    steps = Steps(workers, LOCAL_SIZE)
    # By then the owners have heard all workers once.
    steps.run(4.0)
    job.relays[1].process.send_signal(signal.SIGSTOP)
    for rank in (2, 3):
        steps.end(rank, signal.SIGSTOP)
    steps.wait(5)
    job.relays[1].process.send_signal(signal.SIGCONT)
    for rank in (2, 3):
        workers[rank].signal(signal.SIGCONT)
    for rank in (2, 3):
        with pytest.raises(WorkerFailed, match="was excluded") as caught:
            workers[rank].next("stepped")
        assert caught.value.error["kind"] == "ExcludedError"
    steps.stop()
    assert steps.counts[-1] == {2}
    assert 3 < steps.longest(0) < 4 + CLOSED_SECONDS


def test_a_relay_that_comes_back_late_costs_nobody_its_place(job: Job) -> None:
    """Its workers tell the owners that they live, for longer than the time after which those miss a silent worker."""
    steps = Steps(job.start(), LOCAL_SIZE)
    steps.run(4.0)
    job.relays[1].end()
    time.sleep(8)
    job.relays[1].start()
    steps.wait(5)
    steps.stop()
    assert set().union(*steps.counts) == set()
    assert steps.longest(0) > 7


def test_owners_that_are_started_again_learn_of_losses_from_relays(job: Job) -> None:
    """They do not wait for the lost rank, and give the sums of the last round again with their counts."""
    steps = Steps(job.start(), LOCAL_SIZE)
    steps.wait(3)
    steps.end(1)
    steps.wait(3)
    for owner in job.owners:
        owner.end()
        owner.start()
        steps.wait(3)
    steps.stop()
    assert steps.counts[-1] == {3}


def test_a_relay_that_does_not_come_back_is_lost_with_its_group(
    make_aggregator: Make, make_worker: Make, request: pytest.FixtureRequest
) -> None:
    """The others wait for it as long as in other jobs, and go on. Its workers end with an error."""
    job = Job(make_aggregator, make_worker, request.node.name, ["--worker-timeout", "6s"])
    workers = job.start(reconnect_timeout=4.0)
    steps = Steps(workers, LOCAL_SIZE)
    steps.wait(3)
    job.relays[1].end()
    for rank in (2, 3):
        steps.forget(rank)
    steps.wait(3)
    steps.stop()
    assert steps.counts[-1] == {2}
    for rank in (2, 3):
        with pytest.raises(WorkerFailed, match="could not get it back within 4 s"):
            workers[rank].next("stepped")


def test_a_stopped_worker_of_a_group_never_contributes_again(
    make_aggregator: Make, make_worker: Make, request: pytest.FixtureRequest
) -> None:
    """Its relay loses it after the time-out. When it continues, it ends with an error that says why."""
    job = Job(make_aggregator, make_worker, request.node.name, ["--elastic-timeout", "2s"])
    steps = Steps(job.start(), LOCAL_SIZE)
    steps.wait(3)
    stopped = steps.end(1, signal.SIGSTOP)
    steps.wait(5)
    stopped.signal(signal.SIGCONT)
    with pytest.raises(WorkerFailed, match=r"rank 1 of elastic job .* was excluded") as caught:
        stopped.next("stepped")
    assert caught.value.error["kind"] == "ExcludedError"
    steps.stop()
    assert steps.counts[-1] == {3}
