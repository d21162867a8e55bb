"""The soak test: constant random faults while jobs start and end. Every sum is checked, and no resource may grow.

Aggregator 0 and one client process live through the whole run; their memory, open files and threads are sampled. All
other processes are stopped and killed at random. The seed fixes the schedule of faults, but not what they hit.
"""

import contextlib
import dataclasses
import functools
import pathlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from faults.aggregators import AggregatorProcess, aggregators
from faults.job_runner import JobRunner
from faults.jobs import STRANDED
from faults.runs import proxies
from faults.sampling import Sampler
from faults.schedule import KINDS, FaultInjector, schedule
from faults.watching import find_jobs

AGGREGATORS = 3
RUNNERS = 2

#: For how long aggregators keep a vanished worker's place, at least, and for how many starts of an aggregator. A
#: relay may wait for the start of another one and be killed again as soon as it serves; that must not cost its place.
_WORKER_TIMEOUT = 8.0
_TIMEOUT_STARTS = 10

#: How many jobs each runner has at first, so that everything is created that processes create on first use.
_WARM_UP_JOBS = 3

#: How much more memory aggregator 0 may hold when it is idle than after the warm-up. An aggregator keeps large blocks
#: for the next payloads; so this depends on the largest jobs that it had at the same time. After the warm-up it had
#: 71 MiB, after 100 jobs up to 90, and after 650 jobs no more.
_KEPT_BYTES = 24 << 20

#: How many times as long a run may last that has not reached its goal, as on a busy machine.
_LONGEST = 10.0

#: Time limit for a process to close the connections of ended jobs.
_IDLE_TIMEOUT_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a run must have done under faults.

    Attributes:
        jobs: Number of jobs that were done.
        sums: Number of sums that were checked.
        faults: Number of faults by kind.
    """

    jobs: int = 0
    sums: int = 0
    faults: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def missing(self, jobs: Counter[str], sums: int, faults: Counter[str]) -> list[str]:
        """Return what is still to be done, each in a few words."""
        counts = {"jobs done": (self.jobs, jobs["done"]), "sums checked": (self.sums, sums)}
        counts |= {kind: (least, faults[kind]) for kind, least in self.faults.items()}
        return [f"{what}: {done} of {least}" for what, (least, done) in counts.items() if done < least]


NO_GOAL = Goal()


@dataclasses.dataclass
class Report:
    """Results of a soak test.

    Attributes:
        table: The results as text, by name.
        problems: Outcomes that are not allowed, growth, and what is missing of the goal.
    """

    table: dict[str, str]
    problems: list[str]


def soak(directory: pathlib.Path, minutes: float, seed: int, goal: Goal = NO_GOAL) -> Report:
    """Run the soak test.

    Args:
        directory: Directory for logs.
        minutes: How long to inject faults and start jobs, at least.
        seed: Seed for the schedule and the jobs.
        goal: It goes on until this is done, for up to ten times as many minutes. If it is not done then, that is a
            problem.
    """
    worker_timeout = max(_WORKER_TIMEOUT, _TIMEOUT_STARTS * _start_seconds(directory))
    flags = ("--keepalive", "1s", "--worker-timeout", f"{worker_timeout:.1f}s", "--grace", "2s")
    with contextlib.ExitStack() as stack:
        targets = stack.enter_context(aggregators(directory, AGGREGATORS, *flags))
        fronts = stack.enter_context(proxies(targets, seed))
        addresses = [proxy.address for proxy in fronts]
        make = functools.partial(JobRunner, directory, seed=seed, addresses=addresses, worker_timeout=worker_timeout)
        resident = make("resident", processes=1)
        runners = [make(f"runner{number}", processes=2 + number % 2) for number in range(RUNNERS)]
        for runner in (resident, *runners):
            stack.callback(runner.close)
        parts = (resident, *runners)
        failed: list[str] = []
        _warm_up(parts, failed)
        _wait_until_idle(targets[0], failed, worker_timeout)
        samplers = [
            Sampler("aggregator", targets[0].process.pid, _KEPT_BYTES),
            Sampler("client", resident.workers[0].process.pid),
        ]
        begin = time.monotonic()
        faults = FaultInjector(targets, fronts, list(parts))
        ended = threading.Event()
        warm_jobs, warm_sums = _count(parts)

        def missing() -> list[str]:
            jobs, checked = _count(parts)
            return goal.missing(jobs - warm_jobs, checked - warm_sums, faults.done)

        def over() -> bool:
            seconds = time.monotonic() - begin
            # What has failed does not reach it any more.
            longest = 60 * minutes if failed or any(runner.problems for runner in parts) else _LONGEST * 60 * minutes
            return seconds >= longest or (seconds >= 60 * minutes and not missing())

        def keep_sampling() -> None:
            while not ended.wait(1.0):
                for sampler in samplers:
                    sampler.sample()

        for sampler in samplers:
            sampler.sample()
        sampling = _guarded(failed, keep_sampling)
        working = [_guarded(failed, runner.run, over) for runner in parts]
        working.append(_guarded(failed, faults.run, schedule(seed), begin, over))
        for thread in working:
            thread.join()
        ended.set()
        sampling.join()
        _wait_until_idle(targets[0], failed, worker_timeout)
        for sampler in samplers:
            # A process closes connections a moment after their jobs end, later on a busy machine.
            sampler.wait_until_idle(_IDLE_TIMEOUT_SECONDS)
            sampler.sample()

        jobs, checked = _count(parts)
        relayed = sum(runner.relays.total() for runner in parts)
        problems = failed + [p for runner in parts for p in runner.problems] + [p for s in samplers for p in s.problems]
        if jobs[STRANDED] > 1 + jobs.total() // 100:
            problems.append(f"{jobs[STRANDED]} jobs had a rank that needed a sum from ranks that had left")
        problems += [f"not done in {time.monotonic() - begin:.0f} s: {each}" for each in missing()]
        table = {
            "seed, seconds": f"{seed}, {time.monotonic() - begin:.0f}",
            "worker timeout in seconds": f"{worker_timeout:.1f}",
            "jobs": f"{jobs.total()}: " + ", ".join(f"{count} {how}" for how, count in sorted(jobs.items())),
            "sums checked": f"{checked}",
            "groups with a relay": f"{relayed}",
        }
        table |= {kind: f"{faults.done[kind]}" for kind in KINDS}
        for sampler in samplers:
            table |= sampler.summary()
        return Report(table, problems)


def _start_seconds(directory: pathlib.Path) -> float:
    """Return how long the start of an aggregator takes, as busy as the machine is now."""
    begin = time.monotonic()
    with contextlib.closing(AggregatorProcess(directory / "first")):
        return time.monotonic() - begin


def _warm_up(runners: Sequence[JobRunner], failed: list[str]) -> None:
    """Run some jobs without faults, so that the first samples include all that is created on first use.

    All runners have jobs at the same time, as later on, and some of the jobs have aggregator 0 as their relay.
    """

    def over(runner: JobRunner) -> bool:
        warm = runner.jobs.total() >= _WARM_UP_JOBS and (runner is not runners[0] or runner.relays[0] > 0)
        return warm or bool(runner.problems)

    for thread in [_guarded(failed, runner.run, functools.partial(over, runner)) for runner in runners]:
        thread.join()


def _count(runners: Sequence[JobRunner]) -> tuple[Counter[str], int]:
    """Return the number of jobs that have ended by outcome, and the number of sums that were checked."""
    return sum((runner.jobs for runner in runners), Counter[str]()), sum(runner.checked for runner in runners)


def _guarded(failed: list[str], work: Callable[..., None], *arguments: Any) -> threading.Thread:
    """Start a thread that notes in `failed` what goes wrong."""

    def run() -> None:
        try:
            work(*arguments)
        except Exception as error:
            failed.append(f"{work.__qualname__}: {error!r}")

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def _wait_until_idle(aggregator: AggregatorProcess, failed: list[str], worker_timeout: float) -> None:
    """Wait until the aggregator has forgotten all jobs, including failed ones, which it keeps for a while."""
    deadline = time.monotonic() + worker_timeout + 22
    while find_jobs(aggregator.address):
        if time.monotonic() > deadline:
            failed.append(f"the aggregator still has jobs: {find_jobs(aggregator.address)}")
            return
        time.sleep(0.1)
