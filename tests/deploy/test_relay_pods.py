"""Workers of two pods train through relays: one pod through its node's relay, the other through its own sidecar."""

import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from psum import client as psum
from psum.v1 import aggregator_pb2 as pb
from tests.deploy import containers
from tests.deploy.manifests import pods, rendered
from tests.deploy.network import NAMESPACE
from tests.deploy.processes import Cluster, PodProcess, pod_files, secrets, worker_settings

pytestmark = [
    pytest.mark.skipif(containers.lack() != "", reason=containers.lack()),
    pytest.mark.timeout(120),
]

PROGRAM = pathlib.Path(__file__).with_name("train.py")

#: How long anything that is not measured may take.
PATIENCE_SECONDS = 40.0

#: How soon all workers end after one was evicted. They learn of it at once, from two levels of aggregators.
ENDING_SECONDS = 5.0

#: One aggregator of the fleet is enough here.
FLEET = f"psum-aggregator-0.psum-aggregator.{NAMESPACE}.svc:50051"


class Training:
    """Four workers of one job in two pods of two, each pod with a relay, and the aggregator to which both forward.

    Attributes:
        owner: The aggregator.
        of_node: The relay of the DaemonSet.
        sidecar: The relay in the second pod.
        workers: The workers, by rank.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        fleet, files = rendered("relays"), secrets(rendered("relays"))
        cluster = Cluster(directory, files)

        def worker(rank: int, beside: PodProcess | None) -> PodProcess:
            pod = next(pod for pod in pods(rendered(examples[rank // 2])) if _rank(pod) == rank)
            return PodProcess(pod, cluster, PROGRAM, beside=beside, PSUM_AGGREGATORS=FLEET)

        examples = ("workers/node-relay", "workers/pod-relay")
        self.owner = PodProcess(next(pod for pod in pods(fleet) if pod.name == "psum-aggregator-0"), cluster)
        self.of_node = PodProcess(next(pod for pod in pods(fleet) if pod.is_relay), cluster)
        self.sidecar = PodProcess([pod for pod in pods(rendered(examples[1])) if pod.is_sidecar][1], cluster)
        zero = worker(0, None)
        self.workers = [zero, worker(1, zero), worker(2, self.sidecar), worker(3, self.sidecar)]
        self._given = worker_settings(self.owner.pod, files, directory / "status")

    def start(self) -> None:
        """Starts everything at the same time; returns when all train."""
        for process in self._processes:
            process.launch()
        self.train()

    def train(self) -> None:
        """Waits until all workers have done a step that they could not do without the present relays."""
        # A step that was under way can end without them.
        wanted = [steps + 2 for steps in self._steps]
        self.wait_for(lambda: all(n >= m for n, m in zip(self._steps, wanted, strict=True)), "all train")
        assert [worker.status for worker in self.workers] == [None] * 4

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Waits until a condition holds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            logs = [f"{process.pod.name}: {process.log.read_text()[-2000:]}" for process in self._processes]
            assert time.monotonic() < deadline, "\n".join([f"not in time: {what}", *logs])
            time.sleep(0.02)

    def status(self, process: PodProcess, name: str = "") -> pb.JobStatus:
        """What an aggregator says about the job. A name is that of its certificate; by default it has none."""
        given: dict[str, Any] = self._given | {"tls_server_name": name} if name else {}
        (job,) = psum.fetch_status(process.address, settings=psum.Settings(**given)).jobs
        return job

    def close(self) -> None:
        """Kills all processes."""
        for process in reversed(self._processes):
            process.close()

    @property
    def _processes(self) -> list[PodProcess]:
        return [self.owner, self.of_node, self.sidecar, *self.workers]

    @property
    def _steps(self) -> list[int]:
        return [sum(line.startswith("step ") for line in worker.lines) for worker in self.workers]


def _rank(pod: Any) -> int:
    """The rank of a worker; -1 for others."""
    return -1 if pod.is_aggregator else psum.Settings.from_environment(pod.environ).rank


@pytest.fixture
def training() -> Iterator[Training]:
    """The training, while it runs."""
    with pod_files() as directory:
        made = Training(directory)
        try:
            made.start()
            yield made
        finally:
            made.close()


def test_relays_are_replaced_and_killed_while_their_workers_train(training: Training) -> None:
    """No step is lost and every sum is right. The aggregator has one member for each pod, and workers share memory with
    their relays. When a worker is evicted, all others end and name it.
    """
    owner = training.status(training.owner, f"psum-aggregator-0.psum-aggregator.{NAMESPACE}.svc")
    assert [list(member.ranks) for member in owner.workers] == [[0, 1], [2, 3]]
    for job in (
        training.status(training.of_node, f"psum-aggregator-relay.{NAMESPACE}.svc"),
        training.status(training.sidecar),
    ):
        assert [worker.plane for worker in job.workers] == [pb.PLANE_SHM] * 2
        assert [uplink.address for uplink in job.uplinks] == [FLEET]

    training.of_node.terminate()
    assert training.of_node.wait() == 0
    training.of_node.start()
    training.train()

    for relay in (training.of_node, training.sidecar):
        relay.kill()
    for relay in (training.of_node, training.sidecar):
        relay.launch()
    training.train()

    training.workers[3].terminate()
    assert training.workers[3].wait(ENDING_SECONDS) == 128 + signal.SIGTERM
    for rank in range(3):
        assert training.workers[rank].wait(ENDING_SECONDS) == psum.PEER_FAULT_STATUS
        assert "rank 3 of job 'training'" in training.workers[rank].log.read_text()
