"""A random schedule of faults, and what causes them."""

import contextlib
import dataclasses
import heapq
import random
import signal
import time
from collections import Counter
from collections.abc import Callable

from faults.aggregators import AggregatorProcess
from faults.lanes import SendWindow
from faults.processes import WorkerProcess
from faults.proxy import Proxy

#: Seconds between faults, on the average.
_GAP_SECONDS = 1.5

#: Kinds of faults, how often each comes, and how long it lasts, in seconds: long enough to be noticed by probes, and
#: less than the 3 s for which a worker that leaves is kept for others that do not answer.
KINDS: dict[str, tuple[int, float, float]] = {
    "aggregator killed": (4, 0, 0),
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
    """One fault: when, what, to which of those it can be done to (taken modulo their number), and for how long."""

    at: float
    kind: str
    target: int
    seconds: float


def schedule(seed: int, seconds: float) -> list[Fault]:
    """The faults of a run, in order; the same for the same seed."""
    chance = random.Random(seed)
    weights = [weight for weight, *_ in KINDS.values()]
    faults = []
    at = 0.0
    while (at := at + chance.expovariate(1 / _GAP_SECONDS)) < seconds:
        [kind] = chance.choices(list(KINDS), weights)
        _, least, most = KINDS[kind]
        faults.append(Fault(at, kind, chance.randrange(1 << 16), chance.uniform(least, most)))
    return faults


class Faults:
    """Does what the schedule says."""

    def __init__(self, behind: list[AggregatorProcess], between: list[Proxy], lanes: list[SendWindow]) -> None:
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
            case "data port closed" | "data port silent":
                # For those who connect meanwhile, as all do whose connections are cut.
                proxy.data_port = fault.kind.rpartition(" ")[2]
                proxy.cut()
                self._end_after(fault.seconds, lambda: setattr(proxy, "data_port", "open"))
            case "worker stopped":
                worker = lane.workers[fault.target % len(lane.workers)]
                _signal(worker, signal.SIGSTOP)
                self._end_after(fault.seconds, lambda: _signal(worker, signal.SIGCONT))
            case "worker killed":
                return lane.kill(fault.target)
        return True

    def _end_after(self, seconds: float, end: Callable[[], None]) -> None:
        heapq.heappush(self._ends, (time.monotonic() + seconds, len(self._ends), end))


def _signal(worker: WorkerProcess, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        worker.signal(number)
