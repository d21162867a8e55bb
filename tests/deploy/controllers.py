"""Models of Kubernetes' Job and StatefulSet controllers: what they do with pods that end or are deleted.

They follow Kubernetes' documentation under "Concepts", "Workloads": "Jobs" (sections "Pod backoff failure policy",
"Backoff limit per index" and "Delayed creation of replacement pods"), "Pod Lifecycle" ("Termination of Pods") and
"StatefulSets" ("Pod Identity"). The proposal KEP-3850 says from which moment a delay counts.

- A pod of a Job fails when its container ends with a status other than 0. A deleted pod fails when it is deleted, even
  if it still runs; with `podReplacementPolicy: Failed`, it fails when it has ended.
- A failed pod is replaced after 10 s. Each earlier failure doubles this delay, up to ten minutes (the documentation
  says six). With `backoffLimitPerIndex` only the failures of the pod's index count, otherwise all failures.
- A Job fails when more than `maxFailedIndexes` indexes have each failed more often than `backoffLimitPerIndex`, or when
  there are more failures than `backoffLimit`.
- With `backoffLimitPerIndex`, a deleted pod whose container ends with status 0 before it is replaced has succeeded: its
  index is done, and no other pod follows. If it ends with another status, the delay begins anew. (The documentation
  does not say so. In the controller's source, `calculateSucceededIndexes` and `getFinishedTime` do it.)
- When `completions` and `parallelism` are lowered, the pods beyond are deleted, and count as nothing.
- When a pod is deleted, its preStop hook runs, then it gets SIGTERM, and SIGKILL at the end of its grace period.
- When a StatefulSet's pod has ended, it is replaced at once under the same name.

The models leave out schedulers and images, which take no time here, restarts of containers within a pod, and nodes that
vanish.
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

#: The server's default if a manifest has neither limit.
_BACKOFF_LIMIT = 6

#: Interval at which controllers look at their pods.
_PERIOD_SECONDS = 0.05


def delay(failures: int) -> float:
    """Seconds from a failure to the start of the replacement. The number of failures includes this one."""
    return min(FIRST_DELAY_SECONDS * 2.0 ** (failures - 1), LONGEST_DELAY_SECONDS)


@dataclasses.dataclass
class Place:
    """A place for one pod at a time.

    Attributes:
        pod: The pod.
        process: The process that runs, or ran last.
        past: The processes before it, oldest first.
        failures: When each process here failed, in seconds of the monotonic clock.
        replaced: When the current process replaced another; 0 if it is the first.
        deleted: When the current process was deleted, or None.
        counted: Whether `failures` already contains the failure of the current process.
        succeeded: Whether the place is done, because its process has ended with status 0.
    """

    pod: Pod
    process: PodProcess
    past: list[PodProcess] = dataclasses.field(default_factory=list)
    failures: list[float] = dataclasses.field(default_factory=list)
    replaced: float = 0.0
    deleted: float | None = None
    counted: bool = False
    succeeded: bool = False


class Controller(abc.ABC):
    """Runs some pods and replaces those that end.

    Args:
        pods: The pods.
        make: Makes a process for a pod.

    Attributes:
        places: One for each pod, by index.
        removed: The places that there are no longer.
    """

    def __init__(self, pods: Sequence[Pod], make: Callable[[Pod], PodProcess]) -> None:
        self._make = make
        self._dying: list[tuple[float, PodProcess]] = []
        self.places = [Place(pod, make(pod)) for pod in pods]
        self.removed: list[Place] = []

    def start(self) -> None:
        """Starts all pods."""
        for place in self.places:
            place.process.launch()

    def evict(self, index: int) -> None:
        """Deletes a pod, as for a drain or a preemption: asks it to end, and kills it after its grace period."""
        self._delete(self.places[index])

    def _delete(self, place: Place) -> None:
        process, place.deleted = place.process, time.monotonic()
        self._dying.append((place.deleted + process.grace, process))
        # Controllers and other pods must go on while a hook runs.
        threading.Thread(target=process.terminate, daemon=True).start()

    def kill(self, index: int) -> None:
        """Kills the process of a pod with SIGKILL."""
        self.places[index].process.signal(signal.SIGKILL)

    def poll(self) -> None:
        """Takes all actions that are due."""
        now = time.monotonic()
        for deadline, process in list(self._dying):
            if process.status is not None:
                self._dying.remove((deadline, process))
            elif now >= deadline:
                process.signal(signal.SIGKILL)
        for place in self.places:
            self._look(place, now)

    def close(self) -> None:
        """Kills all processes that run."""
        for place in (*self.places, *self.removed):
            for process in (*place.past, place.process):
                process.close()

    def story(self, since: float) -> str:
        """Describes what happened to the pods, with the last lines of output of each process."""
        lines = []
        for place in (*self.places, *self.removed):
            failed = ", ".join(f"{moment - since:.1f} s" for moment in place.failures)
            began = place.replaced - since
            lines.append(f"{place.pod.name}: failed after [{failed}], the last began after {began:.1f} s")
            for process in (*place.past, place.process):
                lines += [f"  status {process.status}:", *(f"    {line}" for line in process.lines[-5:])]
        return "\n".join(lines)

    @abc.abstractmethod
    def _look(self, place: Place, now: float) -> None:
        """Takes the actions that are due at a place."""

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
        spec: The Job's specification.
        pods: Its pods, by index.
        make: Makes a process for a pod.

    Attributes:
        failure: Why the Job failed; '' if it has not failed.
    """

    def __init__(self, spec: Resource, pods: Sequence[Pod], make: Callable[[Pod], PodProcess]) -> None:
        super().__init__(pods, make)
        assert spec["completions"] == spec["parallelism"] == len(self.places), "not all pods run at a time"
        self._spec = spec
        self.failure = ""

    def scale(self, spec: Resource, pods: Sequence[Pod]) -> None:
        """Takes a new specification, which has another number of pods.

        Args:
            spec: The specification. It differs in `completions` and `parallelism` only.
            pods: Its pods, by index.
        """
        assert spec["completions"] == spec["parallelism"] == len(pods), "not all pods run at a time"
        self._spec = spec
        while len(self.places) > len(pods):
            self.removed.append(self.places.pop())
            if self.removed[-1].process.status is None:
                self._delete(self.removed[-1])
        for pod in pods[len(self.places) :]:
            self.places.append(Place(pod, self._make(pod)))
            self.places[-1].process.launch()

    @property
    def failures(self) -> list[int]:
        """How often the pods of each index have failed."""
        return [len(place.failures) for place in self.places]

    def _look(self, place: Place, now: float) -> None:
        if place.succeeded:
            return
        status, per_index = place.process.status, "backoffLimitPerIndex" in self._spec
        if status == 0 and (per_index or place.deleted is None):
            if place.counted:
                place.failures.pop()
            place.counted, place.succeeded = False, True
            return
        if not place.counted and self._has_failed(place):
            place.counted = True
            place.failures.append(now)
            self._judge()
        elif per_index and place.deleted is not None and status is not None:
            place.failures[-1], place.deleted = now, None
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
    """Polls controllers until a condition holds; returns how many seconds that took.

    Raises:
        AssertionError: The condition did not hold in time, or a Job has failed. The text has each pod's last output.
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
