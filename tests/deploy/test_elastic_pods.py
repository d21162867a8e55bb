"""The pods of the elastic Job: killed, evicted, and scaled up and down, while the others train.

The fleet and the workers run as their manifests say (see containers.py), and a model of the Job's controller replaces
pods (see controllers.py).
"""

import dataclasses
import itertools
import pathlib
import re
import signal
from collections.abc import Callable, Iterator

import pytest

from psum import client as psum
from tests.deploy import containers
from tests.deploy.controllers import Job, Place, run_until
from tests.deploy.manifests import ROOT, Pod, Resource, patched, pods, rendered
from tests.deploy.processes import Cluster, PodProcess, pod_files, running, secrets, worker_settings

pytestmark = [
    pytest.mark.skipif(containers.lack() != "", reason=containers.lack()),
    pytest.mark.timeout(180),
]

PROGRAM = pathlib.Path(__file__).with_name("elastic_train.py")

#: How long everything that is not measured may take.
PATIENCE_SECONDS = 60.0

#: How long the others may wait for a killed worker; for one that is only silent they would wait longer. It includes a
#: step, and what a busy machine adds.
STALL_SECONDS = 4.0

#: The exit status of an evicted worker that has left.
LEFT = 128 + signal.SIGTERM
KILLED = 128 + signal.SIGKILL


@dataclasses.dataclass(frozen=True)
class Step:
    """A line that a worker has printed after a step."""

    number: int
    time: float
    checksum: str


def steps(process: PodProcess) -> list[Step]:
    """The steps that a process has done."""
    words = [line.split() for line in process.lines if re.fullmatch(r"step \d+ [0-9.]+ [0-9a-f]{8}", line)]
    return [Step(int(number), float(time), checksum) for _, number, time, checksum in words]


def latest(places: list[Place]) -> int:
    """The last step that any process has done."""
    return max((step.number for place in places for step in steps(place.process)), default=0)


def scaling_command() -> str:
    """The command with which the guide scales the Job."""
    (command,) = re.findall(r"^    (kubectl .* patch job .*)$", guide(), re.MULTILINE)
    return str(command)


def guide() -> str:
    """The operator's guide."""
    return (ROOT / "docs/elastic-operations.md").read_text()


@pytest.fixture
def directory() -> Iterator[pathlib.Path]:
    """A folder for the pods' files."""
    with pod_files() as made:
        yield made


class Training:
    """The elastic Job on the fleet of the production overlay.

    Args:
        directory: A folder for its files.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        files = secrets(rendered("production"))
        self.cluster = Cluster(directory, files)
        self.aggregators = [PodProcess(pod, self.cluster) for pod in pods(rendered("production")) if pod.is_aggregator]
        (self.resource,) = (r for r in rendered("workers/elastic") if r["kind"] == "Job")
        self.job = Job(self.resource["spec"], list(pods([self.resource])), self._make)
        self._settings = worker_settings(self.aggregators[0].pod, files, directory / "observer")

    def _make(self, pod: Pod) -> PodProcess:
        return PodProcess(pod, self.cluster, PROGRAM)

    def scale(self, number: int) -> None:
        """Gives the Job another number of pods, with the guide's command."""
        resource: Resource = patched(self.resource, re.sub(r'(":) \d+', rf"\1 {number}", scaling_command()))
        assert resource["spec"] == self.resource["spec"] | {"completions": number, "parallelism": number}
        self.job.scale(resource["spec"], list(pods([resource])))

    def until_all_train(self, *ranks: int, what: str) -> float:
        """Waits until the processes of some ranks have done a new step; returns how long that took."""
        before = latest(self.job.places)
        places = [self.job.places[rank] for rank in ranks]
        return self.until(lambda: all(latest([place]) > before for place in places), what)

    def until(self, condition: Callable[[], bool], what: str) -> float:
        """See run_until."""
        return run_until([self.job], condition, PATIENCE_SECONDS, what)

    def membership(self) -> tuple[int, int, int, int]:
        """How many members an aggregator knows, and how many losses, joins and departures."""
        answer = psum.fetch_status(self.aggregators[0].address, settings=psum.Settings(**self._settings))
        (job,) = answer.jobs
        return job.elastic.members, job.elastic.losses, job.elastic.joins, job.elastic.departures


def test_pods_are_killed_evicted_and_scaled(directory: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A killed pod and an evicted one are replaced under their ranks, and join. More pods join, and leave again, each
    with its own status and within its grace period. The others repeat no step, and all have the same bits.
    """
    training = Training(directory)
    job, told = training.job, list[str]()
    with running(*training.aggregators):
        try:
            job.start()
            training.until_all_train(0, 1, 2, 3, what="all train")
            job.kill(1)
            took = training.until_all_train(0, 2, 3, what="they go on")
            told.append(f"killed: the others go on after {took:.1f} s")
            evicted = job.places[2].process
            job.evict(2)
            told.append(
                f"evicted: it leaves after {training.until(lambda: evicted.status is not None, 'it ends'):.1f} s"
            )
            training.until_all_train(0, 3, what="the others go on")
            training.scale(6)
            took = training.until_all_train(0, 3, 4, 5, what="they join")
            told.append(f"scaled up: all train after {took:.1f} s")
            training.until(lambda: all(job.places[rank].past for rank in (1, 2)), "both are replaced")
            took = training.until_all_train(*range(6), what="they join")
            told.append(f"replaced: all train after {took:.1f} s")
            training.scale(4)
            took = training.until(lambda: all(p.process.status is not None for p in job.removed), "they leave")
            told.append(f"scaled down: they leave after {took:.1f} s")
            training.until_all_train(0, 1, 2, 3, what="the others go on")
            membership = training.membership()
        finally:
            job.close()
    with capsys.disabled():
        print("", *told, sep="\n  ", end="")
    assert [[process.status for process in place.past] for place in job.places] == [[], [KILLED], [LEFT], []]
    assert [place.process.status for place in job.removed] == [LEFT, LEFT]
    assert all("leaves the job in good order" in " ".join(place.process.lines) for place in job.removed)
    check_steps(job)
    assert membership == (4, 1, 4, 3)


def check_steps(job: Job) -> None:
    """The ranks that were there all the time have done each step once and never waited long, with the same model."""
    checksums: dict[int, set[str]] = {}
    for place in (*job.places, *job.removed):
        for process in (*place.past, place.process):
            done = steps(process)
            numbers = [step.number for step in done]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            for step in done:
                checksums.setdefault(step.number, set()).add(step.checksum)
    assert all(len(different) == 1 for different in checksums.values())
    for rank in (0, 3):
        times = [step.time for step in steps(job.places[rank].process)]
        assert max(later - earlier for earlier, later in itertools.pairwise(times)) < STALL_SECONDS
