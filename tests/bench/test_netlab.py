"""The lab's command: it measures correctly, and leaves nothing behind."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from tests.bench.netlab import namespaces
from tests.bench.netlab.namespaces import LabError, check, existing, shared_memory, sweep
from tests.bench.netlab.network import Network
from tests.polling import wait_until
from tests.process_stat import is_running
from tests.processes import running

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "tests.bench.netlab")
PATIENCE_SECONDS = 50.0


def netlab(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs the lab's command."""
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


def runs_of(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    """Parses the lines of JSON that the command printed."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def owned_by(pid: int) -> list[str]:
    """The namespaces that a process owns."""
    return [name for name, owner in existing().items() if owner == pid]


@pytest.mark.usefixtures("lab")
def test_links_carry_each_byte_once_for_each_host() -> None:
    """However many workers a host has. Headers and psum's own messages add about 5 %. All sums are checked."""
    arguments = ("--local", "1,2", "--workload", "big", "--mbit", "1000", "--steps", "1", "--warmup", "1", "--json")
    for local, run in enumerate(runs_of(netlab(*arguments)), 1):
        # Workers with a relay are connected to that only.
        assert (run["hosts"], run["local"], run["plane"]) == (2, local, "direct+shm" if local == 1 else "shm")
        assert 1.03 < run["link_bytes"] < 1.07
        assert all(1.03 < bytes < 1.07 for pair in run["links"] for bytes in pair)
        assert run["bound"] == pytest.approx(16 * 4 * 2**20 / 125e6, rel=1e-3)
        assert run["of_bound"] == pytest.approx(run["bound"] / run["seconds"], rel=1e-3)
        assert 0 < run["fullness"] <= 1.1
        assert len(run["step_seconds"]) == 1


@pytest.mark.usefixtures("lab")
def test_all_links_of_a_mixed_placement_carry_the_same() -> None:
    """Three hosts have a worker and an aggregator each, and two more an aggregator alone. psum finds the weights by
    itself: each link carries what the busiest one must at least, and headers. With equal weights, three of them would
    carry a tenth more."""
    placement = ("--hosts", "3", "--dedicated", "2", "--workload", "big", "--mbit", "1000")
    [run] = runs_of(netlab(*placement, "--steps", "1", "--warmup", "1", "--json"))
    assert (run["hosts"], run["dedicated"], run["settings"].get("PSUM_AGGREGATOR_WEIGHTS")) == (3, 2, None)
    assert all(1.02 < carried < 1.08 for pair in run["links"] for carried in pair)


@pytest.mark.usefixtures("lab")
def test_a_table_and_the_links_over_time() -> None:
    """The job has a dedicated aggregator, no aggregator beside workers, and uses gRPC alone."""
    options = ("--beside", "0", "--dedicated", "1", "--plane", "inline", "--workload", "small", "--watch")
    done = netlab(*options, "--steps", "2", "--warmup", "1")
    assert done.returncode == 0, done.stderr
    titles, _, row = done.stdout.splitlines()
    cells = dict(zip(titles.split(" | "), row.split(" | "), strict=True))
    assert (cells["| hosts"], cells["dedicated"], cells["system"]) == ("| 2 without aggregators", "1", "psum inline")
    assert float(cells["of_bound"]) <= 1
    assert len(re.findall(r"^ +\d+\.\d\d( +\d+){6}", done.stderr, re.MULTILINE)) == 40
    assert "ended step 1" in done.stderr


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_a_person_ends_it(number: signal.Signals) -> None:
    """A signal leaves no namespace, process or shared memory behind. The exit status names the signal."""
    command = [*COMMAND, "--mbit", "1"]
    with running(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: len(owned_by(process.pid)) == 3)
        names = owned_by(process.pid)
        wait_until(lambda: any(map(namespaces.processes, names)))
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 128 + number, errors
        assert not owned_by(process.pid)
    assert not any(shared_memory(name).exists() for name in names)


#: A program that makes hosts, starts a process on one of them, and kills itself.
_KILLED = """
import os, signal, subprocess
from tests.bench.netlab.network import Network
network = Network(1, 10)
command = network.inside(0, "sleep", "60")
process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(process.pid, *network.namespaces, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("lab")
def test_what_a_killed_run_has_left_is_removed_at_the_next_start() -> None:
    """This includes its processes and shared memory. The hosts of a running lab stay."""
    with Network(1, 10) as network:
        killed = subprocess.run([sys.executable, "-c", _KILLED], cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert killed.returncode == -signal.SIGKILL
        pid, *names = killed.stdout.split()
        assert set(names) <= existing().keys()
        assert set(names) <= set(sweep())
        assert not set(names) & existing().keys()
        assert not is_running(int(pid))
        assert set(network.namespaces) <= existing().keys()
        subprocess.run(network.inside(0, "true"), check=True, timeout=30)
    assert not set(network.namespaces) & existing().keys()


def test_errors_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each error names what is missing: root, iproute2, or a permission that a container lacks."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="need root"):
        check()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LabError, match="no program 'ip': install iproute2"):
        check()
    monkeypatch.undo()

    def refused(command: Sequence[str], **_: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(
            command, 1, "", "mount --make-shared /run/netns failed: Operation not permitted"
        )

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda program: program)
    monkeypatch.setattr(subprocess, "run", refused)
    with pytest.raises(LabError, match=r"`ip netns add .*Operation not permitted.*CAP_SYS_ADMIN"):
        check()


def test_the_command_says_so_and_shows_no_traceback(tmp_path: pathlib.Path) -> None:
    """On a machine without iproute2, the command prints the error and no traceback."""
    environ = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(COMMAND, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 1
    assert re.fullmatch(r"Error: (network namespaces need root|there is no program 'ip').*\n", done.stderr)
