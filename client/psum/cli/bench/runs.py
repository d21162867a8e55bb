"""One run of one system on one case, and summaries of many runs."""

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Self

from psum.cli.bench import rivals
from psum.cli.bench.cases import Case, Effort, System
from psum.cli.bench.measure import Measurement, Plan
from psum.cli.bench.workloads import sizes
from psum.cli.launch.job import LocalJob
from psum.cli.launch.local_job import run as run_locally
from psum.cli.launch.streaming_copies import streaming_environment
from psum.wire import ElementType

_GB: Final = 1e9


@dataclasses.dataclass(frozen=True)
class Run:
    """The results of one run. `--json` prints these fields.

    Attributes:
        system: 'psum' or a rival's name.
        variant: The system's unique name within a comparison, such as 'psum shm' or 'dist_sync'.
        version: The rival's version, empty for psum.
        workload: The workload's name.
        workers: The number of workers.
        servers: The number of aggregators, or of a rival's servers.
        hosts: The number of simulated hosts.
        plane: The plane of psum's payloads, empty for a rival.
        dtype: The label of the element type.
        through: The interface to psum, empty for a rival.
        round: The number of the round, from 0.
        load: The machine's load average of the minute before the run.
        gb_per_s_per_worker: 10^9 bytes of one worker's payload per second, counted once for push and pull together.
        ms_per_step: Milliseconds from the first push-pull of a step until its last sum.
        worker_cpu_s_per_gb: Processor seconds of rank 0's process per GB, counted as above.
        aggregator_cpu_s_per_gb: Processor seconds of all aggregators or servers together per GB of one worker. None
            without servers.
        worker_mib: The peak memory of rank 0's process beyond its tensors and sums, in MiB.
        aggregator_mib: The peak memory of all aggregators or servers together beyond their memory without keys, in MiB.
        urgent_ms: Milliseconds from the push-pull of the most urgent tensor until it can be read. It is pushed last,
            after the rest of the step. None if not measured.
        urgent_step_ms: Milliseconds of such a step as a whole.
        latency_ms: As urgent_ms for each tensor, the most urgent first.
        idle_share: Processor seconds of all aggregators or servers per second of idling.
        limit_cpu_s_per_gb: Processor seconds per GB of all processes of the same pipeline without psum: see limits.py.
            None if there is none.
        of_limit: limit_cpu_s_per_gb divided by the processor seconds of all workers and aggregators per GB. Each worker
            counts as much as rank 0's.
        processor: The name of the processor, and how many of its cores there are.
        environment: What the workers were given, such as 'OMP_NUM_THREADS=1'.
    """

    system: str
    variant: str
    version: str
    workload: str
    workers: int
    servers: int
    hosts: int
    plane: str
    dtype: str
    through: str
    round: int
    load: float
    gb_per_s_per_worker: float
    ms_per_step: float
    worker_cpu_s_per_gb: float
    aggregator_cpu_s_per_gb: float | None
    worker_mib: float
    aggregator_mib: float | None
    urgent_ms: float | None
    urgent_step_ms: float | None
    latency_ms: list[float]
    idle_share: float | None
    limit_cpu_s_per_gb: float | None = None
    of_limit: float | None = None
    processor: str = ""
    environment: str = ""

    @property
    def case(self) -> Case:
        """The case that was run."""
        return Case(self.workload, self.workers, self.servers, self.hosts)


#: The figures of a Run that summaries have, in the order of tables: field, title, decimals.
FIGURES: Final = (
    ("gb_per_s_per_worker", "GB/s per worker", 3),
    ("ms_per_step", "ms per step", 1),
    ("worker_cpu_s_per_gb", "CPU s per GB, worker", 2),
    ("aggregator_cpu_s_per_gb", "CPU s per GB, aggregators", 2),
    ("of_limit", "of limit", 2),
    ("worker_mib", "MiB, worker", 0),
    ("aggregator_mib", "MiB, aggregators", 0),
    ("urgent_ms", "ms until the most urgent is back", 1),
    ("urgent_step_ms", "ms of such a step", 1),
    ("idle_share", "CPU s per idle s, aggregators", 4),
)


@dataclasses.dataclass(frozen=True)
class Spread:
    """The distribution of one figure over several runs."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def show(self, decimals: int) -> str:
        """Return the spread as text, such as '0.51', or '0.51 (0.49-0.60)' if runs differ."""
        low, middle, high = (f"{value:.{decimals}f}" for value in (self.lowest, self.median, self.highest))
        return middle if low == high else f"{middle} ({low}-{high})"


@dataclasses.dataclass(frozen=True)
class Summary:
    """All runs of one system on one case.

    Attributes:
        case: The case.
        variant: The name of the system.
        runs: The runs, by round.
    """

    case: Case
    variant: str
    runs: Sequence[Run]

    def spread(self, figure: str) -> Spread | None:
        """Return the spread of a field of Run, or None if it was not measured."""
        values = [value for run in self.runs if (value := getattr(run, figure)) is not None]
        return Spread.of(values) if values else None

    def latency_ms(self) -> list[float]:
        """Return the median latency of each tensor, the most urgent first."""
        return [statistics.median(each) for each in zip(*(run.latency_ms for run in self.runs), strict=True)]

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints for this summary."""
        first = self.runs[0]
        named = ("system", "version", "workload", "workers", "servers", "hosts", "plane", "dtype", "through")
        figures = {
            name: {part: round(value, 4) for part, value in dataclasses.asdict(spread).items()}
            for name, _, _ in FIGURES
            if (spread := self.spread(name)) is not None
        }
        about = {name: getattr(first, name) for name in (*named, "processor", "environment")}
        load = dataclasses.asdict(Spread.of([run.load for run in self.runs]))
        return {"variant": self.variant, **about, "rounds": len(self.runs), "load": load, **figures}


def summarise(runs: Iterable[Run]) -> list[Summary]:
    """Group runs by case and system, in order of first appearance."""
    grouped: dict[tuple[Case, str], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.case, run.variant), []).append(run)
    return [Summary(case, variant, found) for (case, variant), found in grouped.items()]


class FailedError(Exception):
    """A run failed, and has written an error message.

    Attributes:
        status: The exit status.
    """

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(status)


def openmp_environment() -> dict[str, str]:
    """Return the variable for OpenMP's threads in all processes: one thread, unless the user has set it.

    OpenMP's default is one thread per core. They spin while they wait. On 16 cores this slowed the servers of dist_sync
    down from 0.91 GB/s with one thread to 0.36 GB/s.
    """
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or "1"}


def worker_environment(system: System) -> dict[str, str]:
    """Return the variables that a system's workers get: those of all processes, and the copies of `psum launch`.

    Workers of other systems get the same copies as those of psum where it chooses the plane.
    """
    return {**openmp_environment(), **streaming_environment(system.plane if system.rival is None else "auto")}


def processor() -> str:
    """Return the name of this machine's processor and the number of its cores, such as '2 cores of AMD EPYC'."""
    cpus = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpus if line.startswith("model name")), "")
    return f"{len(os.sched_getaffinity(0))} cores of {model or platform.machine()}"


def beside_limit(run: Run, limit: float | None) -> Run:
    """Return a run with a limit: the processor seconds of all processes per GB, None if there is none."""
    if limit is None:
        return run
    used = run.workers * run.worker_cpu_s_per_gb + (run.aggregator_cpu_s_per_gb or 0.0)
    return dataclasses.replace(
        run, limit_cpu_s_per_gb=round(limit, 3), of_limit=round(limit / used, 3) if used else None
    )


def once(system: System, case: Case, effort: Effort, round: int = 0) -> Run:
    """Run a system on a case.

    Raises:
        FailedError: The run failed, or a signal ended it.
    """
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="psum-bench-") as directory, _hosts(case.hosts) as hosts:
        file = pathlib.Path(directory, "measurement")
        plan = Plan(
            system=system.through if system.rival is None else system.rival.name,
            sizes=sizes(case.workload),
            element_type=system.dtype,
            item_bytes=ElementType.of(system.dtype).itemsize,
            warmup=effort.warmup,
            steps=effort.steps,
            latency_steps=effort.latency_steps,
            idle_seconds=effort.idle_seconds,
            measurement=str(file),
            progress=system.rival is None and sys.stderr.isatty(),
        )
        if system.rival is None:
            command = [sys.executable, "-m", "psum.cli.bench.worker", plan.dump()]
            job = LocalJob(
                command, case.workers, case.aggregators, system.plane, hosts=hosts, environ=openmp_environment()
            )
            status = asyncio.run(run_locally(job))
        else:
            status = rivals.run(
                system.rival, plan, workers=case.workers, servers=case.aggregators, environ=worker_environment(system)
            )
        if status != 0:
            raise FailedError(status)
        measured = Measurement.load(file.read_text())
    return _report(system, case, effort, round, load, measured)


def _report(system: System, case: Case, effort: Effort, round_: int, load: float, measured: Measurement) -> Run:
    gigabytes = measured.payload_bytes / _GB
    servers = measured.server_cpu_seconds
    latency = [round(value, 3) for value in measured.latency_ms]
    return Run(
        system="psum" if system.rival is None else system.rival.name,
        variant=system.name,
        version="" if system.rival is None else system.rival.version,
        workload=case.workload,
        workers=case.workers,
        servers=case.aggregators,
        hosts=case.hosts,
        plane=measured.plane,
        dtype=system.dtype,
        through=system.through if system.rival is None else "",
        round=round_,
        load=round(load, 2),
        gb_per_s_per_worker=round(gigabytes / measured.seconds, 4),
        ms_per_step=round(measured.seconds / effort.steps * 1e3, 2),
        worker_cpu_s_per_gb=round(measured.cpu_seconds / gigabytes, 3),
        aggregator_cpu_s_per_gb=None if servers is None else round(servers / gigabytes, 3),
        worker_mib=round(measured.worker_mib, 1),
        aggregator_mib=None if measured.server_mib is None else round(measured.server_mib, 1),
        urgent_ms=latency[0] if latency else None,
        urgent_step_ms=round(measured.latency_step_ms, 2) if latency else None,
        latency_ms=latency,
        idle_share=None if measured.idle_share is None else round(measured.idle_share, 5),
        processor=processor(),
        environment=" ".join(f"{name}={value}" for name, value in worker_environment(system).items()),
    )


@contextlib.contextmanager
def _hosts(number: int) -> Iterator[list[str]]:
    """Create a directory in memory for each simulated host. A number of 1 creates none."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(tempfile.TemporaryDirectory(prefix="psum-host-", dir="/dev/shm"))
            for _ in range(number if number > 1 else 0)
        ]
