"""The example's worker as process 1: SIGTERM ends it in every phase, and its peers learn of it at once."""

import contextlib
import pathlib
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from faults.watching import find_job, rounds_waiting
from psum import client as psum
from psum.aggregator.core.membership import REPLACED_SECONDS
from tests.deploy import containers
from tests.deploy.manifests import pods, rendered
from tests.deploy.processes import Cluster, PodProcess, pod_files, secrets

pytestmark = [
    pytest.mark.skipif(containers.lack() != "", reason=containers.lack()),
    pytest.mark.timeout(120),
]

PATIENCE_SECONDS = 40.0

#: How soon a worker ends after SIGTERM, and how soon its peers end after that.
ENDING_SECONDS = 3.0

#: The exit status of a worker after SIGTERM: 128 plus the signal's number, as for a process that the signal killed.
ENDED = 128 + signal.SIGTERM

#: A part of the warning of a worker whose aggregator is gone.
LOST = "lost its connection"

#: So many that no training ends by itself: the example's default is thirty.
EPOCHS = ("--epochs", "100000")


class Example:
    """The two workers of the example and their aggregator, which share memory on a node.

    Attributes:
        aggregator: The aggregator.
        workers: The workers' processes, by rank.
        started_seconds: Seconds from the last start of workers until all of them trained.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._cluster = Cluster(directory, secrets(rendered("single-node")))
        self._pods = list(pods(rendered("workers/single-node")))
        (pod,) = (pod for pod in pods(rendered("single-node")) if pod.is_aggregator)
        self.aggregator = PodProcess(pod, self._cluster)
        self.started_seconds = 0.0
        self.workers: dict[int, PodProcess] = {}

    def launch(self, *ranks: int) -> None:
        """Starts new processes for ranks whose old processes have ended."""
        self._launched = time.monotonic()
        for rank in ranks:
            self.workers[rank] = PodProcess(self._pods[rank], self._cluster, arguments=EPOCHS)
            self.workers[rank].launch()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Waits until a condition holds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            logs = "\n".join(w.log.read_text()[-2000:] for w in (*self.workers.values(), self.aggregator))
            assert time.monotonic() < deadline, f"not in time: {what}\n{logs}"
            time.sleep(0.02)

    def train(self) -> None:
        """Waits until all workers train, and checks that none has failed."""
        self.wait_for(lambda: any(line.startswith("epoch") for line in self.workers[0].lines), "all train")
        assert [worker.status for worker in self.workers.values()] == [None, None]
        self.started_seconds = time.monotonic() - self._launched

    def be_training(self) -> None:
        """Makes sure that all workers train. Restarts everything if a worker has ended, as after a failed test."""
        if [worker.status for worker in self.workers.values()] != [None, None]:
            self.restart()
            self.launch(0, 1)
        self.train()

    def restart(self) -> None:
        """Kills all processes and starts the aggregator again, without workers."""
        self.close()
        self.workers.clear()
        self.aggregator.start()

    def has_joined(self, rank: int) -> bool:
        """Whether a rank has joined its job at the aggregator."""
        job = find_job(self.aggregator.address, "training")
        return job is not None and any(worker.rank == rank for worker in job.workers)

    def waits_for(self, rank: int) -> bool:
        """Whether a round waits only for this rank."""
        return any(missing == (rank,) for _, _, missing in rounds_waiting([self.aggregator.address], "training"))

    def terminate(self, rank: int) -> None:
        """Checks that SIGTERM ends the rank's process in time and with the right status."""
        self.workers[rank].terminate()
        assert self.workers[rank].wait(ENDING_SECONDS) == ENDED, self.workers[rank].log.read_text()

    def hears(self, rank: int, of: int, seconds: float = ENDING_SECONDS) -> None:
        """Checks that the rank's process ends in time with an error that names another rank."""
        status = self.workers[rank].wait(seconds)
        text = self.workers[rank].log.read_text()
        assert status == psum.PEER_FAULT_STATUS, text
        assert f"rank {of} of job 'training'" in text, text

    def close(self) -> None:
        """Kills all processes."""
        for process in (*self.workers.values(), self.aggregator):
            process.close()


@pytest.fixture(scope="module")
def example() -> Iterator[Example]:
    """The example. Its processes keep running from one test to the next."""
    with pod_files() as directory, contextlib.closing(Example(directory)) as made:
        yield made


def test_it_ends_while_it_joins(example: Example) -> None:
    """It ends before the other worker has joined. A replacement takes its place, and all train."""
    example.restart()
    example.launch(0)
    example.wait_for(lambda: example.has_joined(0), "rank 0 has joined")
    example.terminate(0)
    example.launch(0, 1)
    example.train()


def test_it_ends_while_it_trains(example: Example) -> None:
    """Its peer learns of it at once. Both are replaced, and train."""
    example.be_training()
    example.terminate(0)
    example.hears(1, of=0)
    example.launch(0, 1)
    example.train()


def test_it_ends_while_it_waits_for_a_peer(example: Example) -> None:
    """The peer was stopped, and learns of it as soon as it continues. Both are replaced, and train."""
    example.be_training()
    example.workers[1].signal(signal.SIGSTOP)
    example.wait_for(lambda: example.waits_for(1), "rank 0 waits for rank 1")
    example.terminate(0)
    example.workers[1].signal(signal.SIGCONT)
    example.hears(1, of=0)
    example.launch(0, 1)
    example.train()


def test_it_ends_while_it_waits_for_an_aggregator(example: Example) -> None:
    """The aggregator was killed, so the worker can tell nobody that it ends. Its replacement waits for the aggregator
    too. Once the aggregator is back, the peer learns of the replacement. The peer is replaced as well, and both train.
    """
    example.be_training()
    example.aggregator.kill()
    example.wait_for(lambda: LOST in example.workers[0].log.read_text(), "rank 0 waits for the aggregator")
    example.terminate(0)
    example.launch(0)
    # The aggregator knows a replacement as one only if an old process has come back before it.
    example.workers[0].signal(signal.SIGSTOP)
    example.aggregator.start()
    example.wait_for(lambda: example.has_joined(1), "rank 1 has come back")
    example.workers[0].signal(signal.SIGCONT)
    example.hears(1, of=0, seconds=REPLACED_SECONDS + ENDING_SECONDS + example.started_seconds)
    example.launch(1)
    example.train()
