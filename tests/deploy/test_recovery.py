"""Trainings go on soon after pods are evicted and killed, in every overlay and example of workers.

Fleets and workers run as their manifests say (see containers.py). Models of Kubernetes' controllers replace their pods
(see controllers.py).
"""

import contextlib
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest

from psum import client as psum
from tests.deploy import containers, controllers
from tests.deploy.controllers import Controller, Job, StatefulSet, run_until
from tests.deploy.manifests import Pod, pods, rendered
from tests.deploy.processes import Cluster, PodProcess, pod_files, secrets

pytestmark = [
    pytest.mark.skipif(containers.lack() != "", reason=containers.lack()),
    pytest.mark.timeout(180),
]

PROGRAM = pathlib.Path(__file__).with_name("train.py")

#: How long everything that is not measured may take.
PATIENCE_SECONDS = 60.0

#: Seconds between the evictions in different trainings of one fleet.
APART_SECONDS = 3.0

#: How soon all train again: the delay of the Job's controller, plus psum's part. The tests add the time of the first
#: start, because starting processes takes longer on a slow or busy machine.
EVICTED_SECONDS = controllers.FIRST_DELAY_SECONDS + 5.0
KILLED_SECONDS = controllers.FIRST_DELAY_SECONDS + 10.0
AGGREGATOR_SECONDS = 10.0


#: The exit status of a worker that was evicted or killed: 128 plus the signal's number.
ENDED = 128 + signal.SIGTERM
KILLED = 128 + signal.SIGKILL


class Training:
    """A Job of workers in a cluster.

    Args:
        workers: The example, one of RENDERED.
        cluster: The cluster in which it runs.
        name: The job's name, unique among the jobs on the same aggregators.
    """

    def __init__(self, workers: str, cluster: Cluster, name: str) -> None:
        def make(pod: Pod) -> PodProcess:
            return PodProcess(pod, cluster, PROGRAM, PSUM_JOB=name)

        mine = [pod for pod in pods(rendered(workers)) if not pod.is_aggregator]
        self.job = Job(job_specification(workers, aggregators=False), mine, make)

    @property
    def steps(self) -> list[int]:
        """How many steps the current process of each rank has done."""
        return [sum(line.startswith("step ") for line in place.process.lines) for place in self.job.places]

    def trains(self, more_than: list[int] | None = None) -> bool:
        """Whether all ranks have done steps; with `more_than`, whether they have done more steps than that."""
        steps = self.steps
        return all(now > before for now, before in zip(steps, more_than or [0] * len(steps), strict=True))

    def trains_again(self, index: int, since: float) -> bool:
        """Whether the pod of an index was replaced after a time, and all ranks have done a step since."""
        place = self.job.places[index]
        return place.replaced > since and not any(p.counted for p in self.job.places) and self.trains()


def job_specification(name: str, *, aggregators: bool) -> Any:
    """Returns the specification of the Job of workers, or of aggregators, in one of RENDERED."""
    (resource,) = (r for r in rendered(name) if r["kind"] in ("Job", "JobSet"))
    if resource["kind"] == "Job":
        return resource["spec"]
    wanted = "aggregator" if aggregators else "worker"
    return next(j for j in resource["spec"]["replicatedJobs"] if j["name"] == wanted)["template"]["spec"]


class Fleet:
    """Aggregators and the trainings on them.

    Args:
        name: The overlay, or the example that has aggregators of its own.
        directory: The folder for its files.
        trainings: The examples to run, by the names of the trainings.
    """

    def __init__(self, name: str, directory: pathlib.Path, trainings: dict[str, str]) -> None:
        self.cluster = Cluster(directory, secrets(rendered(name)))
        self.harmed = self.start_seconds = 0.0
        aggregators = [pod for pod in pods(rendered(name)) if pod.is_aggregator]

        def make(pod: Pod) -> PodProcess:
            return PodProcess(pod, self.cluster)

        self.aggregators: Controller
        if aggregators[0].owner.startswith("StatefulSet/"):
            self.aggregators = StatefulSet(aggregators, make)
        else:
            self.aggregators = Job(job_specification(name, aggregators=True), aggregators, make)
        self.trainings = {what: Training(workers, self.cluster, what) for what, workers in trainings.items()}

    @property
    def controllers(self) -> list[Controller]:
        """The controllers of the aggregators and of all trainings."""
        return [self.aggregators, *(training.job for training in self.trainings.values())]

    def start(self) -> None:
        """Starts all pods at the same time; returns when all train."""
        begun = time.monotonic()
        for controller in self.controllers:
            controller.start()
        self.until(lambda: all(t.trains() for t in self.trainings.values()), PATIENCE_SECONDS, "all train")
        self.start_seconds = time.monotonic() - begun

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """See run_until."""
        return run_until(self.controllers, condition, seconds, what)

    def evict_an_aggregator(self) -> float:
        """Evicts an aggregator; returns after how many seconds all trainings have gone on. No worker may fail."""
        place, before = self.aggregators.places[-1], time.monotonic()
        failures = {name: t.job.failures for name, t in self.trainings.items()}
        self.aggregators.evict(len(self.aggregators.places) - 1)
        self.until(lambda: place.replaced > before, PATIENCE_SECONDS, "it is replaced")
        steps = {name: t.steps for name, t in self.trainings.items()}
        # A step that was under way can end without the new process. The step after it cannot.
        gone_on = {name: [n + 1 for n in s] for name, s in steps.items()}
        self.until(lambda: all(t.trains(gone_on[n]) for n, t in self.trainings.items()), PATIENCE_SECONDS, "all go on")
        assert {name: t.job.failures for name, t in self.trainings.items()} == failures, "a worker has failed"
        assert place.past[-1].status == 0
        return time.monotonic() - before

    def evict_workers(self) -> dict[str, float]:
        """Evicts a worker of every training; returns after how many seconds all train again."""
        return self._harm(lambda job, index: job.evict(index), list(self.trainings))

    def kill_workers(self, *names: str) -> dict[str, float]:
        """Kills a worker of each named training; returns after how many seconds all train again."""
        return self._harm(lambda job, index: job.kill(index), list(names))

    def _harm(self, harm: Callable[[Job, int], None], names: list[str]) -> dict[str, float]:
        index, harmed, took = 1, dict[str, float](), dict[str, float]()
        self.harmed = time.monotonic()

        def recovered() -> bool:
            now = time.monotonic()
            # Harm one training after the other, so that their new processes do not all start at the same time.
            if len(harmed) < len(names) and now >= self.harmed + len(harmed) * APART_SECONDS:
                name = names[len(harmed)]
                harmed[name] = now
                harm(self.trainings[name].job, index)
            for name, begun in harmed.items():
                if name not in took and self.trainings[name].trains_again(index, begun):
                    took[name] = now - begun
            return len(took) == len(names)

        self.until(recovered, 2 * PATIENCE_SECONDS, "all train again")
        return took

    def close(self) -> None:
        """Kills all processes."""
        for controller in self.controllers:
            controller.close()


Times = dict[str, dict[str, float]]
"""Seconds until all trained again, by what happened and by training."""


def _production(fleet: Fleet) -> Times:
    return {"an aggregator evicted": {"all": fleet.evict_an_aggregator()}, "a worker evicted": fleet.evict_workers()}


def _own_certificates(fleet: Fleet) -> Times:
    killed = fleet.kill_workers("indexed-job")
    return {"a worker killed": killed, "an aggregator evicted": {"all": fleet.evict_an_aggregator()}}


#: For each overlay, the trainings on it, and the function that harms its pods.
FLEETS: dict[str, tuple[dict[str, str], Callable[[Fleet], Times]]] = {
    "production": (
        {name: f"workers/{name}" for name in ("indexed-job", "kueue", "volcano")},
        _production,
    ),
    "own-certificates": ({"indexed-job": "workers/indexed-job"}, _own_certificates),
    "single-node": ({"single-node": "workers/single-node"}, _production),
    "workers/jobset": ({"jobset": "workers/jobset"}, _production),
}


@pytest.fixture(scope="module")
def happened() -> Iterator[dict[str, "Future[tuple[Fleet, Times]]"]]:
    """Runs all fleets at the same time, because they mostly wait for the controllers' delays."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(pod_files())
        pool = stack.enter_context(ThreadPoolExecutor(len(FLEETS)))

        def run(name: str) -> tuple[Fleet, Times]:
            trainings, harm = FLEETS[name]
            fleet = Fleet(name, directory / name.replace("/", "-"), trainings)
            try:
                fleet.start()
                return fleet, harm(fleet)
            finally:
                fleet.close()

        futures = {name: pool.submit(run, name) for name in FLEETS}
        # Wait before the first test begins: if that test fails, everything that was started during it is ended.
        wait(futures.values())
        yield futures


LIMITS = {
    "a worker evicted": EVICTED_SECONDS,
    "a worker killed": KILLED_SECONDS,
    "an aggregator evicted": AGGREGATOR_SECONDS,
}


@pytest.mark.parametrize("name", FLEETS)
def test_all_train_again(
    name: str, happened: "dict[str, Future[tuple[Fleet, Times]]]", capsys: pytest.CaptureFixture[str]
) -> None:
    """All train again soon after a pod was harmed. No worker fails twice. The end of an aggregator costs no step."""
    fleet, times = happened[name].result()
    for what, took in times.items():
        limit = LIMITS[what] + fleet.start_seconds
        if isinstance(fleet.aggregators, Job) and "aggregator" in what:
            limit += controllers.FIRST_DELAY_SECONDS
        for training, seconds in took.items():
            with capsys.disabled():
                print(f"\n{name}, {what}: {training} trained again after {seconds:.1f} s", end="")
            if seconds >= limit:
                stories = [t.job.story(fleet.harmed) for t in fleet.trainings.values()]
                pytest.fail("\n".join([f"{what}: {training} trained again after {seconds:.1f} s", *stories]))
    harmed = KILLED if any("killed" in what for what in times) else ENDED
    for trained in fleet.trainings.values():
        ends = [[process.status for process in place.past] for place in trained.job.places]
        assert ends == [[harmed if index == 1 else psum.PEER_FAULT_STATUS] for index in range(len(ends))]
