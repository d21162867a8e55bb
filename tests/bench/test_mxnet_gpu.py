"""The benchmark of a GPU's arrays through MXNet, with arrays in host memory where there is no GPU."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.bench.mxnet_gpu import table

PATIENCE_SECONDS = 120.0


def test_table() -> None:
    """The table has the medians of each system."""
    runs = [
        {"call_us": us, "call_cpu_us": 3.0, "issue_ms": 1.25, "step_ms": 9.0, "gb_per_s": 2.5, "cpu_s_per_gb": 0.333}
        for us in (11.0, 500.0, 12.0)
    ]
    *_, row = table({(2, "shm"): runs}).splitlines()
    assert row == "| 2 | shm | 12 | 3 | 1.2 | 9.0 | 2.50 | 0.33 |"


def test_an_unknown_system_is_refused() -> None:
    """A wrong name ends the benchmark at once, with the names that it knows."""
    command = [sys.executable, "-m", "tests.bench.mxnet_gpu", "--systems", "shm,nccl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 2
    assert "nccl: expected some of shm, direct" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("mxnet") is None, reason="needs MXNet")
def test_psum_and_its_rival_are_measured() -> None:
    """Each system runs as a job of its own, and each run is a line of JSON."""
    command = [sys.executable, "-m", "tests.bench.mxnet_gpu", "--device=cpu", "--workload=small"]
    command += ["--systems=shm,dist_sync", "--rounds=1", "--steps=2", "--warmup=1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second, *_ = done.stdout.splitlines()
    for line, system in ((first, "shm"), (second, "dist_sync")):
        result = json.loads(line)
        assert (result["workers"], result["system"]) == (2, system)
        assert result["call_cpu_us"] > 0
        assert 0 < result["issue_ms"] <= result["step_ms"]
