"""The pipelines without psum, whose processor time `psum bench` shows its own beside."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from psum.cli.bench import bare, limits
from psum.cli.bench.bare_pipelines import add
from psum.cli.bench.bare_plan import PLANES, Plan, pieces
from psum.cli.bench.limits import Limits, NoLimitError, measure
from psum.cli.bench.workloads import sizes
from tests.polling import PATIENCE_SECONDS, wait_until
from tests.process_stat import is_running

#: Pieces of different sizes, more than may be under way.
SIZES = [256 << 10, 4096, 65536, 512 << 10, 128]


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_pipeline_gives_every_worker_the_sum(plane: str, workers: int) -> None:
    """Each worker checks its sums and would fail. All processes report their processor time, and end."""
    plan = Plan(plane, workers, SIZES, window=2, warmup=1, steps=3)
    # In a process of its own, as for users: what is forked from this one cannot use gRPC that other tests have used.
    command = [sys.executable, "-m", "psum.cli.bench.bare", plan.dump()]
    # This returns when no process can write any more.
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert all(seconds > 0 for seconds in json.loads(done.stdout).values())


def test_wrong_sums_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that does less would be no limit."""
    monkeypatch.setattr("psum.cli.bench.bare_pipelines.add", lambda values, out: None)
    with pytest.raises(RuntimeError, match=r"a process of the bare pipeline failed.*wrong sums"):
        bare.run(Plan("shm", 2, SIZES, window=2, warmup=1, steps=1))
    assert children() == set()


def test_a_pipeline_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it stays."""
    monkeypatch.setattr("psum.cli.bench.bare_pipelines.add", lambda values, out: time.sleep(600))
    monkeypatch.setattr(bare, "_TIMEOUT_SECONDS", 0.3)
    with pytest.raises(RuntimeError, match=r"took more than 0.3 s"):
        bare.run(Plan("shm", 1, SIZES, window=2, warmup=1, steps=1))
    assert children() == set()


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_the_sum_of_any_number_of_contributions(number: int) -> None:
    """Also where the last block is not full."""
    values = [np.full(100_001, rank + 1, np.float32) for rank in range(number)]
    out = np.zeros(100_001, np.float32)
    add(values, out)
    assert (out == sum(range(number + 1))).all()


def test_tensors_are_cut_and_joined_as_in_messages() -> None:
    """Large ones are cut into shards, and small ones joined until there is enough for a message."""
    assert list(pieces([100, 10, 10, 10, 4], most=40, least=20)) == [40, 40, 20, 20, 14]
    assert list(pieces([40, 40], most=40, least=20)) == [40, 40]
    assert sum(limits.plan("resnet50", 2, "shm").pieces) == 4 * sum(sizes("resnet50"))
    assert max(limits.plan("big", 2, "shm").pieces) == 2 << 20
    assert limits.plan("big", 2, "shm").window == 4


def test_a_limit_is_processor_time_for_each_gb_of_a_worker() -> None:
    """All processes count. It is measured in processes of their own."""
    small = Plan("shm", 2, [64 << 10] * 4, window=2, warmup=1, steps=50)
    assert 0 < measure(small) < 1000


def test_there_is_no_limit_where_there_is_no_such_pipeline() -> None:
    """Nor for types that NumPy adds slowly."""

    def never(_: Plan) -> float:
        raise AssertionError("measured")

    found = Limits(lambda _: None, never)
    assert found.of("big", 2, "direct+shm", "float32") is None
    assert found.of("big", 2, "", "float32") is None
    assert found.of("big", 2, "shm", "float16") is None


def test_a_limit_that_cannot_be_measured_is_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """The benchmark goes on without it."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'first line\nno memory' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    notes: list[str] = []
    found = Limits(notes.append)
    assert found.of("big", 2, "shm", "float32") is None
    assert found.of("big", 2, "shm", "float32") is None
    assert notes == ["cannot measure what this machine allows for shm on big: no memory"]
    python.write_text("#!/bin/sh\nexec sleep 600\n")
    monkeypatch.setattr(limits, "_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(NoLimitError, match=r"more than 0.2 s"):
        measure(limits.plan("big", 2, "shm"))


def test_processes_of_a_pipeline_end_with_it(tmp_path: pathlib.Path) -> None:
    """Also if it is killed."""
    file = tmp_path / "pids"
    pid = os.fork()
    if not pid:
        with bare._Children() as started:
            started.start(sleep, is_server=True)
            file.write_text(str(started._pids[0]))
            time.sleep(600)
    wait_until(lambda: file.exists() and file.read_text() != "")
    child = int(file.read_text())
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    wait_until(lambda: not is_running(child))


def sleep() -> float:
    """Work that does not end."""
    time.sleep(600)
    return 0.0


def children() -> set[str]:
    """Return the processes that this thread has started and not waited for, but for those of the interpreter."""
    listed = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {pid for pid in listed if b"resource_tracker" not in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()}
