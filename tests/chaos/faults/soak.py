"""The soak test: constant random faults while jobs start and end. Every sum is checked, and no resource may grow.

Aggregator 0 and one client process live through the whole run; their memory, open files and threads are sampled. All
other processes are stopped and killed at random. The seed fixes the schedule of faults, but not what they hit.
"""

import contextlib
import dataclasses
import pathlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from faults.aggregators import AggregatorProcess, aggregators
from faults.job_runner import WORKER_TIMEOUT, JobRunner
from faults.jobs import STRANDED
from faults.runs import proxies
from faults.sampling import Sampler
from faults.schedule import KINDS, FaultInjector, schedule
from faults.watching import find_jobs

AGGREGATORS = 3
RUNNERS = 2

_WARM_UP_SECONDS = 3.0

#: Time limit for a process to close the connections of ended jobs.
_IDLE_TIMEOUT_SECONDS = 20.0


@dataclasses.dataclass
class Report:
    """Results of a soak test.

    Attributes:
        jobs: Number of jobs by outcome.
        checked: Number of sums compared with the expected values.
        faults: Number of faults by kind.
        table: These and more results as text, by name.
        problems: Outcomes that are not allowed, and growth.
    """

    jobs: Counter[str]
    checked: int
    faults: Counter[str]
    table: dict[str, str]
    problems: list[str]


def soak(directory: pathlib.Path, minutes: float, seed: int) -> Report:
    """Run the soak test.

    Args:
        directory: Directory for logs.
        minutes: How long to inject faults and start jobs.
        seed: Seed for the schedule and the jobs.
    """
    flags = ("--keepalive", "1s", "--worker-timeout", f"{WORKER_TIMEOUT:g}s", "--grace", "2s")
    with contextlib.ExitStack() as stack:
        targets = stack.enter_context(aggregators(directory, AGGREGATORS, *flags))
        fronts = stack.enter_context(proxies(targets, seed))
        addresses = [proxy.address for proxy in fronts]
        resident = JobRunner(directory, "resident", seed, 1, addresses)
        runners = [
            JobRunner(directory, f"runner{number}", seed, 2 + number % 2, addresses) for number in range(RUNNERS)
        ]
        for runner in (resident, *runners):
            stack.callback(runner.close)
        # Warm up, so that the first samples include everything that is created on first use, also of relays.
        resident.run(time.monotonic() + _WARM_UP_SECONDS)
        while not resident.relays[0] and not resident.problems:
            resident.run(time.monotonic() + 0.1)
        failed: list[str] = []
        _wait_until_idle(targets[0], failed)
        samplers = [Sampler("aggregator", targets[0].process.pid), Sampler("client", resident.workers[0].process.pid)]
        begin = time.monotonic()
        until = begin + 60 * minutes
        faults = FaultInjector(targets, fronts, [resident, *runners])
        over = threading.Event()

        def guarded(work: Callable[..., None], *arguments: Any) -> threading.Thread:
            def run() -> None:
                try:
                    work(*arguments)
                except Exception as error:
                    failed.append(f"{work.__qualname__}: {error!r}")

            thread = threading.Thread(target=run)
            thread.start()
            return thread

        def keep_sampling() -> None:
            while not over.wait(1.0):
                for sampler in samplers:
                    sampler.sample()

        for sampler in samplers:
            sampler.sample()
        sampling = guarded(keep_sampling)
        working = [guarded(runner.run, until) for runner in (resident, *runners)]
        working.append(guarded(faults.run, schedule(seed, 60 * minutes), begin))
        for thread in working:
            thread.join()
        over.set()
        sampling.join()
        _wait_until_idle(targets[0], failed)
        for sampler in samplers:
            # A process closes connections a moment after their jobs end, later on a busy machine.
            sampler.wait_until_idle(_IDLE_TIMEOUT_SECONDS)
            sampler.sample()

        parts = (resident, *runners)
        jobs = sum((runner.jobs for runner in parts), Counter[str]())
        checked = sum(runner.checked for runner in parts)
        relayed = sum(runner.relays.total() for runner in parts)
        problems = failed + [p for runner in parts for p in runner.problems] + [p for s in samplers for p in s.problems]
        if jobs[STRANDED] > 1 + jobs.total() // 100:
            problems.append(f"{jobs[STRANDED]} jobs had a rank that needed a sum from ranks that had left")
        table = {
            "seed, seconds": f"{seed}, {time.monotonic() - begin:.0f}",
            "jobs": f"{jobs.total()}: " + ", ".join(f"{count} {how}" for how, count in sorted(jobs.items())),
            "sums checked": f"{checked}",
            "groups with a relay": f"{relayed}",
        }
        table |= {kind: f"{faults.done[kind]}" for kind in KINDS}
        for sampler in samplers:
            table |= sampler.summary()
        return Report(jobs, checked, faults.done, table, problems)


def _wait_until_idle(aggregator: AggregatorProcess, failed: list[str]) -> None:
    """Wait until the aggregator has forgotten all jobs, including failed ones, which it keeps for a while."""
    deadline = time.monotonic() + 30
    while find_jobs(aggregator.address):
        if time.monotonic() > deadline:
            failed.append(f"the aggregator still has jobs: {find_jobs(aggregator.address)}")
            return
        time.sleep(0.1)
