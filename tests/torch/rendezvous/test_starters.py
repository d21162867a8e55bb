"""Scripts that torchrun and `psum launch` start: the same script, without a setting of psum's or of torch's."""

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

from tests.processes import running

#: What init_process_group("psum") does before it makes the group, and one sum.
SCRIPT = """
import datetime, os, sys
import numpy as np
import torch.distributed as dist
from psum.torch import rendezvous
rendezvous.install()
store, rank, size = next(dist.rendezvous("env://"))
client = rendezvous.connect(store, rank, size, timeout=datetime.timedelta(seconds=50))
value = np.full(3, client.rank + 1.0)
client.store().push_pull("x", value)
settings = client.settings
print(rank, size, value[0], settings.job, *settings.aggregators, client.local_rank, client.local_size, flush=True)
if "once" in sys.argv and not settings.job.endswith(".run-2"):
    client.store().push_pull("y", value) if rank == 0 else os._exit(9)
"""

PATIENCE_SECONDS = 55.0


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The script as a file."""
    path = tmp_path_factory.mktemp("scripts") / "train.py"
    path.write_text(SCRIPT)
    return path


@contextlib.contextmanager
def started(module: str, *arguments: object) -> "Iterator[subprocess.Popen[str]]":
    """A program of torch's or psum's, in an environment without names of ranks."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PSUM_")}
    environ["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with running(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process


def lines(*processes: "subprocess.Popen[str]") -> Sequence[Sequence[str]]:
    """The words of each line that the processes have printed, in order, when all have ended well."""
    found = []
    for process in processes:
        out, error = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, error
        found += [line.split() for line in out.splitlines()]
    return sorted(found)


def test_torchrun_on_two_hosts_starts_a_job_again(script: pathlib.Path) -> None:
    """Each host has an aggregator, and all ranks list them in one order. After a restart, for which only one host's
    agent counts, the job and its aggregators are new. What is left of the first run fails the end of all tests."""
    nodes = ("--nnodes", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:29437", "--rdzv-id", "a")
    arguments = ("torch.distributed.run", *nodes, "--max-restarts", 1, script, "once")
    with started(*arguments) as first, started(*arguments) as second:
        words = lines(first, second)
    runs = {line[3]: [other for other in words if other[3] == line[3]] for line in words}
    assert len(runs) == 2
    assert sum(job.endswith(".run-2") for job in runs) == 1
    for job, ranks in runs.items():
        addresses = ranks[0][4:6]
        assert len(set(addresses)) == 2
        assert ranks == [[str(rank), "2", "3.0", job, *addresses, "0", "1"] for rank in (0, 1)]


def test_psum_launch_starts_it_too(script: pathlib.Path) -> None:
    """With its aggregators, and a port for torch's store."""
    with started("psum.cli", "launch", "--workers", 2, sys.executable, script) as process:
        words = lines(process)
    assert [[*line[1:5], *line[-2:]] for line in words] == [
        [str(rank), "2", "3.0", "launch", str(rank), "2"] for rank in (0, 1)
    ]
