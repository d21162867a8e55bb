"""Runs one system in one placement, and summarises several runs."""

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

#: Interval between two readings of the links' counters.
_SAMPLE_SECONDS: Final = 0.02

#: A run may take _START_SECONDS for its start and its end, and _PATIENCE times the links' least time for its steps.
_START_SECONDS: Final = 120.0
_PATIENCE: Final = 15.0

_GB: Final = 1e9


@dataclasses.dataclass(frozen=True)
class Case:
    """What is summed, and on which hosts.

    Attributes:
        placement: Where the workers and aggregators run.
        workload: The name of the workload.
        mbit: The rate of each link in each direction, in 10^6 bits per second.
        congestion_control: TCP's congestion control.
    """

    placement: Placement
    workload: str
    mbit: float
    congestion_control: str

    @property
    def title(self) -> str:
        """The case in words."""
        return f"{self.placement.title}; {self.workload}, {self.mbit:g} Mbit/s, {self.congestion_control}"

    @property
    def payload_bytes(self) -> int:
        """Bytes that a worker push-pulls in a step."""
        return sum(sizes(self.workload)) * ElementType.FLOAT32.itemsize


@dataclasses.dataclass(frozen=True)
class Run:
    """The results of one run. They are the fields of a line of JSON.

    Attributes:
        variant: The system: 'psum auto', 'gloo'.
        version: The rival's version; empty for psum.
        hosts, local, beside, dedicated: The placement; see Placement.
        workload, mbit, congestion_control: The case; see Case.
        plane: The planes that psum used; empty for rivals.
        settings: psum's settings in the environment, by their variables; empty for rivals.
        round: The number of the round of alternating runs, from 0.
        load: The machine's load average before the run.
        seconds: The mean duration of rank 0's timed steps.
        step_seconds: The duration of each of these steps.
        bound: The shortest step time that the links allow for the placement, in seconds.
        of_bound: bound / seconds. Headers take 4 to 5 %, so the best possible value is 0.95.
        link_bytes: What the busiest link carried in one direction in a timed step, divided by the least that it has to
            carry. It does not depend on the speed or the load of the machine.
        links: The same for each host's link, out of the host and into it.
        fullness: The average part of their rate that the links of the workers' hosts carried in the timed steps.
        dropped: Packets that full queues of links dropped in the timed steps.
        retransmitted: TCP segments that all hosts sent again, over the whole run.
        timeouts: Retransmission timeouts of all hosts, over the whole run.
        urgent_ms: Milliseconds from the push-pull of the most urgent tensor, issued last behind a whole step, until its
            sum can be read. None if that was not measured.
        urgent_step_ms: Milliseconds that this step took. None if that was not measured.
        worker_cpu_s_per_gb: Processor seconds of rank 0's process for each GB of its payload.
        aggregator_cpu_s_per_gb: The same for all of psum's aggregators together. None for rivals.
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
        """The case that was run."""
        placement = Placement(self.hosts, self.local, self.beside, self.dedicated)
        return Case(placement, self.workload, self.mbit, self.congestion_control)

    @property
    def urgent_share(self) -> float | None:
        """The part of a step's time until the sum of the most urgent tensor can be read. None if not measured."""
        return self.urgent_ms / self.urgent_step_ms if self.urgent_ms is not None and self.urgent_step_ms else None


@dataclasses.dataclass(frozen=True)
class Trace:
    """The course of a run over time.

    Attributes:
        samples: What the links carried.
        steps: When the steps of each rank began and ended, including the steps for warming up and for latencies.
        timed: The numbers of the first timed step and of the step after the last timed one.
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
        """When the last rank ended the timed steps."""
        return max(steps[self.timed[1] - 1][1] for steps in self.steps)


def once(system: System, case: Case, effort: Effort, round: int = 0) -> tuple[Run, Trace]:
    """Makes hosts, runs a system on them, and removes them.

    Raises:
        FailedError: The system failed, or a signal ended it.
        LabError: The hosts cannot be made.
    """
    load = os.getloadavg()[0]
    placement = case.placement
    with (
        tempfile.TemporaryDirectory(prefix="psum-netlab-") as directory,
        Network(placement.all_hosts, case.mbit, case.congestion_control) as network,
    ):
        path = pathlib.Path(directory)
        plan = Plan(
            system=system.through if system.rival is None else system.rival.name,
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
    """Records in a file what all links carry while the block runs."""
    command = [sys.executable, "-I", sampler.__file__, str(_SAMPLE_SECONDS), *network.namespaces]
    # The sampler has its own session, so that a terminal's Ctrl-C reaches only this process, which then kills it.
    with file.open("w") as output, subprocess.Popen(command, stdout=output, start_new_session=True) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGKILL)


#: The figures of a Run that tables show, in reading order: name, title, decimals.
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
        case: The case.
        variant: The system.
        runs: Its runs, in order.
    """

    case: Case
    variant: str
    runs: Sequence[Run]

    def spread(self, figure: str) -> Spread | None:
        """The spread of a field or property of Run over all runs. None if it was not measured."""
        values = [value for run in self.runs if (value := getattr(run, figure)) is not None]
        return Spread.of(values) if values else None

    def as_json(self) -> dict[str, Any]:
        """The fields of a line of JSON."""
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
    """Groups runs by case and system, in the order in which each pair first appears."""
    found: dict[tuple[Case, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.case, run.variant), []).append(run)
    return [Summary(case, variant, same) for (case, variant), same in found.items()]
