"""Elastic jobs on a network that is cut between some hosts only."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from faults.processes import WorkerProcess
from tests.bench.netlab.network import Network
from tests.polling import wait_until
from tests.processes import running

PORT = 50051
WORKERS = 3

#: Seconds after which a silent worker is lost. A worker notices that an aggregator is silent within four fifths of it.
TIMEOUT = 3.0
KEEPALIVE = 1.0

pytestmark = [pytest.mark.usefixtures("lab"), pytest.mark.timeout(120)]


class Job:
    """Three hosts with a worker each, and aggregators on the first two.

    Args:
        directory: The directory for logs.
        stack: The stack that ends everything when it closes.

    Attributes:
        network: The hosts.
        workers: The workers, by rank and host.
    """

    def __init__(self, directory: pathlib.Path, stack: contextlib.ExitStack) -> None:
        self.network = stack.enter_context(Network(WORKERS, 100.0))
        self.addresses = [f"{self.network.address(host)}:{PORT}" for host in range(2)]
        self._log = directory / "aggregators.log"
        errors = stack.enter_context(self._log.open("w"))
        for host, address in enumerate(self.addresses):
            command = [sys.executable, "-m", "psum.cli", "aggregator", "--listen", address, "--insecure"]
            command += ["--keepalive", f"{KEEPALIVE}s", "--elastic-timeout", f"{TIMEOUT}s"]
            command += ["--shm-directory", self.network.shared_memory(host)]
            stack.enter_context(running(self.network.inside(host, *command), stderr=errors))
        self.workers = [
            WorkerProcess(directory / f"rank-{rank}.log", prefix=self.network.inside(rank)) for rank in range(WORKERS)
        ]
        for worker in self.workers:
            stack.callback(worker.close)
        for rank, worker in enumerate(self.workers):
            settings = {
                "job": "job",
                "aggregators": self.addresses,
                "rank": rank,
                "num_workers": WORKERS,
                "elastic": [1, WORKERS],
                "keepalive": KEEPALIVE,
                "partition_bytes": 1 << 16,
                "shm_directory": self.network.shared_memory(rank),
            }
            worker.send("join", settings=settings)
        for worker in self.workers:
            worker.next("joined")
            worker.send("steps")
        for worker in self.workers:
            worker.next("step")

    def steps(self, rank: int) -> list[dict[str, Any]]:
        """The steps that a rank has completed."""
        return [event for event in self.workers[rank].events if event["event"] == "step"]

    def wait_for_steps(self, ranks: list[int], more: int = 3) -> None:
        """Waits until ranks have completed so many more steps."""
        before = {rank: len(self.steps(rank)) for rank in ranks}
        wait_until(lambda: all(len(self.steps(rank)) >= before[rank] + more for rank in ranks))

    def stop(self, ranks: list[int]) -> None:
        """Ranks end their training and leave. All had the same bits after each step, and they were right."""
        self.workers[ranks[0]].send("stop")
        for rank in ranks:
            self.workers[rank].next("stepped")
            self.workers[rank].send("close")
        for rank in ranks:
            self.workers[rank].next("closed")
        for events in zip(*(self.steps(rank) for rank in ranks), strict=True):
            assert all(event["right"] for event in events)
            assert len({event["digest"] for event in events}) == 1

    def log(self) -> str:
        """What aggregators and workers have logged."""
        return self._log.read_text() + "".join(worker.log for worker in self.workers)


@pytest.fixture
def job(tmp_path: pathlib.Path) -> Iterator[Job]:
    """A job that trains, and ends with the test."""
    with contextlib.ExitStack() as stack:
        yield Job(tmp_path, stack)


def test_a_worker_that_one_aggregator_cannot_reach_is_excluded_at_both(job: Job) -> None:
    """The other aggregator sees it all the time. It ends with an error that says which connection was silent, and the
    others go on."""
    job.network.separate(2, 1)
    error = job.workers[2].next("error")["error"]
    assert error["kind"] == "ExcludedError"
    assert error["ranks"] == [2]
    assert f"aggregator {job.addresses[1]}" in error["text"]
    job.wait_for_steps([0, 1])
    job.stop([0, 1])


def test_no_half_of_a_network_goes_on_alone(job: Job) -> None:
    """Each half has an aggregator. Neither completes a step or loses a worker. All go on when the network works again,
    with nobody excluded.
    """
    for host in (0, 2):
        job.network.separate(host, 1)
    wait_until(lambda: job.log().count(" lost its connection to aggregator ") >= WORKERS)
    done = [len(job.steps(rank)) for rank in range(WORKERS)]
    # Longer than any loss takes.
    time.sleep(2 * TIMEOUT + 1)
    assert [len(job.steps(rank)) for rank in range(WORKERS)] == done
    for host in (0, 2):
        job.network.reunite(host, 1)
    job.wait_for_steps([0, 1, 2])
    job.stop([0, 1, 2])
    assert "is lost" not in job.log()
