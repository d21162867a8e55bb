"""The measuring tools that need PyTorch."""

import json
import pathlib
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from psum.cli.bench.workloads import sizes
from tests.bench.netlab.namespaces import LabError, check

_ROOT = pathlib.Path(__file__).parents[2]


def run(module: str, *options: str) -> str:
    """Runs a measuring tool; returns what it prints."""
    command = [sys.executable, "-m", module, *options]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("workload", ["resnet50", "transformer"])
def test_buckets_are_those_of_distributed_data_parallel(workload: str) -> None:
    """A workload in buckets has the sizes that torch computes, with DistributedDataParallel's limits."""
    parameters = [torch.empty(size, device="meta") for size in reversed(sizes(workload))]
    found, _ = dist._compute_bucket_assignment_by_size(
        parameters, [dist._DEFAULT_FIRST_BUCKET_BYTES, 25 << 20], [False] * len(parameters)
    )
    assert sizes(f"{workload}-ddp") == [sum(parameters[index].numel() for index in bucket) for bucket in found]


def test_steps_of_distributed_data_parallel_are_compared(tmp_path: pathlib.Path) -> None:
    """The ranks check the averages. What is measured of both ways is written, and a table is printed."""
    options = ("--workloads", "resnet50", "--processes", "2", "--aggregators", "own")
    effort = ("--rounds", "1", "--steps", "1", "--warmup", "1", "--json", str(tmp_path / "ddp.json"))
    printed = run("tests.bench.torch_ddp", *options, *effort)
    assert "| resnet50 | 2 | own (shm) |" in printed
    [result] = json.loads((tmp_path / "ddp.json").read_text())
    measured = result["measured"]
    assert (measured["plane"], measured["buckets"], measured["omp_num_threads"]) == ("shm", 5, "1")
    for turn in measured["rounds"][0].values():
        assert all(figure > 0 for figure in turn.values())


def test_the_lab_runs_psum_through_torch_and_gloo() -> None:
    """psum starts an aggregator on each host, and the links carry each byte once for each host and not for each
    worker. Both systems check their sums."""
    try:
        check()
    except LabError as error:
        pytest.skip(str(error))
    options = ("--hosts", "2", "--local", "2", "--mbit", "1000", "--workload", "big", "--through", "torch")
    effort = ("--steps", "1", "--warmup", "1", "--rounds", "1", "--against", "gloo", "--json")
    printed = run("tests.bench.netlab", *options, *effort)
    ours, gloo = map(json.loads, printed.splitlines())
    assert (ours["variant"], ours["plane"], gloo["variant"]) == ("psum auto through torch", "shm", "gloo")
    assert 1.03 < ours["link_bytes"] < 1.07 < gloo["link_bytes"]
    assert ours["aggregator_cpu_s_per_gb"] > 0
