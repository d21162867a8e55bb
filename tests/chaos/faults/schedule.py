"""A random schedule of faults, and the injector that carries it out."""

import contextlib
import dataclasses
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from faults.aggregators import AggregatorProcess
from faults.job_runner import JobRunner
from faults.processes import WorkerProcess
from faults.proxy import Proxy

#: Mean time between faults.
_GAP_SECONDS = 1.5

#: For each kind of fault: its weight, and its shortest and longest duration in seconds. The longest is enough for
#: keepalive probes to notice, and below the 3 s for which a leaving worker waits for ranks that do not answer.
KINDS: dict[str, tuple[int, float, float]] = {
    "aggregator killed": (4, 0, 0),
    "aggregators killed together": (2, 0, 0),
    "aggregator told to stop": (2, 0, 0),
    "connections cut": (5, 0, 0),
    "network silent": (2, 0.3, 2.5),
    "network slow": (2, 1.0, 3.0),
    "data port closed": (1, 0.5, 3.0),
    "data port silent": (1, 0.5, 3.0),
    "worker stopped": (4, 0.2, 2.5),
    "worker killed": (2, 0, 0),
}


@dataclasses.dataclass(order=True, frozen=True)
class Fault:
    """One fault.

    Attributes:
        at: Start time in seconds since the beginning of the run.
        kind: A key of KINDS.
        target: Selects the process or proxy, modulo their number.
        seconds: Duration.
    """

    at: float
    kind: str
    target: int
    seconds: float


def schedule(seed: int) -> Iterator[Fault]:
    """Draw the faults of a run, in order of time, without end. The same seed gives the same faults."""
    chance = random.Random(seed)
    weights = [weight for weight, *_ in KINDS.values()]
    at = 0.0
    while True:
        at += chance.expovariate(1 / _GAP_SECONDS)
        [kind] = chance.choices(list(KINDS), weights)
        _, least, most = KINDS[kind]
        yield Fault(at, kind, chance.randrange(1 << 16), chance.uniform(least, most))


class FaultInjector:
    """Injects the scheduled faults.

    Args:
        aggregators: The aggregators. The first one is never killed or stopped.
        proxies: The proxies in front of them.
        runners: The job runners whose workers are killed or stopped.

    Attributes:
        done: Number of injected faults by kind.
    """

    def __init__(self, aggregators: list[AggregatorProcess], proxies: list[Proxy], runners: list[JobRunner]) -> None:
        self._killable = aggregators[1:]
        self._proxies = proxies
        self._runners = runners
        self._ends: list[threading.Timer] = []
        self.done: Counter[str] = Counter()

    def run(self, faults: Iterable[Fault], begin: float, over: Callable[[], bool] = lambda: False) -> None:
        """Inject each fault at its time, or as soon as those before it are done, until it is `over`. End all of them.

        If one comes late, those after it come as much later: a machine that takes long to start processes again gets
        the faults as far apart as others.

        Args:
            faults: The faults.
            begin: The time.monotonic() that their times count from.
            over: Whether to inject no more.
        """
        try:
            for fault in faults:
                late = time.monotonic() - (begin + fault.at)
                if late > 0:
                    begin += late
                else:
                    time.sleep(-late)
                if over():
                    break
                self.done[fault.kind] += self._cause(fault)
        finally:
            for end in self._ends:
                end.join()

    def _cause(self, fault: Fault) -> bool:
        victim = self._killable[fault.target % len(self._killable)]
        proxy = self._proxies[fault.target % len(self._proxies)]
        runner = self._runners[fault.target % len(self._runners)]
        match fault.kind:
            case "aggregator killed":
                victim.end()
                victim.start()
            case "aggregators killed together":
                for each in self._killable:
                    each.process.kill()
                for each in self._killable:
                    each.end()
                    each.start()
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
            case "data port closed" | "data port silent":
                # The fault only affects new data connections. The cut makes all workers reconnect.
                proxy.data_port = fault.kind.rpartition(" ")[2]
                proxy.cut()
                self._end_after(fault.seconds, lambda: setattr(proxy, "data_port", "open"))
            case "worker stopped":
                worker = runner.workers[fault.target % len(runner.workers)]
                _signal(worker, signal.SIGSTOP)
                self._end_after(fault.seconds, lambda: _signal(worker, signal.SIGCONT))
            case "worker killed":
                return runner.kill(fault.target)
            case _:
                raise AssertionError(f"no code causes the fault {fault.kind!r}")
        return True

    def _end_after(self, seconds: float, end: Callable[[], None]) -> None:
        # In a thread, because the next fault may wait for processes to start, and this one must not last longer for it.
        timer = threading.Timer(seconds, end)
        self._ends.append(timer)
        timer.start()


def _signal(worker: WorkerProcess, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.signal(number)
