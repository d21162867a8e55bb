"""Jobs on hosts that vanish or whose links go down."""

import contextlib
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from faults.processes import WorkerProcess
from tests.bench.netlab.network import Network
from tests.polling import wait_until
from tests.processes import running

PORT = 50051

#: Seconds of silence after which a connection is probed. It is given up after the same time again.
KEEPALIVE = 0.5

#: The size of a tensor that is large enough to keep a host's link busy for more than a second. A busy machine may take
#: long to see that its bytes have begun to cross, and to do something to the link then.
ELEMENTS = 2_000_000
MBIT = 40.0

pytestmark = pytest.mark.usefixtures("lab")


class Job:
    """Two hosts, each with an aggregator and two workers, which find that aggregator as their relay.

    Args:
        directory: The directory for logs.
        stack: The stack that ends everything when it closes.
        worker_timeout: Seconds after which aggregators give up a vanished worker.

    Attributes:
        network: The hosts.
        workers: By rank. Ranks 0 and 1 are on host 0.
    """

    def __init__(self, directory: pathlib.Path, stack: contextlib.ExitStack, worker_timeout: float) -> None:
        self.network = stack.enter_context(Network(2, MBIT))
        self._addresses = [f"{self.network.address(host)}:{PORT}" for host in range(2)]
        self._aggregator_log = directory / "aggregators.log"
        errors = stack.enter_context(self._aggregator_log.open("w"))
        for host, address in enumerate(self._addresses):
            command = [sys.executable, "-m", "psum.cli", "aggregator", "--listen", address, "--insecure"]
            command += ["--keepalive", f"{KEEPALIVE}s", "--worker-timeout", f"{worker_timeout}s"]
            command += ["--shm-directory", self.network.shared_memory(host)]
            stack.enter_context(running(self.network.inside(host, *command), stderr=errors))
        self.workers = []
        for rank in range(4):
            self.workers.append(WorkerProcess(directory / f"rank-{rank}.log", prefix=self.network.inside(rank // 2)))
            stack.callback(self.workers[-1].close)

    def join(self, name: str) -> None:
        """All workers join a job of this name."""
        for rank, worker in enumerate(self.workers):
            settings = {
                "job": name,
                "aggregators": self._addresses,
                "rank": rank,
                "num_workers": 4,
                "local_rank": rank % 2,
                "local_size": 2,
                "keepalive": KEEPALIVE,
                "partition_bytes": 1 << 16,
                "shm_directory": self.network.shared_memory(rank // 2),
            }
            worker.send("join", settings=settings)
        for worker in self.workers:
            worker.next("joined")

    def close(self) -> None:
        """All workers leave their job."""
        for worker in self.workers:
            worker.send("close")
        for worker in self.workers:
            worker.next("closed")

    def push(self) -> None:
        """All workers push-pull a large tensor. Returns when its bytes have begun to cross the links."""
        before = self.network.received(1)
        for worker in self.workers:
            worker.send("push", key="large", size=ELEMENTS, group_size=2)
        for worker in self.workers:
            worker.next("pushed")
        wait_until(lambda: self.network.received(1) > before + ELEMENTS)

    def log(self) -> str:
        """What aggregators and workers have logged."""
        return self._aggregator_log.read_text() + "".join(worker.log for worker in self.workers)


@pytest.fixture
def make_job(tmp_path: pathlib.Path) -> Iterator[Callable[..., Job]]:
    """Starts a job, which ends with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda worker_timeout=30.0: Job(tmp_path, stack, worker_timeout)


def test_a_link_goes_down_in_mid_step_and_sums_are_exact(make_job: Callable[..., Job]) -> None:
    """Two runs give the same bits. Then a link is down until its connections are given up. The sum and the following
    steps are right nevertheless.
    """
    job = make_job()
    results = []
    for name in ("first", "second"):
        job.join(name)
        for worker in job.workers:
            worker.send("train", steps=3)
        results.append([worker.next("trained") for worker in job.workers])
        if name == "first":
            job.close()
    assert all(result == results[0][0] for each in results for result in each)
    job.push()
    job.network.cut(1)
    wait_until(lambda: job.log().count(" lost its connection to aggregator ") >= 2)
    assert not any(event["event"] == "sum" for worker in job.workers for event in worker.events)
    job.network.mend(1)
    for worker in job.workers:
        event = worker.next("sum")
        assert (event["right"], event["error"]) == (True, None)
    for worker in job.workers:
        worker.send("train", steps=1)
    assert len({worker.next("trained")["sums"] for worker in job.workers}) == 1
    job.close()


def test_errors_name_ranks_of_a_host_that_vanishes(make_job: Callable[..., Job]) -> None:
    """A host vanishes with its aggregator, and no packet tells the others. The survivors' errors name its ranks, and no
    other rank.
    """
    job = make_job(worker_timeout=1.0)
    job.join("job")
    job.push()
    assert len(job.network.processes(1)) == 3
    job.network.destroy(1)
    for worker in job.workers[2:]:
        assert worker.wait() == -signal.SIGKILL
    for worker in job.workers[:2]:
        error: dict[str, Any] = worker.next("sum")["error"]
        assert error["kind"] == "WorkerLostError"
        assert error["ranks"] == [2, 3]
        assert "ranks 2-3 of job 'job'" in error["text"]
        assert job.network.address(1) in error["text"]
