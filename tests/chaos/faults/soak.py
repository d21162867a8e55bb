"""Random faults all the time, while jobs come and go: every sum is checked, and nothing may grow.

Aggregator 0 and one client process live through the whole run; their memory, files and threads are sampled. All other
processes are stopped and killed at random. The schedule of the faults follows from the seed; what they meet does not.
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
from faults.jobs import LEFT_ALONE
from faults.lanes import WORKER_TIMEOUT, SendWindow
from faults.runs import proxies
from faults.sampling import Sampler
from faults.schedule import KINDS, Faults, schedule
from faults.watching import find_jobs

AGGREGATORS = 3
LANES = 2

#: How long a process may take to let go of the connections of jobs that have ended.
_REST_SECONDS = 20.0


@dataclasses.dataclass
class Report:
    """What was counted.

    Attributes:
        jobs: Jobs by the end that they came to.
        checked: Sums that were compared with what they must be.
        faults: Faults by kind.
        table: All that and more, for people.
        problems: What may not have happened.
    """

    jobs: Counter[str]
    checked: int
    faults: Counter[str]
    table: dict[str, str]
    problems: list[str]


def soak(directory: pathlib.Path, minutes: float, seed: int) -> Report:
    """Runs it.

    Args:
        directory: Where logs are written.
        minutes: For how long faults are caused and jobs begun.
        seed: Of the schedule and the jobs.
    """
    flags = ("--keepalive", "1s", "--worker-timeout", f"{WORKER_TIMEOUT:g}s", "--grace", "2s")
    with contextlib.ExitStack() as stack:
        behind = stack.enter_context(aggregators(directory, AGGREGATORS, *flags))
        between = stack.enter_context(proxies(behind, seed))
        addresses = [proxy.address for proxy in between]
        resident = SendWindow(directory, "resident", seed, 1, addresses)
        lanes = [SendWindow(directory, f"lane{number}", seed, 2 + number % 2, addresses) for number in range(LANES)]
        for lane in (resident, *lanes):
            stack.callback(lane.close)
        # For all that is made on first use.
        resident.run(time.monotonic() + 3)
        failed: list[str] = []
        _wait_until_idle(behind[0], failed)
        samplers = [Sampler("aggregator", behind[0].process.pid), Sampler("client", resident.workers[0].process.pid)]
        begin = time.monotonic()
        until = begin + 60 * minutes
        faults = Faults(behind, between, [resident, *lanes])
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
        working = [guarded(lane.run, until) for lane in (resident, *lanes)]
        working.append(guarded(faults.run, schedule(seed, 60 * minutes), begin))
        for thread in working:
            thread.join()
        over.set()
        sampling.join()
        _wait_until_idle(behind[0], failed)
        for sampler in samplers:
            # Connections are let go of a moment after their jobs, the later the busier the machine is.
            sampler.wait_for_rest(_REST_SECONDS)
            sampler.sample()

        parts = (resident, *lanes)
        jobs = sum((lane.jobs for lane in parts), Counter[str]())
        checked = sum(lane.checked for lane in parts)
        problems = failed + [p for lane in parts for p in lane.problems] + [p for s in samplers for p in s.problems]
        if jobs[LEFT_ALONE] > 1 + jobs.total() // 100:
            problems.append(f"{jobs[LEFT_ALONE]} jobs had a rank that was left alone by the others")
        table = {
            "seed, seconds": f"{seed}, {time.monotonic() - begin:.0f}",
            "jobs": f"{jobs.total()}: " + ", ".join(f"{count} {how}" for how, count in sorted(jobs.items())),
            "sums checked": f"{checked}",
        }
        table |= {kind: f"{faults.done[kind]}" for kind in KINDS}
        for sampler in samplers:
            table |= sampler.summary()
        return Report(jobs, checked, faults.done, table, problems)


def _wait_until_idle(aggregator: AggregatorProcess, failed: list[str]) -> None:
    """Until nothing is left of the jobs, failed ones that are remembered for a while included."""
    deadline = time.monotonic() + 30
    while find_jobs(aggregator.address):
        if time.monotonic() > deadline:
            failed.append(f"jobs are left on the aggregator: {find_jobs(aggregator.address)}")
            return
        time.sleep(0.1)
