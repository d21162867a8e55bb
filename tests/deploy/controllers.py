"""What Kubernetes' controllers do with pods that end or are deleted: a Job's and a StatefulSet's.

It follows Kubernetes' documentation under "Concepts", "Workloads": "Jobs" (sections "Pod backoff failure policy",
"Backoff limit per index" and "Delayed creation of replacement pods"), "Pod Lifecycle" ("Termination of Pods") and
"StatefulSets" ("Pod Identity"); and the proposal KEP-3850 for the moment from which a delay is counted:

- A pod of a Job that has ended with another status than 0 has failed when its container ended. One that is deleted has
  failed when it was, though it still runs; with `podReplacementPolicy: Failed`, when it has ended.
- A failed pod is replaced after 10 s, doubled with each failure before it, ten minutes at most (where the documentation
  says six). With `backoffLimitPerIndex` the failures are those of its index, else those of all.
- The Job is over as failed when more indexes than `maxFailedIndexes` have failed more often than
  `backoffLimitPerIndex`, or when there were more failures than `backoffLimit`.
- A pod that is deleted has its preStop hook run, gets SIGTERM, and SIGKILL at the end of its grace period.
- A StatefulSet's pod is replaced at once when it has ended, under its name.

Left out: schedulers and images, which take no time here, restarts of containers within a pod, and nodes that vanish.
"""

import abc
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.deploy.manifests import Pod, Resource
from tests.deploy.processes import PodProcess

FIRST_DELAY_SECONDS = 10.0
LONGEST_DELAY_SECONDS = 600.0

#: As the server adds it where a manifest has neither limit.
_BACKOFF_LIMIT = 6

#: How often controllers look.
_PERIOD_SECONDS = 0.05


def delay(failures: int) -> float:
    """Seconds between a failure and the replacement's start, when there were so many failures, this one included."""
    return min(FIRST_DELAY_SECONDS * 2.0 ** (failures - 1), LONGEST_DELAY_SECONDS)


@dataclasses.dataclass
class Place:
    """A place for one pod at a time.

    Attributes:
        pod: The pod.
        process: The one that runs, or ran last.
        past: Those before it.
        failures: When each pod here failed, in seconds of the monotonic clock.
        replaced: When the one that runs took the place of another.
        deleted: When it was deleted, where it was.
        counted: Whether its failure is among those already.
    """

    pod: Pod
    process: PodProcess
    past: list[PodProcess] = dataclasses.field(default_factory=list)
    failures: list[float] = dataclasses.field(default_factory=list)
    replaced: float = 0.0
    deleted: float | None = None
    counted: bool = False


class Controller(abc.ABC):
    """Runs some pods and replaces those that end.

    Args:
        pods: The pods.
        make: Makes a process of a pod.

    Attributes:
        places: One for each pod, by index.
    """

    def __init__(self, pods: Sequence[Pod], make: Callable[[Pod], PodProcess]) -> None:
        self._make = make
        self._dying: list[tuple[float, PodProcess]] = []
        self.places = [Place(pod, make(pod)) for pod in pods]

    def start(self) -> None:
        """Starts all pods."""
        for place in self.places:
            place.process.launch()

    def evict(self, index: int) -> None:
        """Deletes a pod, as for a drain or a preemption: it is asked to end, and killed after its grace period."""
        place = self.places[index]
        process, place.deleted = place.process, time.monotonic()
        self._dying.append((place.deleted + process.grace, process))
        # A hook may take its time, while controllers and other pods go on.
        threading.Thread(target=process.terminate, daemon=True).start()

    def kill(self, index: int) -> None:
        """Has the kernel kill the process of a pod."""
        self.places[index].process.signal(signal.SIGKILL)

    def poll(self) -> None:
        """Does what is due."""
        now = time.monotonic()
        for deadline, process in list(self._dying):
            if process.status is not None:
                self._dying.remove((deadline, process))
            elif now >= deadline:
                process.signal(signal.SIGKILL)
        for place in self.places:
            self._look(place, now)

    def close(self) -> None:
        """Kills all that run."""
        for place in self.places:
            for process in (*place.past, place.process):
                process.close()

    def story(self, since: float) -> str:
        """What became of its pods, and the end of what each process has written, for people."""
        lines = []
        for place in self.places:
            failed = ", ".join(f"{moment - since:.1f} s" for moment in place.failures)
            began = place.replaced - since
            lines.append(f"{place.pod.name}: failed after [{failed}], the last began after {began:.1f} s")
            for process in (*place.past, place.process):
                lines += [f"  status {process.status}:", *(f"    {line}" for line in process.lines[-5:])]
        return "\n".join(lines)

    @abc.abstractmethod
    def _look(self, place: Place, now: float) -> None:
        """Does what is due at a place."""

    def _replace(self, place: Place, now: float) -> None:
        place.past.append(place.process)
        place.process, place.replaced, place.deleted, place.counted = self._make(place.pod), now, None, False
        place.process.launch()


class StatefulSet(Controller):
    """The pods of a StatefulSet."""

    def _look(self, place: Place, now: float) -> None:
        if place.process.status is not None:
            self._replace(place, now)


class Job(Controller):
    """The pods of an Indexed Job.

    Args:
        spec: The Job's.
        pods: Its pods, by index.
        make: Makes a process of a pod.

    Attributes:
        failure: Why the Job is over as failed; '' while it is not.
    """

    def __init__(self, spec: Resource, pods: Sequence[Pod], make: Callable[[Pod], PodProcess]) -> None:
        super().__init__(pods, make)
        assert spec["completions"] == spec["parallelism"] == len(self.places), "not all pods run at a time"
        self._spec = spec
        self.failure = ""

    @property
    def failures(self) -> list[int]:
        """How often the pods of each index have failed."""
        return [len(place.failures) for place in self.places]

    def _look(self, place: Place, now: float) -> None:
        if not place.counted and self._has_failed(place):
            place.counted = True
            place.failures.append(now)
            self._judge()
        if place.counted and not self.failure and now >= place.failures[-1] + delay(self._count(place)):
            self._replace(place, now)

    def _has_failed(self, place: Place) -> bool:
        if place.deleted is not None and self._spec.get("podReplacementPolicy") != "Failed":
            return True
        return place.process.status not in (None, 0)

    def _count(self, place: Place) -> int:
        return len(place.failures) if "backoffLimitPerIndex" in self._spec else sum(self.failures)

    def _judge(self) -> None:
        limit: Any = self._spec.get("backoffLimitPerIndex")
        if limit is None:
            if sum(self.failures) > self._spec.get("backoffLimit", _BACKOFF_LIMIT):
                self.failure = "BackoffLimitExceeded"
        elif sum(count > limit for count in self.failures) > self._spec.get("maxFailedIndexes", len(self.places)):
            self.failure = "MaxFailedIndexesExceeded"


def run_until(controllers: Sequence[Controller], condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Has controllers do their work until something is so; returns for how long.

    Raises:
        AssertionError: It was not so in time, or a Job has failed; with the end of what the pods have written.
    """
    begin = time.monotonic()
    while not condition():
        failed = [c.failure for c in controllers if isinstance(c, Job) and c.failure]
        if failed or time.monotonic() - begin > seconds:
            stories = [controller.story(begin) for controller in controllers]
            raise AssertionError("\n".join([f"not within {seconds:g} s: {what}; {failed}", *stories]))
        for controller in controllers:
            controller.poll()
        time.sleep(_PERIOD_SECONDS)
    return time.monotonic() - begin
