"""One run of one system in one placement, and what several runs say together."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from psum.cli.bench.cases import Effort, System
from psum.cli.bench.measure import Measurement, Plan
from psum.cli.bench.runs import FailedError, Spread
from psum.cli.bench.workloads import sizes
from psum.wire import ElementType
from tests.bench.netlab import job, sampler
from tests.bench.netlab.bound import least_link_bytes
from tests.bench.netlab.network import Network
from tests.bench.netlab.placement import Placement
from tests.bench.netlab.samples import Samples
from tests.bench.netlab.systems import Job, settings

#: How often the links' counters are read.
_SAMPLE_SECONDS: Final = 0.02

#: A run may take this long for its start and its end, and this many times the links' least time for its steps.
_START_SECONDS: Final = 120.0
_PATIENCE: Final = 15.0

_GB: Final = 1e9


@dataclasses.dataclass(frozen=True)
class Case:
    """What a system does, and where.

    Attributes:
        placement: Where its workers and aggregators are.
        workload: What is summed.
        mbit: The rate of each link in each direction, in 10^6 bits per second.
        congestion_control: TCP's.
    """

    placement: Placement
    workload: str
    mbit: float
    congestion_control: str

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.placement.title}; {self.workload}, {self.mbit:g} Mbit/s, {self.congestion_control}"

    @property
    def payload_bytes(self) -> int:
        """Bytes that a worker push-pulls in a step."""
        return sum(sizes(self.workload)) * ElementType.FLOAT32.itemsize


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run gives; its fields are those of a line of JSON.

    Attributes:
        variant: The system: 'psum auto', 'gloo'.
        version: The rival's, else empty.
        hosts, local, beside, dedicated: The placement; see Placement.
        workload, mbit, congestion_control: The case; see Case.
        plane: How psum's payloads crossed, else empty.
        settings: psum's settings that were not the defaults, by their variables.
        round: Which round of alternating runs it belongs to, from 0.
        load: The machine's load average before it.
        seconds: A step: the mean of rank 0's timed steps.
        step_seconds: Each of them.
        bound: The least time of a step that the links allow for the placement, in seconds.
        of_bound: bound / seconds. Headers take 4 to 5 %, so 0.95 is the best that can be.
        link_bytes: What the busiest link carried in a timed step in one direction, over what it has to carry at least.
            It does not depend on the speed or the load of the machine.
        links: The same for each host's link, out of the host and into it.
        fullness: The part of their rate that the links of the workers' hosts carried in the timed steps, on average.
        dropped: Packets that full queues of links dropped in the timed steps.
        retransmitted: TCP segments that all hosts sent again, from start to end.
        timeouts: Retransmission timeouts of all hosts, from start to end.
        urgent_ms: Time from the push-pull of the most urgent tensor, issued last behind a whole step, until its sum can
            be read. None if that was not measured.
        urgent_step_ms: How long such a step took.
        worker_cpu_s_per_gb: Processor seconds of rank 0's process for each GB of its payload.
        aggregator_cpu_s_per_gb: The same of all psum's aggregators together. None for rivals.
    """

    variant: str
    version: str
    hosts: int
    local: int
    beside: int
    dedicated: int
    workload: str
    mbit: float
    congestion_control: str
    plane: str
    settings: dict[str, str]
    round: int
    load: float
    seconds: float
    step_seconds: list[float]
    bound: float
    of_bound: float
    link_bytes: float
    links: list[list[float]]
    fullness: float
    dropped: int
    retransmitted: int
    timeouts: int
    urgent_ms: float | None
    urgent_step_ms: float | None
    worker_cpu_s_per_gb: float
    aggregator_cpu_s_per_gb: float | None

    @property
    def case(self) -> Case:
        """What was done."""
        placement = Placement(self.hosts, self.local, self.beside, self.dedicated)
        return Case(placement, self.workload, self.mbit, self.congestion_control)

    @property
    def urgent_share(self) -> float | None:
        """The part of a step that the most urgent tensor takes."""
        return self.urgent_ms / self.urgent_step_ms if self.urgent_ms is not None and self.urgent_step_ms else None


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a run showed over time.

    Attributes:
        samples: What the links carried.
        steps: When each rank's steps began and ended, those for warming up and for latencies included.
        timed: Which of them are timed, as the first and the one after the last.
    """

    samples: Samples
    steps: Sequence[Sequence[tuple[float, float]]]
    timed: tuple[int, int]

    @property
    def begin(self) -> float:
        """When the first rank began the timed steps."""
        return min(steps[self.timed[0]][0] for steps in self.steps)

    @property
    def end(self) -> float:
        """When the last rank ended them."""
        return max(steps[self.timed[1] - 1][1] for steps in self.steps)


def once(system: System, case: Case, effort: Effort, round: int = 0) -> tuple[Run, Trace]:
    """Makes hosts, runs a system on them, and removes them.

    Raises:
        FailedError: The system failed, or was ended by a signal.
        LabError: There can be no hosts.
    """
    load = os.getloadavg()[0]
    placement = case.placement
    with (
        tempfile.TemporaryDirectory(prefix="psum-netlab-") as directory,
        Network(placement.all_hosts, case.mbit, case.congestion_control) as network,
    ):
        path = pathlib.Path(directory)
        plan = Plan(
            system="numpy" if system.rival is None else system.rival.name,
            sizes=sizes(case.workload),
            element_type=system.dtype,
            item_bytes=ElementType.of(system.dtype).itemsize,
            warmup=effort.warmup,
            steps=effort.steps,
            latency_steps=effort.latency_steps,
            idle_seconds=0.0,
            measurement=str(path / "measurement"),
            progress=False,
        )
        hosts = range(len(network))
        addresses, shared = [network.address(host) for host in hosts], [network.shared_memory(host) for host in hosts]
        work = Job(system, placement, addresses, shared, path)
        steps = effort.warmup + effort.steps + effort.latency_steps
        least = least_link_bytes(placement, case.payload_bytes) * placement.local / network.bytes_per_second
        with _sampled(network, path / "samples"):
            status = job.run(network, work, plan, _START_SECONDS + _PATIENCE * steps * least)
        if status != 0:
            raise FailedError(status)
        tcp = [network.tcp_counters(host) for host in hosts]
        with (path / "samples").open() as lines:
            samples = Samples.parse(lines)
        recorded = [json.loads(work.steps_file(rank).read_text()) for rank in range(placement.workers)]
        measured = Measurement.load((path / "measurement").read_text())
    trace = Trace(samples, recorded, (effort.warmup, effort.warmup + effort.steps))
    bad = sum(each.retransmitted for each in tcp), sum(each.timeouts for each in tcp)
    return _report(system, case, effort, round, load, measured, trace, bad), trace


def _report(
    system: System,
    case: Case,
    effort: Effort,
    round_: int,
    load: float,
    measured: Measurement,
    trace: Trace,
    bad: tuple[int, int],
) -> Run:
    bytes_per_second = case.mbit * 1e6 / 8
    least = least_link_bytes(case.placement, case.payload_bytes)
    seconds, gigabytes = measured.seconds / effort.steps, measured.payload_bytes / _GB
    # All ranks wait for each other before and after the timed steps, so the links are idle then.
    carried = trace.samples.carried_around(trace.begin, trace.end)
    links = [[round(count / effort.steps / least, 4) for count in pair] for pair in carried]
    of_workers = [count for pair in carried[: case.placement.hosts] for count in pair]
    first, last = trace.timed
    servers = measured.server_cpu_seconds if system.rival is None else None
    return Run(
        variant=system.name,
        version="" if system.rival is None else system.rival.version,
        **dataclasses.asdict(case.placement),
        workload=case.workload,
        mbit=case.mbit,
        congestion_control=case.congestion_control,
        plane=measured.plane,
        settings=settings(os.environ) if system.rival is None else {},
        round=round_,
        load=round(load, 2),
        seconds=round(seconds, 4),
        step_seconds=[round(end - begin, 4) for begin, end in trace.steps[0][first:last]],
        bound=round(least / bytes_per_second, 4),
        of_bound=round(least / bytes_per_second / seconds, 4),
        link_bytes=max(map(max, links)),
        links=links,
        fullness=round(sum(of_workers) / len(of_workers) / bytes_per_second / (trace.end - trace.begin), 4),
        dropped=trace.samples.dropped_around(trace.begin, trace.end),
        retransmitted=bad[0],
        timeouts=bad[1],
        urgent_ms=round(measured.latency_ms[0], 2) if measured.latency_ms else None,
        urgent_step_ms=round(measured.latency_step_ms, 2) if measured.latency_ms else None,
        worker_cpu_s_per_gb=round(measured.cpu_seconds / gigabytes, 3),
        aggregator_cpu_s_per_gb=None if servers is None else round(servers / gigabytes, 3),
    )


@contextlib.contextmanager
def _sampled(network: Network, file: pathlib.Path) -> Iterator[None]:
    """Writes what all links carry into a file."""
    command = [sys.executable, "-I", sampler.__file__, str(_SAMPLE_SECONDS), *network.namespaces]
    # In a session of its own: a terminal's Ctrl-C is for this process, which then ends it.
    with file.open("w") as output, subprocess.Popen(command, stdout=output, start_new_session=True) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGKILL)


#: The figures of a Run that are summed up, in the order in which people read them: name, title, decimals.
FIGURES: Final = (
    ("of_bound", "of_bound", 2),
    ("link_bytes", "link_bytes", 3),
    ("seconds", "s per step", 2),
    ("fullness", "links used", 2),
    ("urgent_share", "urgent / step", 3),
    ("dropped", "packets dropped", 0),
    ("timeouts", "TCP timeouts", 0),
    ("worker_cpu_s_per_gb", "CPU s per GB, worker", 2),
    ("aggregator_cpu_s_per_gb", "CPU s per GB, aggregators", 2),
)


@dataclasses.dataclass(frozen=True)
class Summary:
    """All runs of one system in one case.

    Attributes:
        case: What was done.
        variant: By which system.
        runs: In order.
    """

    case: Case
    variant: str
    runs: Sequence[Run]

    def spread(self, figure: str) -> Spread | None:
        """Of a field or property of Run. None if it was not measured."""
        values = [value for run in self.runs if (value := getattr(run, figure)) is not None]
        return Spread.of(values) if values else None

    def as_json(self) -> dict[str, Any]:
        """What a line of JSON says of it."""
        spreads = {name: spread for name, _, _ in FIGURES if (spread := self.spread(name)) is not None}
        return {
            "variant": self.variant,
            **dataclasses.asdict(self.case.placement),
            "workload": self.case.workload,
            "mbit": self.case.mbit,
            "congestion_control": self.case.congestion_control,
            "rounds": len(self.runs),
            **{name: dataclasses.asdict(spread) for name, spread in spreads.items()},
        }


def summarise(runs: Iterable[Run]) -> list[Summary]:
    """Runs by case and system, in the order in which these came first."""
    found: dict[tuple[Case, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.case, run.variant), []).append(run)
    return [Summary(case, variant, same) for (case, variant), same in found.items()]
