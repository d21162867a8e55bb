"""Summaries of several runs, and whether they reach their targets."""

import dataclasses
import os
import pathlib

import pytest

from psum.cli.bench.cases import System
from psum.cli.bench.measure import Plan
from psum.cli.bench.page import APPENDIX
from psum.cli.bench.rivals import MissingError, Rival
from tests.bench.netlab import page, torch_python
from tests.bench.netlab.placement import Placement
from tests.bench.netlab.runs import Run, summarise
from tests.bench.netlab.suite import EXPERIMENTS, Target
from tests.bench.netlab.systems import Job, can_run, inherited, settings
from tests.bench.netlab.tables import markdown

FOUR = Placement(4)

RUN = Run(
    variant="psum auto",
    version="",
    hosts=4,
    local=1,
    beside=1,
    dedicated=0,
    workload="resnet50",
    mbit=200.0,
    congestion_control="cubic",
    plane="direct+shm",
    settings={},
    round=0,
    load=1.0,
    seconds=6.82,
    step_seconds=[6.8, 6.84],
    bound=6.138,
    of_bound=0.9,
    link_bytes=1.05,
    links=[[1.05, 1.05]] * 4,
    fullness=0.95,
    dropped=0,
    retransmitted=0,
    timeouts=0,
    urgent_ms=100.0,
    urgent_step_ms=1000.0,
    worker_cpu_s_per_gb=1.0,
    aggregator_cpu_s_per_gb=2.0,
)

RUNS = [
    *(dataclasses.replace(RUN, round=number, of_bound=of_bound) for number, of_bound in enumerate((0.9, 0.8, 0.91))),
    dataclasses.replace(RUN, variant="gloo", of_bound=0.85, urgent_ms=None, urgent_step_ms=None),
]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Target(FOUR, "psum auto", least=0.9), (0.9, True)),
        (Target(FOUR, "psum auto", least=0.92), (0.9, False)),
        (Target(FOUR, "psum auto", "link_bytes", most=1.07), (1.05, True)),
        (Target(FOUR, "psum auto", "link_bytes", most=1.04), (1.05, False)),
        (Target(FOUR, "psum auto", "urgent_share", most=0.15), (0.1, True)),
        (Target(FOUR, "psum auto", against="gloo"), (0.9, True)),
        (Target(FOUR, "gloo", against="psum auto"), (0.85, False)),
        (Target(FOUR, "psum auto", against="gloo", times=1.05), (0.9, True)),
        (Target(FOUR, "psum auto", against="gloo", times=1.06), (0.9, False)),
        (Target(FOUR, "psum auto", against="dist_sync"), None),
        (Target(FOUR, "gloo", "urgent_share", most=0.15), None),
        (Target(Placement(2), "psum auto", least=0.9), None),
    ],
)
def test_targets_are_compared_with_medians(target: Target, expected: tuple[float, bool] | None) -> None:
    """The verdict has the median and whether it reaches the target. It is None if a figure was not measured."""
    assert target.verdict(summarise(RUNS)) == expected


def test_a_table_has_medians_with_their_spread() -> None:
    """Each system has a row. Its cell is empty for a figure that it does not have."""
    titles, _, ours, theirs = markdown(summarise(RUNS)).splitlines()
    assert titles.startswith("| hosts | workers | dedicated | Mbit/s | workload | system | of_bound | link_bytes |")
    assert ours.startswith(
        "| 4 | 1 | 0 | 200 | resnet50 | psum auto (direct+shm) | 0.90 (0.80-0.91) | 1.050 | 6.82 | 0.95 | 0.100 |"
    )
    assert theirs.startswith("| 4 | 1 | 0 | 200 | resnet50 | gloo | 0.85 | 1.050 | 6.82 | 0.95 |  |")


def test_the_suite_has_every_experiment_that_its_targets_name() -> None:
    """Every placement and every system of a target is measured."""
    for name, experiment in EXPERIMENTS.items():
        rivals = [Rival(rival, "1", "python") for rival in experiment.rivals]
        measured = {(case.placement, system.name) for case, system in experiment.pairs(rivals, "cubic", "python")}
        for target in experiment.targets:
            assert (target.placement, target.variant) in measured, name
            assert not target.against or (target.placement, target.against) in measured, name


def test_results_are_written_and_read_again(tmp_path: pathlib.Path) -> None:
    """The page shows which targets were reached and missed. The file gives back the same runs. A second time, the
    appendix is replaced, and what is before it on the page stays."""
    (tmp_path / "benchmarks.md").write_text("# Benchmarks\n\n" + page.appendix({}))
    page.write(tmp_path, {"beside": page.Result("2026-11-26", "a machine", "scripts/netlab --suite beside", RUNS)})
    assert page.load(tmp_path / "network.json")["beside"].runs == RUNS
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.startswith("# Benchmarks\n\n<!--")
    assert text.count("## Networks of hosts") == 1
    assert "| 4 hosts of 1 worker and 1 aggregator | psum auto | of_bound | ≥ 0.92 | 0.900 | **missed** |" in text
    assert "| 4 hosts of 1 worker and 1 aggregator | psum auto | of_bound | ≥ gloo | 0.900 | reached |" in text
    assert "| 2 hosts of 1 worker and 1 aggregator | psum auto | of_bound | ≥ 0.92 | not measured |  |" in text
    assert page.load(tmp_path / "nothing.json") == {}


def test_the_page_of_this_project_shows_its_results() -> None:
    """docs/benchmarks.md ends with the section that docs/network.json leads to; nobody has edited it."""
    docs = pathlib.Path(__file__).parents[2] / "docs"
    _, marker, section = (docs / "benchmarks.md").read_text().partition(APPENDIX)
    assert marker + section == page.appendix(page.load(docs / "network.json"))


def test_processes_know_each_other() -> None:
    """Aggregators use the shared memory of their host. Processes inherit psum's settings, but no rank and no role."""
    placement = Placement(2, local=2, dedicated=1)
    job = Job(System(plane="auto"), placement, ["a", "b", "c"], ["/a", "/b", "/c"], pathlib.Path("/tmp"))
    assert [(server.host, server.environ["PSUM_SHM_DIRECTORY"]) for server in job.servers()] == [
        (0, "/a"),
        (1, "/b"),
        (2, "/c"),
    ]
    environ = {"DMLC_ROLE": "server", "RANK": "7", "PSUM_TLS_CA": "file", "PSUM_CREDIT_BYTES": "4MiB", "HOME": "/root"}
    kept = inherited(environ)
    kept.pop("OMP_NUM_THREADS")
    assert kept == {"PSUM_CREDIT_BYTES": "4MiB", "HOME": "/root"}
    assert settings(kept) == {"PSUM_CREDIT_BYTES": "4MiB"}
    assert [placement.host_of(rank) for rank in range(placement.workers)] == [0, 0, 1, 1]
    gloo, dist_sync = (System(rival=Rival(name, "1", "python")) for name in ("gloo", "dist_sync"))
    without = Placement(2, beside=0)
    assert [can_run(system, without) for system in (System(plane="auto"), gloo, dist_sync)] == [False, True, False]
    assert can_run(dist_sync, placement)


def test_workers_with_pytorch_start_their_aggregators() -> None:
    """They get what torchrun would give them and no aggregators, and find psum in this repository."""
    system = System(plane="auto", through="torch", python="/torch/python")
    job = Job(system, Placement(2, local=2), ["a", "b"], ["/a", "/b"], pathlib.Path("/tmp"))
    assert job.servers() == []
    plan = Plan("torch", [1], "float32", 4, 0, 1, 0, 0.0, "", False)
    [*_, last] = job.workers(plan)
    assert (last.title, last.host, last.command[:2]) == ("psum auto through torch rank 3", 1, ["/torch/python", "-P"])
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "PSUM_SHM_DIRECTORY")
    assert [last.environ[name] for name in names] == ["3", "4", "1", "2", "1", "a", "/b"]
    assert not any(name in last.environ for name in ("PSUM_AGGREGATORS", "PSUM_RANK"))
    paths = [pathlib.Path(path, "psum") for path in last.environ["PYTHONPATH"].split(os.pathsep)]
    assert len(paths) == 3
    assert all(path.is_dir() for path in paths)
    assert [
        can_run(system, placement) for placement in (Placement(2), Placement(2, beside=0), Placement(2, 2, 1, 1))
    ] == [
        True,
        False,
        False,
    ]


def test_an_interpreter_without_pytorch_is_named(tmp_path: pathlib.Path) -> None:
    """The message says what it cannot import, and which option names another interpreter."""
    (tmp_path / "python").write_text("#!/bin/sh\necho 'ModuleNotFoundError: No module named torch' >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(MissingError, match=r"psum\.torch \(ModuleNotFoundError: .* torch\)\. .* --torch-python"):
        torch_python.find(str(tmp_path / "python"))
    with pytest.raises(MissingError, match="cannot run"):
        torch_python.find(str(tmp_path / "nothing"))


def test_a_multiple_of_a_rivals_figure_is_shown() -> None:
    """The page shows how many times the rival's figure a system has reached, and what it must reach."""
    placement = Placement(2, 2)
    ours = dataclasses.replace(RUN, hosts=2, local=2, variant="psum auto through torch", of_bound=0.9)
    result = page.Result("2026-11-26", "a machine", "", [ours, dataclasses.replace(ours, variant="gloo", of_bound=0.6)])
    row = (
        f"| {placement.title} | psum auto through torch | of_bound | ≥ 1.8 × gloo | 0.900 (1.50 × gloo) | **missed** |"
    )
    assert row in page.render({"torch": result})
