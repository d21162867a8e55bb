"""A training with several worker processes."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from faults.aggregators import aggregators
from faults.processes import WorkerProcess

WORKERS = 3

#: How many workers a host has, where there are relays.
LOCAL_SIZE = 2
STEPS = 60


class Training:
    """Worker processes that train together; see worker.train.

    Args:
        directory: Directory for their logs.
        addresses: The aggregators' addresses.
        steps: Number of steps. None means until `stop`.
        each: For each rank, further fields of psum.client.Settings.
        settings: Additional fields of psum.client.Settings for all ranks.

    Attributes:
        workers: The processes by rank.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        addresses: Sequence[str],
        steps: int | None = STEPS,
        *,
        each: Sequence[Mapping[str, Any]] = ({},) * WORKERS,
        **settings: Any,
    ) -> None:
        directory.mkdir(exist_ok=True)
        given = {"partition_bytes": 1 << 17, "connect_timeout": 30.0, "reconnect_timeout": 30.0} | settings
        given |= {"aggregators": list(addresses), "num_workers": len(each)}
        self.workers = [WorkerProcess(directory / f"worker-{rank}.log") for rank in range(len(each))]
        for rank, worker in enumerate(self.workers):
            worker.send("join", settings=given | {"rank": rank} | dict(each[rank]))
            worker.send("train", steps=steps)

    @property
    def steps(self) -> int:
        """Number of steps that rank 0 has completed."""
        return next((e["step"] for e in reversed(self.workers[0].events) if e["event"] == "step"), 0)

    @property
    def running(self) -> bool:
        """Whether some worker process is running and has reported neither the end of its training nor an error."""
        return not all(w.process.poll() is not None or w.last in ("trained", "error") for w in self.workers)

    def stop(self) -> None:
        """Make all workers stop after the same step."""
        self.workers[0].send("stop")

    def result(self) -> dict[str, Any]:
        """Wait for the training to end, close all workers and return the result: steps, parameters and sums.

        Raises:
            WorkerFailed: A worker reported an error.
            AssertionError: The ranks' results differ.
        """
        results = [worker.next("trained", timeout=120) for worker in self.workers]
        for worker in self.workers:
            worker.send("close")
        for worker in self.workers:
            worker.next("closed")
        first, *others = [{what: r[what] for what in ("steps", "parameters", "sums")} for r in results]
        assert all(other == first for other in others), f"the ranks differ: {first}, {others}"
        return first

    def wait_for_step(self, step: int) -> None:
        """Wait until rank 0 has completed this many steps."""
        while self.workers[0].next("step")["step"] < step:
            pass

    def close(self) -> None:
        """End the processes."""
        for worker in self.workers:
            worker.close()


@contextlib.contextmanager
def training(
    directory: pathlib.Path, addresses: Sequence[str], steps: int | None = STEPS, **settings: Any
) -> Iterator[Training]:
    """Run a training whose processes end with the block."""
    made = Training(directory, addresses, steps, **settings)
    try:
        yield made
    finally:
        made.close()


def hosts(relays: Sequence[str]) -> list[dict[str, Any]]:
    """Return the settings of each rank, for hosts of LOCAL_SIZE workers.

    Args:
        relays: The address of each host's relay.
    """
    return [{"relay": relay, "local_size": LOCAL_SIZE} for relay in relays for _ in range(LOCAL_SIZE)]


def undisturbed(directory: pathlib.Path, steps: int = STEPS, *, relays: bool = False) -> dict[str, Any]:
    """Run a training without faults and return its result.

    Args:
        directory: Directory for logs.
        steps: Number of steps.
        relays: Whether the workers are those of two hosts, with an aggregator each that is their relay.
    """
    directory.mkdir(exist_ok=True)
    with aggregators(directory, 2) as pair:
        addresses = [a.address for a in pair]
        each = hosts(addresses) if relays else ({},) * WORKERS
        with training(directory, addresses, steps, each=each) as trained:
            return trained.result()
