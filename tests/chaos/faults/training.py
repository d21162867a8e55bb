"""A training over several worker processes."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from faults.aggregators import aggregators
from faults.processes import WorkerProcess

WORKERS = 3
STEPS = 60


class Training:
    """Worker processes that train together; see worker.train.

    Args:
        directory: Where their logs are written.
        addresses: Those of the aggregators.
        steps: How many steps; None: until `stop`.
        settings: More of psum.client.Settings.

    Attributes:
        workers: The processes, by rank.
    """

    def __init__(
        self, directory: pathlib.Path, addresses: Sequence[str], steps: int | None = STEPS, **settings: Any
    ) -> None:
        directory.mkdir(exist_ok=True)
        given = {"partition_bytes": 1 << 16, "connect_timeout": 30.0, "reconnect_timeout": 30.0} | settings
        given |= {"aggregators": list(addresses), "num_workers": WORKERS}
        self.workers = [WorkerProcess(directory / f"worker-{rank}.log") for rank in range(WORKERS)]
        for rank, worker in enumerate(self.workers):
            worker.send("join", settings=given | {"rank": rank})
            worker.send("train", steps=steps)

    @property
    def steps(self) -> int:
        """How many steps rank 0 has done."""
        return next((e["step"] for e in reversed(self.workers[0].events) if e["event"] == "step"), 0)

    @property
    def running(self) -> bool:
        """Whether some worker has not told the end of its training, or of itself."""
        return not all(w.process.poll() is not None or w.last in ("trained", "error") for w in self.workers)

    def stop(self) -> None:
        """Has all workers leave off after the same step."""
        self.workers[0].send("stop")

    def result(self) -> dict[str, Any]:
        """What all ranks have in the end, after they have left: steps, parameters and sums.

        Raises:
            WorkerFailed: What a worker told.
            AssertionError: The ranks do not have the same.
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
        """Waits until rank 0 has done this many steps."""
        while self.workers[0].next("step")["step"] < step:
            pass

    def close(self) -> None:
        """Ends the processes."""
        for worker in self.workers:
            worker.close()


@contextlib.contextmanager
def training(
    directory: pathlib.Path, addresses: Sequence[str], steps: int | None = STEPS, **settings: Any
) -> Iterator[Training]:
    """A training whose processes end with the block."""
    made = Training(directory, addresses, steps, **settings)
    try:
        yield made
    finally:
        made.close()


def undisturbed(directory: pathlib.Path, steps: int = STEPS) -> dict[str, Any]:
    """The result of a training to which nothing happens."""
    directory.mkdir(exist_ok=True)
    with (
        aggregators(directory, 2) as pair,
        training(directory, [a.address for a in pair], steps) as trained,
    ):
        return trained.result()
