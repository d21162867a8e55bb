"""Summaries of many benchmark runs, and how they are shown."""

import dataclasses
import io
import itertools
import re
import signal
from typing import Any

import pytest
from rich.console import Console

from psum.cli.bench import turns
from psum.cli.bench.bare_plan import Plan
from psum.cli.bench.cases import Case, Effort, System, cases, psum_systems
from psum.cli.bench.limits import Limits
from psum.cli.bench.rivals import Rival
from psum.cli.bench.runs import FailedError, Run, Spread, beside_limit, summarise
from psum.cli.bench.tables import lines, table, title

RUN = Run(
    system="psum",
    variant="psum auto",
    version="",
    workload="big",
    workers=2,
    servers=1,
    hosts=1,
    plane="shm",
    dtype="float32",
    through="numpy",
    round=0,
    load=1.0,
    gb_per_s_per_worker=1.0,
    ms_per_step=60.0,
    worker_cpu_s_per_gb=0.5,
    aggregator_cpu_s_per_gb=0.7,
    worker_mib=10.0,
    aggregator_mib=20.0,
    urgent_ms=None,
    urgent_step_ms=None,
    latency_ms=[],
    idle_share=None,
)

GLOO = dataclasses.replace(
    RUN, system="gloo", variant="gloo", plane="", aggregator_cpu_s_per_gb=None, aggregator_mib=None, load=3.0
)


def runs(like: Run, *speeds: float, **others: Any) -> list[Run]:
    """One for each speed."""
    return [dataclasses.replace(like, gb_per_s_per_worker=speed, **others) for speed in speeds]


@pytest.mark.parametrize(
    ("values", "shown"),
    [([0.5], "0.50"), ([3, 1, 2], "2.00 (1.00-3.00)"), ([1, 2, 3, 10], "2.50 (1.00-10.00)"), ([1.0, 1.001], "1.00")],
)
def test_spread(values: list[float], shown: str) -> None:
    """The text has the median, and the lowest and highest value if they differ visibly."""
    assert Spread.of(values).show(2) == shown


def test_runs_are_summed_up_by_case_and_system() -> None:
    """Summaries are in order of first appearance, whatever the order of runs."""
    four = runs(RUN, 0.5, workers=4)
    first, second = runs(RUN, 1.0, 2.0)
    found = summarise([first, GLOO, *four, second])
    assert [(summary.case.workers, summary.variant, len(summary.runs)) for summary in found] == [
        (2, "psum auto", 2),
        (2, "gloo", 1),
        (4, "psum auto", 1),
    ]
    assert found[0].spread("gb_per_s_per_worker") == Spread(1.5, 1.0, 2.0)


def test_what_was_not_measured_is_left_out() -> None:
    """A missing figure is not counted as 0, neither in a summary nor in what is printed."""
    summary = summarise([GLOO])[0]
    assert summary.spread("aggregator_mib") is None
    assert "aggregator_mib" not in summary.as_json()
    assert not [line for line in lines([summary]) if "aggregators:" in line]


def test_latency_is_the_median_of_each_tensor() -> None:
    """The median is taken for each tensor over all runs, not within each run."""
    both = [dataclasses.replace(RUN, latency_ms=latency) for latency in ([1.0, 5.0], [3.0, 3.0], [2.0, 9.0])]
    assert summarise(both)[0].latency_ms() == [2.0, 5.0]


def test_a_summary_as_json() -> None:
    """The object has the case, the number of rounds, the load, and each figure with its spread."""
    line = summarise(runs(RUN, 1.0, 3.0, 2.0))[0].as_json()
    assert (line["variant"], line["plane"], line["rounds"]) == ("psum auto", "shm", 3)
    assert line["gb_per_s_per_worker"] == {"median": 2.0, "lowest": 1.0, "highest": 3.0}
    assert line["load"] == {"median": 1.0, "lowest": 1.0, "highest": 1.0}


def test_a_table_has_a_column_for_each_system() -> None:
    """A column's title has the plane that psum chose. Figures that a system lacks are empty cells."""
    output = io.StringIO()
    compared = summarise([*runs(RUN, 1.0, 3.0), GLOO])
    Console(file=output, width=80).print(table(compared))
    heads, *rows = (
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        for line in output.getvalue().splitlines()
        if line[0] in "│┃"
    )
    assert heads == ["", "psum auto (shm)", "gloo"]
    assert rows[:2] == [["GB/s per worker", "2.000", "1.000"], ["", "(1.000-3.000)", ""]]
    assert ["MiB, aggregators", "20", ""] in rows


def test_the_title_says_how_often_and_how_busy_the_machine_was() -> None:
    """Readers need the number of rounds, the processor, what processes were given and the load to judge the figures."""
    told = dataclasses.replace(RUN, processor="2 cores of a processor", environment="OMP_NUM_THREADS=4")
    assert title(summarise([*runs(told, 1.0, 3.0), GLOO])) == (
        "big, 2 workers, 1 aggregator, median (lowest-highest) of 2 rounds; 2 cores of a processor;"
        " OMP_NUM_THREADS=4; load average 1.0 (1.0-3.0)"
    )


def test_every_combination_once() -> None:
    """Cases and systems have no duplicates, and every system has a unique name."""
    assert len(cases(["big", "small", "big"], [1, 2], [1])) == 4
    systems = psum_systems(["inline", "shm", "inline"], ["numpy", "mxnet"], ["float32", "float16"])
    assert len({system.name for system in systems}) == len(systems) == 8
    assert systems[3].name == "psum inline through mxnet in float16"
    assert System(rival=Rival("gloo", "PyTorch 2", "python")).name == "gloo"
    assert Case("big", 1, 2, 2).title == "big, 1 worker, 2 aggregators, as on 2 hosts"


def test_a_limit_is_compared_with_all_processes() -> None:
    """Each of two workers counts as much as the one that was measured. Without a limit there is nothing to compare."""
    run = dataclasses.replace(RUN, workers=2, worker_cpu_s_per_gb=0.4, aggregator_cpu_s_per_gb=0.2)
    beside = beside_limit(run, 0.75)
    assert (beside.limit_cpu_s_per_gb, beside.of_limit) == (0.75, 0.75)
    without = dataclasses.replace(run, aggregator_cpu_s_per_gb=None)
    assert beside_limit(without, 0.4).of_limit == 0.5
    assert beside_limit(run, None) is run
    assert any("of limit: 0.75" in line for line in lines(summarise([beside])))


class Machine:
    """A fake of `once`, which runs a system on a case.

    Attributes:
        order: The runs: round, workers, plane.
        statuses: The exit statuses of runs that fail, by workers and plane.
    """

    def __init__(self) -> None:
        self.order: list[tuple[int, int, str]] = []
        self.statuses: dict[tuple[int, str], int] = {}

    def once(self, system: System, case: Case, effort: Effort, number: int) -> Run:
        self.order.append((number, case.workers, system.plane))
        status = self.statuses.get((case.workers, system.plane))
        if status is not None:
            raise FailedError(status)
        return dataclasses.replace(RUN, variant=system.name, workers=case.workers, round=number)

    def run(self, failed: list[int] | None = None, limits: Limits | None = None) -> list[Run]:
        """Run two systems on two cases in two rounds."""
        systems = psum_systems(["inline", "shm"], ["numpy"], ["float32"])
        pairs = itertools.product(cases(["big"], [1, 2], [1]), systems)
        return list(turns.take_turns(pairs, Effort(), 2, False, failed, limits))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Replace `once` by a fake."""
    machine = Machine()
    monkeypatch.setattr(turns, "once", machine.once)
    return machine


def test_each_limit_is_measured_once(machine: Machine) -> None:
    """Later rounds, and systems that use the same plane, are compared with the same figure."""
    measured: list[tuple[str, int]] = []

    def measure(plan: Plan) -> float:
        measured.append((plan.plane, plan.workers))
        return 0.5 * plan.workers

    notes: list[str] = []
    found = machine.run(limits=Limits(notes.append, measure))
    assert measured == [("shm", 1), ("shm", 2)]
    assert [run.limit_cpu_s_per_gb for run in found] == [0.5, 0.5, 1.0, 1.0] * 2
    assert notes == [
        "shm without psum, big, 1 worker: 0.50 CPU s per GB in all",
        "shm without psum, big, 2 workers: 1.00 CPU s per GB in all",
    ]


def test_systems_run_in_turns(machine: Machine) -> None:
    """Every round runs each system on each case, so that load on the machine affects all systems."""
    found = machine.run()
    once = [(1, "inline"), (1, "shm"), (2, "inline"), (2, "shm")]
    assert machine.order == [(number, *what) for number in (0, 1) for what in once]
    assert [len(summary.runs) for summary in summarise(found)] == [2, 2, 2, 2]


def test_a_run_that_fails_ends_a_comparison(machine: Machine) -> None:
    """The error has the exit status of the run."""
    machine.statuses[1, "shm"] = 7
    with pytest.raises(FailedError) as caught:
        machine.run()
    assert caught.value.status == 7
    assert len(machine.order) == 2


def test_a_run_that_fails_does_not_end_a_suite(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Later rounds leave the system out of that case, and the status is kept."""
    machine.statuses[1, "shm"] = 7
    failed: list[int] = []
    assert len(machine.run(failed)) == 6
    assert failed == [7]
    assert machine.order.count((1, 1, "shm")) == 0
    assert "psum shm failed on big, 1 worker, 1 aggregator; later rounds leave it out" in capsys.readouterr().err


def test_who_ends_a_suite_ends_all_of_it(machine: Machine) -> None:
    """Ctrl-C ends the suite: it is not the failure of one run."""
    machine.statuses[1, "shm"] = 128 + signal.SIGINT
    with pytest.raises(FailedError):
        machine.run([])
    assert len(machine.order) == 2
