"""Runs checked jobs one after another on worker processes, which may be killed during a job."""

import dataclasses
import pathlib
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from faults.jobs import JobSpec, check_outcomes
from faults.processes import WorkerProcess

#: Time limit for a job, whatever faults hit it.
JOB_SECONDS = 150.0

#: Time limit from a worker's death to its peers' errors beyond the worker timeout: 5 s, and 6 s for a stalled proxy.
_NOTICE_SECONDS = 5 + 6


class JobRunner:
    """Runs jobs one after another on its own worker processes.

    Args:
        directory: Directory for logs.
        name: The runner's name.
        seed: Seed for the jobs.
        processes: How many worker processes there are.
        addresses: The aggregators' addresses.
        worker_timeout: How long the aggregators keep a vanished worker's place, in seconds.

    Attributes:
        workers: The processes. Killed ones are replaced after the job.
        spec: The present job, None before the first one.
        jobs: Number of jobs by outcome.
        relays: Number of groups that each aggregator was the relay of, by the aggregator's index.
        checked: Number of sums compared with the expected values.
        problems: Outcomes that are not allowed.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        name: str,
        seed: int,
        processes: int,
        addresses: list[str],
        *,
        worker_timeout: float,
    ) -> None:
        self._notice_seconds = worker_timeout + _NOTICE_SECONDS
        self._directory = directory
        self._name = name
        self._chance = random.Random(f"{seed} {name}")
        self._addresses = addresses
        self._changing = threading.Lock()
        self._killed: dict[int, float] = {}
        self.workers = [self._start(number) for number in range(processes)]
        self.spec: JobSpec | None = None
        self.jobs: Counter[str] = Counter()
        self.relays: Counter[int] = Counter()
        self.checked = 0
        self.problems: list[str] = []

    def run(self, over: Callable[[], bool]) -> None:
        """Start jobs until it is `over`, and return when the last one has ended."""
        while not over():
            try:
                self._run_job()
            except Exception as error:
                self.problems.append(f"runner {self._name}: {error!r}")
                return

    def kill(self, target: int) -> bool:
        """Kill a worker in the middle of a job. Return False if no worker can be killed now."""
        with self._changing:
            rank = target % len(self.workers)
            worker = self.workers[rank]
            if len(self.workers) == 1 or self._killed or not self._is_known(rank):
                return False
            self._killed[rank] = time.monotonic()
            worker.signal(signal.SIGKILL)
            return True

    def close(self) -> None:
        """End the worker processes."""
        for worker in self.workers:
            worker.close()

    def _is_known(self, rank: int) -> bool:
        """Return whether a worker is in the middle of a job, and its end will be noticed whoever else is killed.

        Aggregator 0 is never killed, and notices it. A worker joins it directly, or as its relay. If its relay is
        another one, aggregator 0 may know nothing of it before the first sum. If that relay is killed too before
        another rank of the group has joined, the worker is as one that never came: the others wait for it until the
        round time-out.
        """
        if self.spec is None:
            return False
        events = ("working", "summed") if self.spec.relay_of(rank) in (None, 0) else ("summed",)
        return self.workers[rank].last in events

    def _start(self, number: int) -> WorkerProcess:
        return WorkerProcess(self._directory / f"{self._name}-{number}.log")

    def _run_job(self) -> None:
        one_process = len(self.workers) == 1
        num_workers = self._chance.randint(1, 3) if one_process else len(self.workers)
        number = sum(self.jobs.values())
        name = f"{self._name}-{number}"
        self.spec = spec = JobSpec.draw(self._chance, name, num_workers, len(self._addresses))
        settings = {
            "keepalive": 1.0,
            "connect_timeout": 60.0,
            "reconnect_timeout": 60.0,
            "round_timeout": 100.0,
        }
        ranks = [[*range(num_workers)]] if one_process else [[rank] for rank in range(num_workers)]
        for worker, worker_ranks in zip(self.workers, ranks, strict=True):
            given = dataclasses.asdict(spec)
            worker.send("work", spec=given, ranks=worker_ranks, addresses=self._addresses, settings=settings)
        outcomes: dict[str, Any] = {}
        deadline = time.monotonic() + JOB_SECONDS
        for rank, worker in enumerate(self.workers):
            event = worker.next("worked", "ended", timeout=deadline - time.monotonic())
            if event["event"] == "worked":
                outcomes |= event["outcomes"]
            elif rank not in self._killed:
                self.problems.append(f"job {spec.name!r}: the process of rank {rank} ended: {worker.log[-2000:]}")
                self._killed[rank] = time.monotonic()
        with self._changing:
            result, problems = check_outcomes(spec, outcomes, self._killed, self._notice_seconds)
            self.jobs[result] += 1
            self.relays.update(relay for relay in spec.relays if relay is not None)
            self.checked += sum(outcome["checked"] for outcome in outcomes.values())
            self.problems += problems
            for rank in self._killed:
                self.workers[rank].close()
                self.workers[rank] = self._start(rank)
            self._killed.clear()
