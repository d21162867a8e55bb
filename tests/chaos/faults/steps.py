"""The steps of the workers of an elastic job, compared with each other."""

import itertools
import signal
from collections.abc import Sequence

from faults.elastic import counts_of
from faults.processes import Event, WorkerProcess


class Steps:
    """The steps of some workers. It takes their events, and compares them.

    Args:
        workers: The workers by rank, which run steps.
        group_size: For how many of them each relay sums, if there are any.
    """

    def __init__(self, workers: Sequence[WorkerProcess], group_size: int = 1) -> None:
        self._workers = dict(enumerate(workers))
        self._steps: dict[int, Event] = {}
        """The first event of each step."""
        self._seen: dict[int, list[Event]] = {rank: [] for rank in self._workers}
        for worker in workers:
            worker.send("steps", group_size=group_size)

    def wait(self, more: int) -> None:
        """Wait until all workers have run so many more steps."""
        for rank, worker in self._workers.items():
            goal = len(self._seen[rank]) + more
            while len(self._seen[rank]) < goal:
                self._take(rank, worker.next("step"))

    def run(self, seconds: float) -> None:
        """Wait until all workers have run steps for so long."""
        began: float | None = None
        while began is None or self._seen[next(iter(self._workers))][-1]["at"] < began + seconds:
            self.wait(1)
            began = began or self._seen[next(iter(self._workers))][-1]["at"]

    def end(self, rank: int, how: signal.Signals = signal.SIGKILL) -> WorkerProcess:
        """Kill a worker, or stop it. Its steps do not count any more."""
        worker = self._workers[rank]
        worker.signal(how)
        self.forget(rank)
        return worker

    def forget(self, rank: int) -> None:
        """The steps of a worker do not count any more."""
        del self._workers[rank]

    def stop(self) -> None:
        """End the steps of all workers, check that none is missing, and let the workers leave."""
        next(iter(self._workers.values())).send("stop")
        for rank, worker in self._workers.items():
            while (event := worker.next("step", "stepped"))["event"] == "step":
                self._take(rank, event)
        assert len({len(self._seen[rank]) for rank in self._workers}) == 1
        for worker in self._workers.values():
            worker.send("close")
            worker.next("closed")

    def longest(self, rank: int) -> float:
        """Return the longest time between two steps of a worker."""
        times: list[float] = [event["at"] for event in self._seen[rank]]
        return max(after - before for before, after in itertools.pairwise(times))

    @property
    def counts(self) -> list[set[int]]:
        """The counts in each step that are not those of all ranks."""
        return [counts_of(self._steps[step]) for step in sorted(self._steps)]

    def _take(self, rank: int, event: Event) -> None:
        assert event["step"] == len(self._seen[rank])
        assert event["right"], event
        same = self._steps.setdefault(event["step"], event)
        assert (event["digest"], event["counts"]) == (same["digest"], same["counts"])
        self._seen[rank].append(event)
