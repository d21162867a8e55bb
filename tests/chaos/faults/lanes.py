"""Runs one checked job after another on worker processes, some of which may be killed meanwhile."""

import dataclasses
import pathlib
import random
import signal
import threading
import time
from collections import Counter
from typing import Any

from faults.jobs import Spec, judge
from faults.processes import WorkerProcess

WORKER_TIMEOUT = 8.0

#: How long a job may take, whatever is done to it.
JOB_SECONDS = 150.0

#: From the end of a worker to the errors of its peers: worker_timeout + 5 s, and 6 s where a proxy is silent meanwhile.
NOTICE_SECONDS = WORKER_TIMEOUT + 5 + 6


class SendWindow:
    """Runs one job after another on worker processes of its own.

    Attributes:
        workers: The processes; those that were killed are replaced after the job.
        jobs: How many jobs came to which end.
        checked: How many sums were compared with what they must be.
        problems: What may not have happened.
    """

    def __init__(self, directory: pathlib.Path, name: str, seed: int, processes: int, addresses: list[str]) -> None:
        self._directory = directory
        self._name = name
        self._chance = random.Random(f"{seed} {name}")
        self._addresses = addresses
        self._changing = threading.Lock()
        self._killed: dict[int, float] = {}
        self.workers = [self._start(number) for number in range(processes)]
        self.jobs: Counter[str] = Counter()
        self.checked = 0
        self.problems: list[str] = []

    def run(self, until: float) -> None:
        """Begins jobs until then, and ends with the last of them."""
        while time.monotonic() < until:
            try:
                self._run_job()
            except Exception as error:
                self.problems.append(f"lane {self._name}: {error!r}")
                return

    def kill(self, target: int) -> bool:
        """Kills a worker that is in the midst of a job; returns whether there was one."""
        with self._changing:
            rank = target % len(self.workers)
            worker = self.workers[rank]
            if len(self.workers) == 1 or worker.last != "working" or self._killed:
                return False
            self._killed[rank] = time.monotonic()
            worker.signal(signal.SIGKILL)
            return True

    def close(self) -> None:
        """Ends its processes."""
        for worker in self.workers:
            worker.close()

    def _start(self, number: int) -> WorkerProcess:
        return WorkerProcess(self._directory / f"{self._name}-{number}.log")

    def _run_job(self) -> None:
        together = len(self.workers) == 1
        num_workers = self._chance.randint(1, 3) if together else len(self.workers)
        number = sum(self.jobs.values())
        spec = Spec.draw(self._chance, f"{self._name}-{number}", num_workers, len(self._addresses))
        settings = {
            "aggregators": [self._addresses[a] for a in spec.aggregators],
            "keepalive": 1.0,
            "connect_timeout": 60.0,
            "reconnect_timeout": 60.0,
            "round_timeout": 100.0,
        }
        ranks = [[*range(num_workers)]] if together else [[rank] for rank in range(num_workers)]
        for worker, its in zip(self.workers, ranks, strict=True):
            worker.send("work", spec=dataclasses.asdict(spec), ranks=its, settings=settings)
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
            result, problems = judge(spec, outcomes, self._killed, NOTICE_SECONDS)
            self.jobs[result] += 1
            self.checked += sum(outcome["checked"] for outcome in outcomes.values())
            self.problems += problems
            for rank in self._killed:
                self.workers[rank].close()
                self.workers[rank] = self._start(rank)
            self._killed.clear()
