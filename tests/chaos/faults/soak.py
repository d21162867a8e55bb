"""Random faults all the time, while jobs come and go: every sum is checked, and nothing may grow.

Aggregator 0 and one client process live through the whole run; their memory, files and threads are sampled. All other
processes are stopped and killed at random. The schedule of the faults follows from the seed; what they meet does not.
"""

import contextlib
import dataclasses
import heapq
import pathlib
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from faults.aggregators import AggregatorProcess, aggregators
from faults.jobs import Spec, judge
from faults.processes import WorkerProcess
from faults.proxy import Proxy
from faults.runs import proxies
from faults.watching import find_jobs, open_files, resident_bytes, threads

AGGREGATORS = 3
LANES = 2
WORKER_TIMEOUT = 8.0

#: How long a job may take, whatever is done to it.
JOB_SECONDS = 150.0

#: From the end of a worker to the errors of its peers: worker_timeout + 5 s, and 6 s where a proxy is silent meanwhile.
NOTICE_SECONDS = WORKER_TIMEOUT + 5 + 6

#: Seconds between faults, on the average.
_GAP_SECONDS = 1.5

#: Kinds of faults, how often each comes, and how long it lasts, in seconds.
_KINDS: dict[str, tuple[int, float, float]] = {
    "aggregator killed": (4, 0, 0),
    "aggregator told to stop": (2, 0, 0),
    "connections cut": (5, 0, 0),
    "network silent": (2, 0.3, 3.5),
    "network slow": (2, 1.0, 3.0),
    "worker stopped": (4, 0.2, 3.0),
    "worker killed": (2, 0, 0),
}


@dataclasses.dataclass(order=True, frozen=True)
class Fault:
    """One fault: when, what, to which of those it can be done to (taken modulo their number), and for how long."""

    at: float
    kind: str
    target: int
    seconds: float


def schedule(seed: int, seconds: float) -> list[Fault]:
    """The faults of a run, in order; the same for the same seed."""
    chance = random.Random(seed)
    weights = [weight for weight, *_ in _KINDS.values()]
    faults = []
    at = 0.0
    while (at := at + chance.expovariate(1 / _GAP_SECONDS)) < seconds:
        [kind] = chance.choices(list(_KINDS), weights)
        _, least, most = _KINDS[kind]
        faults.append(Fault(at, kind, chance.randrange(1 << 16), chance.uniform(least, most)))
    return faults


class Lane:
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


class Sampler:
    """Samples a process that must not grow.

    Attributes:
        resident: Bytes of memory, one a second.
        files: Open file descriptors.
        threads: Threads.
    """

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self._pid = pid
        self.resident: list[int] = []
        self.files: list[int] = []
        self.threads: list[int] = []

    def sample(self) -> None:
        """Takes one sample."""
        self.resident.append(resident_bytes(self._pid))
        self.files.append(open_files(self._pid))
        self.threads.append(threads(self._pid))

    def problems(self) -> list[str]:
        """What has grown: the last third against the second, the first being the warm-up; and what was not given back.

        The first sample and the last are those of the process at rest.
        """
        third = len(self.resident) // 3
        found = []
        before, after = (statistics.median(self.resident[n * third : (n + 1) * third]) for n in (1, 2))
        if after > before * 1.05 + (8 << 20):
            found.append(f"{self.name}: grew from {before / 2**20:.0f} to {after / 2**20:.0f} MiB")
        if self.files[-1] > self.files[0] + 4:
            found.append(f"{self.name}: had {self.files[0]} open files at rest, and has {self.files[-1]}")
        if self.threads[-1] > self.threads[0] + 16:
            found.append(f"{self.name}: had {self.threads[0]} threads at rest, and has {self.threads[-1]}")
        return found

    def summary(self) -> dict[str, str]:
        """First, median and last of each, for people."""

        def line(values: list[int], unit: int = 1) -> str:
            first, middle, last = (round(v / unit) for v in (values[0], statistics.median(values), values[-1]))
            return f"{first} at first, {middle} in between, {last} at last"

        return {
            f"{self.name}: MiB resident": line(self.resident, 1 << 20),
            f"{self.name}: open files": line(self.files),
            f"{self.name}: threads": line(self.threads),
        }


class Faults:
    """Does what the schedule says."""

    def __init__(self, behind: list[AggregatorProcess], between: list[Proxy], lanes: list[Lane]) -> None:
        self._mortal = behind[1:]
        self._proxies = between
        self._lanes = lanes
        self._ends: list[tuple[float, int, Callable[[], None]]] = []
        self.done: Counter[str] = Counter()

    def run(self, faults: list[Fault], begin: float) -> None:
        """Causes the faults, each when its time has come or as soon as those before are done, and ends all of them."""
        for fault in faults:
            self._end_until(begin + fault.at)
            self.done[fault.kind] += self._cause(fault)
        self._end_until(float("inf"))

    def _end_until(self, moment: float) -> None:
        while self._ends and self._ends[0][0] <= moment:
            at, _, end = heapq.heappop(self._ends)
            time.sleep(max(0.0, at - time.monotonic()))
            end()
        if moment < float("inf"):
            time.sleep(max(0.0, moment - time.monotonic()))

    def _cause(self, fault: Fault) -> bool:
        victim = self._mortal[fault.target % len(self._mortal)]
        proxy = self._proxies[fault.target % len(self._proxies)]
        lane = self._lanes[fault.target % len(self._lanes)]
        match fault.kind:
            case "aggregator killed":
                victim.end()
                victim.start()
            case "aggregator told to stop":
                status = victim.end(signal.SIGTERM)
                assert status == 0, victim.log[-2000:]
                victim.start()
            case "connections cut":
                proxy.cut()
            case "network silent":
                proxy.stall()
                self._end_after(fault.seconds, proxy.flow)
            case "network slow":
                proxy.delay_seconds = 0.02
                self._end_after(fault.seconds, lambda: setattr(proxy, "delay_seconds", 0.0))
            case "worker stopped":
                worker = lane.workers[fault.target % len(lane.workers)]
                _signal(worker, signal.SIGSTOP)
                self._end_after(fault.seconds, lambda: _signal(worker, signal.SIGCONT))
            case "worker killed":
                return lane.kill(fault.target)
        return True

    def _end_after(self, seconds: float, end: Callable[[], None]) -> None:
        heapq.heappush(self._ends, (time.monotonic() + seconds, len(self._ends), end))


def soak(directory: pathlib.Path, minutes: float, seed: int, say: Callable[[str], None]) -> list[str]:
    """Runs it, and says a table of what was counted.

    Args:
        directory: Where logs are written.
        minutes: For how long faults are caused and jobs begun.
        seed: Of the schedule and the jobs.
        say: Takes a line.

    Returns:
        What may not have happened.
    """
    flags = ("--keepalive", "1s", "--worker-timeout", f"{WORKER_TIMEOUT:g}s", "--grace", "2s", "--log-level", "warning")
    with contextlib.ExitStack() as stack:
        behind = stack.enter_context(aggregators(directory, AGGREGATORS, *flags))
        between = stack.enter_context(proxies(behind, seed))
        addresses = [proxy.address for proxy in between]
        resident = Lane(directory, "resident", seed, 1, addresses)
        lanes = [Lane(directory, f"lane{number}", seed, 2 + number % 2, addresses) for number in range(LANES)]
        for lane in (resident, *lanes):
            stack.callback(lane.close)
        # For all that is made on first use.
        resident.run(time.monotonic() + 5)
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
            sampler.sample()

        jobs = sum((lane.jobs for lane in (resident, *lanes)), Counter[str]())
        say(f"{'seed, seconds':32} {seed}, {time.monotonic() - begin:.0f}")
        say(f"{'jobs':32} {jobs.total()}: " + ", ".join(f"{count} {how}" for how, count in sorted(jobs.items())))
        say(f"{'sums checked':32} {sum(lane.checked for lane in (resident, *lanes))}")
        for kind in _KINDS:
            say(f"{kind:32} {faults.done[kind]}")
        for sampler in samplers:
            for what, values in sampler.summary().items():
                say(f"{what:32} {values}")
        problems = failed + [p for part in (resident, *lanes) for p in part.problems]
        return problems + [p for sampler in samplers for p in sampler.problems()]


def _wait_until_idle(aggregator: AggregatorProcess, failed: list[str]) -> None:
    """Until nothing is left of the jobs, failed ones that are remembered for a while included."""
    deadline = time.monotonic() + 30
    while find_jobs(aggregator.address):
        if time.monotonic() > deadline:
            failed.append(f"jobs are left on the aggregator: {find_jobs(aggregator.address)}")
            return
        time.sleep(0.1)
    # Closed connections are let go of a moment later.
    time.sleep(2.0)


def _signal(worker: WorkerProcess, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.signal(number)
