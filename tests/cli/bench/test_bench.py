"""`psum bench` with real processes."""

import importlib.util
import json
import re
from typing import Any

import pytest
from click.testing import CliRunner

from psum.cli.bench import command
from psum.cli.bench.runs import processor

FIGURES = ("gb_per_s_per_worker", "ms_per_step", "worker_cpu_s_per_gb", "aggregator_cpu_s_per_gb", "aggregator_mib")

SHORT = ("--workload", "small", "--steps", "2", "--warmup", "1")


def test_one_run_is_one_line_of_json(psum: Any) -> None:
    """The line has the fields of all systems, the aggregators' CPU seconds, and the planes of two simulated hosts,
    where both share memory with one aggregator only."""
    done = psum.run("bench", "--aggregators", "2", "--hosts", "2", *SHORT, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    report = json.loads(done.stdout)
    figures = {name: report.pop(name) for name in FIGURES}
    assert report.pop("load") >= 0
    assert report.pop("worker_mib") >= 0
    assert report == {
        "system": "psum",
        "variant": "psum auto",
        "version": "",
        "workload": "small",
        "workers": 2,
        "servers": 2,
        "hosts": 2,
        "plane": "direct+shm",
        "dtype": "float32",
        "through": "numpy",
        "round": 0,
        "urgent_ms": None,
        "urgent_step_ms": None,
        "latency_ms": [],
        "idle_share": None,
        # No single pipeline has two planes.
        "limit_cpu_s_per_gb": None,
        "of_limit": None,
        "processor": processor(),
        "environment": "OMP_NUM_THREADS=1",
    }
    assert all(figure > 0 for figure in figures.values())
    # Two ways to say the same, but for rounding.
    payload = 256 * 1024 * 4
    assert figures["gb_per_s_per_worker"] == pytest.approx(payload / figures["ms_per_step"] / 1e6, rel=0.01, abs=1e-4)


def test_planes_are_systems_of_their_own(psum: Any) -> None:
    """Each run prints a line, then each system prints a line with the spread of its runs. Each plane has its limit."""
    planes = ("--plane", "inline", "--plane", "shm", "--rounds", "1")
    done = psum.run("bench", "--workers", "1", *planes, *SHORT, "--latency", "--json")
    assert done.returncode == 0, done.stderr
    *runs, inline, shm = map(json.loads, done.stdout.splitlines())
    assert [(run["variant"], run["plane"]) for run in runs] == [("psum inline", "inline"), ("psum shm", "shm")]
    for run in runs:
        assert len(run["latency_ms"]) == 256
        assert 0 < run["urgent_ms"] == run["latency_ms"][0] <= run["urgent_step_ms"]
        used = run["worker_cpu_s_per_gb"] + run["aggregator_cpu_s_per_gb"]
        assert run["of_limit"] == pytest.approx(run["limit_cpu_s_per_gb"] / used, abs=0.002)
        (limit,) = re.findall(rf"psum: {run['plane']} without psum, small, 1 worker: (\S+) CPU s", done.stderr)
        # Each of the two is rounded by itself.
        assert float(limit) == pytest.approx(run["limit_cpu_s_per_gb"], abs=0.006)
    assert shm["of_limit"]["median"] == runs[1]["of_limit"]
    assert shm["processor"] == processor()
    assert (inline["variant"], shm["variant"], shm["rounds"]) == ("psum inline", "psum shm", 1)
    assert shm["gb_per_s_per_worker"]["median"] == runs[1]["gb_per_s_per_worker"]


def test_arrays_that_are_not_copied_are_a_system_of_their_own(psum: Any) -> None:
    """Its name says so, and its sums are checked like others."""
    done = psum.run("bench", "--workers", "1", "--through", "numpy,shared", "--rounds", "1", *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    own, shared, *_ = map(json.loads, done.stdout.splitlines())
    assert (own["variant"], own["through"]) == ("psum auto", "numpy")
    assert (shared["variant"], shared["through"]) == ("psum auto through shared", "shared")


@pytest.mark.skipif(importlib.util.find_spec("mxnet") is None, reason="needs MXNet")
def test_through_mxnet_and_against_dist_sync(psum: Any) -> None:
    """One loop times both. The rival has figures of its server, and its output is not shown."""
    options = ("--workers", "1", "--through", "mxnet", "--against", "dist_sync", "--rounds", "1", "--no-limit")
    done = psum.run("bench", *options, *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    ours, rival, _, summary = map(json.loads, done.stdout.splitlines())
    assert (ours["variant"], ours["through"]) == ("psum auto through mxnet", "mxnet")
    assert (rival["variant"], rival["plane"], rival["through"]) == ("dist_sync", "", "")
    assert rival["version"].startswith("MXNet ")
    assert rival["gb_per_s_per_worker"] > 0
    assert rival["of_limit"] is None
    assert rival["aggregator_mib"] > 0
    assert summary["gb_per_s_per_worker"]["median"] == rival["gb_per_s_per_worker"]


def test_plain_lines_where_there_is_no_terminal(psum: Any) -> None:
    """Lines show another element type without warm-up steps, and a note says how to install a missing rival."""
    done = psum.run(
        *("bench", "--workers", "1", "--workload", "small", "--steps", "1", "--warmup", "0", "--idle", "0.1"),
        *("--plane", "inline", "--against", "gloo", "--gloo-python", "/bin/false", "--no-limit"),
    )
    missing = "skipping gloo: /bin/false cannot import torch with Gloo; pip install torch"
    assert done.returncode == 0
    assert done.stderr.startswith(f"psum: {missing}")
    assert done.stderr.count("\n") == 1
    title, system, *figures = done.stdout.splitlines()
    assert title.startswith(f"small, 1 worker, 1 aggregator; {processor()}; OMP_NUM_THREADS=1; load average ")
    assert system == "psum inline"
    assert [line.partition(":")[0] for line in figures] == [
        "  GB/s per worker",
        "  ms per step",
        "  CPU s per GB, worker",
        "  CPU s per GB, aggregators",
        "  MiB, worker",
        "  MiB, aggregators",
        "  CPU s per idle s, aggregators",
    ]


def test_a_worker_that_fails_fails_the_benchmark(psum: Any) -> None:
    """The error is shown, and no figures."""
    done = psum.run("bench", "--workload", "small", "--json", PSUM_CREDIT_BYTES="plenty")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "PSUM_CREDIT_BYTES='plenty'" in done.stderr
    assert "ended with status 1" in done.stderr


def test_a_misspelt_variable_is_told_before_anything_is_measured(psum: Any) -> None:
    """Users would take figures without the setting for figures with it."""
    done = psum.run("bench", *SHORT, PSUM_CREDIT_BYTE="8MiB")
    assert (done.returncode, done.stdout) == (1, "")
    assert "PSUM_CREDIT_BYTE: psum has no setting of this name; did you mean PSUM_CREDIT_BYTES?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workload", "huge"], "'huge' is not one of 'big', 'wide', 'small', 'many', 'resnet50', 'vgg16'"),
        (["--dtype", "complex64"], "'complex64' is not one of"),
        (["--workers", "0"], "0 is not in the range"),
        (["--aggregators", "0"], "0 is not in the range"),
        (["--steps", "0"], "0 is not in the range"),
        (["--workers", "2,0"], "0 is not in the range"),
        (["--workers", "2,two"], "'two' is not a valid integer"),
        (["--against", "horovod"], "'horovod' is not one of 'dist_sync', 'gloo'"),
        (["--against", "gloo", "--dtype", "float16"], "--against works with --dtype float32 only"),
        (["--suite", "all"], "--suite needs --output"),
        (["--suite", "fast", "--output", "docs"], "'fast' is not one of 'all', 'big'"),
        (["--merge", __file__], "--merge needs --output"),
        (["--merge", "/nowhere/benchmarks.json", "--output", "docs"], "'/nowhere/benchmarks.json' does not exist"),
    ],
)
def test_wrong_usage_is_explained(arguments: list[str], complaint: str) -> None:
    """The error comes before any process starts."""
    done = CliRunner().invoke(command.bench, arguments)
    assert done.exit_code == 2
    assert complaint in done.output
