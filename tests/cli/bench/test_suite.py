"""The targets of the benchmark suite, and the page that it writes."""

import dataclasses
import os
import pathlib

import pytest
from click.testing import CliRunner

from psum.cli.bench import command
from psum.cli.bench import page as bench_page
from psum.cli.bench.cases import Case
from psum.cli.bench.page import Result
from psum.cli.bench.rivals import NAMES, Rival
from psum.cli.bench.runs import Run, summarise
from psum.cli.bench.suite import EXPERIMENTS, Claim
from psum.cli.bench.workloads import sizes
from psum.wire import ElementType

CASE = Case("big", 2, 1)


def run(variant: str, speed: float, **others: object) -> Run:
    """A run of a system with a speed, on CASE unless it says otherwise."""
    values = dict.fromkeys((field.name for field in dataclasses.fields(Run)), None)
    about = dict(system=variant.split()[0], version="", workload="big", workers=2, servers=1, hosts=1, plane="")
    rest = dict(dtype="float32", through="", round=0, load=0.5, ms_per_step=1.0, latency_ms=[])
    speeds = {"variant": variant, "gb_per_s_per_worker": speed}
    return Run(**{**values, **about, **rest, **speeds, **others})  # type: ignore[arg-type]


@pytest.mark.parametrize(("ours", "reached", "holds"), [(3.0, 1.5, True), (2.8, 1.4, False)])
def test_a_ratio_of_speeds(ours: float, reached: float, holds: bool) -> None:
    """The ratio is of medians, and must be at least the target."""
    claim = Claim(CASE, "psum shm", "gloo", 1.5)
    runs = [*(run("psum shm", speed, round=n) for n, speed in enumerate((ours, 0.0, 9.0))), run("gloo", 2.0)]
    assert claim.reached(summarise(runs)) == pytest.approx(reached)
    assert claim.holds(reached) is holds


def test_each_round_has_a_ratio_of_its_own() -> None:
    """A ratio uses runs of one round, in any order. A round without one of the systems has none."""
    ours = [run("psum shm", speed, round=number) for number, speed in enumerate((2.0, 9.0, 6.0))]
    theirs = [run("gloo", 2.0, round=2), run("gloo", 4.0, round=0)]
    assert Claim(CASE, "psum shm", "gloo", 1.5).by_round(summarise([*ours, *theirs])) == [0.5, 3.0]


def test_a_rival_that_was_not_there_leaves_a_claim_open() -> None:
    """The target is neither reached nor missed."""
    assert Claim(CASE, "psum shm", "gloo", 1.5).reached(summarise([run("psum shm", 1.0)])) is None


def test_a_figure_that_is_to_be_small() -> None:
    """Other figures than speeds must be at most the target, alone or divided by another figure of the same system."""
    runs = summarise([run("psum shm", 1.0, worker_cpu_s_per_gb=0.4, urgent_ms=20.0, urgent_step_ms=100.0)])
    cpu = Claim(CASE, "psum shm", "", 0.5, "worker_cpu_s_per_gb")
    assert cpu.reached(runs) == 0.4
    assert cpu.holds(0.4)
    assert not cpu.holds(0.6)
    assert Claim(CASE, "psum shm", "", 0.15, "urgent_ms", relative_to="urgent_step_ms").reached(runs) == 0.2


def test_what_all_workers_have_together() -> None:
    """Eight workers with an eighth of the speed each have the same total."""
    alone, eight = Case("big", 1), Case("big", 8)
    runs = summarise([run("psum shm", 2.0, workers=1), run("psum shm", 0.25, workers=8)])
    assert Claim(eight, "psum shm", "psum shm", 0.8, against_case=alone, total=True).reached(runs) == 1


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_claim_is_on_what_the_experiment_measures(name: str) -> None:
    """Each target names a case and systems of its experiment."""
    experiment = EXPERIMENTS[name]
    rivals = [Rival(rival, "", "") for rival in NAMES]
    done = {(case, system.name) for case, system in experiment.pairs(rivals)}
    for claim in experiment.claims:
        assert (claim.case, claim.variant) in done
        assert (claim.against_case or claim.case, claim.against or claim.variant) in done
        assert experiment.effort.latency_steps or not claim.figure.startswith("urgent")
        assert experiment.effort.idle_seconds or claim.figure != "idle_share"


def test_rivals_that_are_missing_take_no_part() -> None:
    """psum is measured without them."""
    experiment = EXPERIMENTS["hosts"]
    assert [system.name for _, system in experiment.pairs([])] == ["psum auto"]
    assert [system.name for _, system in experiment.pairs([Rival("dist_sync", "", ""), Rival("gloo", "", "")])] == [
        "psum auto",
        "gloo",
    ]


def test_as_many_bytes_in_float16_as_in_float32() -> None:
    """Otherwise the ratio of their speeds would compare different work."""
    bytes_by_type = {
        system.dtype: sum(sizes(case.workload)) * ElementType[system.dtype.upper()].itemsize
        for case, system in EXPERIMENTS["float16"].pairs([])
    }
    assert bytes_by_type["float16"] == bytes_by_type["float32"] == 64 << 20


def test_the_page_says_what_was_reached_and_what_was_missed() -> None:
    """The page also has the date, the machine, the command, the rivals' versions and the plots."""
    runs = [
        run("psum inline", 0.5, worker_cpu_s_per_gb=1.5),
        run("psum direct", 0.5, worker_cpu_s_per_gb=1.5),
        run("dist_sync", 0.5, version="MXNet 1.9.1"),
    ]
    page = bench_page.render({"big": Result("2026-11-23", "a machine", "psum bench", runs)}, {"big": ["plots/a.svg"]})
    rows = [line for line in page.splitlines() if line.startswith("| big | big, 2 workers, 1 aggregator |")]
    assert rows[0].endswith("| psum inline | GB/s per worker | dist_sync | ≥ 0.75 | 1.00 | reached | a machine |")
    assert rows[1].endswith("| psum direct | GB/s per worker | dist_sync | ≥ 1.5 | 1.00 | **missed** | a machine |")
    assert rows[2].endswith("| psum shm | GB/s per worker | gloo | ≥ 1.4 | not measured |  | a machine |")
    assert "![a](plots/a.svg)" in page
    about = page.splitlines()[-1]
    assert about.startswith("2026-11-23; a machine; dist_sync is of MXNet 1.9.1; 1 round; load average")
    assert about.endswith("`psum bench`")


def test_memory_stands_beside_its_bound() -> None:
    """For 64 MiB on two aggregators, a worker's bound is the sums and the credit; the aggregators' bound is twice the
    sums and all credit."""
    runs = [run("psum shm", 1.0, servers=2, worker_mib=70.0, aggregator_mib=150.0), run("gloo", 1.0, servers=2)]
    page = bench_page.render({"big": Result("today", "here", "psum", runs)}, {})
    memory = page[page.index("## Memory") : page.index("## big")]
    assert "| big | big, 2 workers, 2 aggregators | psum shm | 70 | 80 | 150 | 160 | here |" in memory
    assert "gloo" not in memory


def test_results_are_kept_from_one_suite_to_the_next(tmp_path: pathlib.Path) -> None:
    """One experiment can run again without the others."""
    file = tmp_path / "docs" / "benchmarks.json"
    assert bench_page.load(file) == {}
    here, there = (
        Result("today", machine, "psum", [run("gloo", 1.0), run("gloo", 2.0)])
        for machine in ("2 cores of this, 24 GiB", "2 cores of that, 24 GiB")
    )
    results = {"big, 2 cores of this": here, "big, 2 cores of that": there, "idle, 2 cores of this": here}
    assert bench_page.key("big", there) == "big, 2 cores of that"
    bench_page.save(file, results)
    assert bench_page.load(file) == results


def test_a_part_of_a_machine_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that taskset keeps on two of sixteen cores stand with those of a machine of two cores, but the page says
    that they had the caches and the memory of a larger one."""
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    part = Result("today", bench_page.machine(), "psum", [])
    assert part.processor.startswith("2 cores of ")
    assert part.machine.startswith(f"{part.processor}, of 16 in the machine, ")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    assert "in the machine" not in bench_page.machine()


def test_results_of_two_processors_stand_side_by_side(tmp_path: pathlib.Path) -> None:
    """Every table says which processor its figures are from, and each processor has its own plots."""
    pytest.importorskip("matplotlib")
    results = {}
    for model, speed in (("AMD EPYC", 2.0), ("Intel(R) Xeon(R) Processor", 1.0)):
        result = Result(
            "today", f"2 cores of {model}, 24 GiB", "psum", [run("psum direct", speed), run("dist_sync", 1.0)]
        )
        results[bench_page.key("big", result)] = result
    # As the file was before there were several processors.
    bench_page.save(tmp_path / "benchmarks.json", {"big": next(iter(results.values()))})
    assert list(bench_page.load(tmp_path / "benchmarks.json")) == ["big, 2 cores of AMD EPYC"]
    bench_page.write(tmp_path, results)
    assert bench_page.load(tmp_path / "benchmarks.json") == results
    page = (tmp_path / "benchmarks.md").read_text()
    assert "## big, 2 cores of AMD EPYC" in page
    assert "## big, 2 cores of Intel(R) Xeon(R) Processor" in page
    assert "| dist_sync | ≥ 1.5 | 2.00 | reached | 2 cores of AMD EPYC |" in page
    assert "| dist_sync | ≥ 1.5 | 1.00 | **missed** | 2 cores of Intel(R) Xeon(R) Processor |" in page
    plots = [f"benchmarks/big-2-cores-of-{model}-throughput.svg" for model in ("amd-epyc", "intel-xeon-processor")]
    assert all((tmp_path / plot).exists() and f"]({plot})" in page for plot in plots)


def test_results_of_another_machine_are_merged(tmp_path: pathlib.Path) -> None:
    """The results of this machine stay, those of the same experiment and processor are replaced, and what another
    program has written on the page stays too."""
    pytest.importorskip("matplotlib")
    amd, intel = (f"2 cores of {model}, 24 GiB" for model in ("AMD EPYC", "Intel Xeon"))

    def result(machine: str, speed: float) -> Result:
        return Result("today", machine, "psum", [run("psum shm", speed)])

    docs, elsewhere = tmp_path / "docs", tmp_path / "elsewhere" / "benchmarks.json"
    here = {"big, 2 cores of AMD EPYC": result(amd, 1.0), "big, 2 cores of Intel Xeon": result(intel, 2.0)}
    there = {"big, 2 cores of Intel Xeon": result(intel, 3.0), "small, 2 cores of Intel Xeon": result(intel, 4.0)}
    bench_page.write(docs, here)
    with (docs / "benchmarks.md").open("a") as page:
        page.write(f"{bench_page.APPENDIX}\n\n## Another\n")
    bench_page.save(elsewhere, there)
    done = CliRunner().invoke(command.bench, ["--merge", str(elsewhere), "--output", str(docs)])
    assert done.exit_code == 0, done.output
    assert bench_page.load(docs / "benchmarks.json") == {**here, **there}
    text = (docs / "benchmarks.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ") and ", 2 cores" in line] == [
        "## big, 2 cores of AMD EPYC",
        "## big, 2 cores of Intel Xeon",
        "## small, 2 cores of Intel Xeon",
    ]
    assert "| psum shm | 3.000 |" in text
    assert "## Another" in text
    assert (docs / "benchmarks" / "small-2-cores-of-intel-xeon-throughput.svg").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"big": {}}', '{"big": {"date": "", "machine": "", "command": "", "runs": [{}]}}']
)
def test_what_is_no_file_of_results_is_not_merged(text: str, tmp_path: pathlib.Path) -> None:
    """The error names the file, and nothing is written."""
    pytest.importorskip("matplotlib")
    file = tmp_path / "benchmarks.json"
    file.write_text(text)
    done = CliRunner().invoke(command.bench, ["--merge", str(file), "--output", str(tmp_path / "docs")])
    assert done.exit_code == 1
    assert f"{file} has no results of `psum bench --suite`" in done.output
    assert not (tmp_path / "docs").exists()


def test_the_page_and_its_plots_are_written(tmp_path: pathlib.Path) -> None:
    """Each plot shows the measured figures, and every plot on the page exists."""
    pytest.importorskip("matplotlib")
    runs = [
        run(variant, speed / workers, workers=workers, latency_ms=[1.0, 2.0])
        for variant, speed in (("psum shm", 2.0), ("gloo", 1.0))
        for workers in (1, 2, 4)
    ]
    written = bench_page.write(tmp_path, {"workers, here": Result("today", "here", "psum", runs)})
    names = [file.relative_to(tmp_path).as_posix() for file in written]
    plots = [f"benchmarks/workers-here-{name}.svg" for name in ("throughput", "latency", "scaling-workers")]
    assert names == ["benchmarks.md", "benchmarks.json", *plots]
    page = written[0].read_text()
    assert all(f"]({plot})" in page for plot in plots)
    for plot in plots:
        drawing = (tmp_path / plot).read_text()
        assert drawing.startswith("<?xml")
        assert "psum shm" in drawing
        assert "gloo" in drawing
    assert bench_page.machine()


def test_the_appendix_of_the_page_stays(tmp_path: pathlib.Path) -> None:
    """What another program has written after the marker is there after the next suite, once."""
    pytest.importorskip("matplotlib")
    (tmp_path / "benchmarks.md").write_text(f"# Before\n{bench_page.APPENDIX}\n\n## Another\n")
    results = {"big": Result("today", "here", "psum", [run("gloo", 1.0)])}
    for _ in range(2):
        bench_page.write(tmp_path, results)
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.endswith(f"\n\n{bench_page.APPENDIX}\n\n## Another\n")
    assert text.count("## Another") == 1
    assert "# Before" not in text


def test_the_same_figures_give_the_same_plots(tmp_path: pathlib.Path) -> None:
    """Writing the page again changes it only if figures change."""
    pytest.importorskip("matplotlib")
    results = {"big": Result("today", "here", "psum", [run("gloo", 1.0)])}
    first, second = (bench_page.write(tmp_path / name, results) for name in ("first", "second"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
