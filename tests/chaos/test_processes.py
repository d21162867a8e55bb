"""An aggregator of several processes is one aggregator: for workers, for operators, and when something is killed."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from faults.aggregators import AggregatorProcess
from faults.processes import PROCESS_1
from faults.training import training
from faults.watching import wait_until
from psum import client as psum
from tests.process_stat import is_running

PROCESSES = 2
WORKERS = 2


@pytest.fixture
def aggregator(tmp_path: pathlib.Path) -> Iterator[AggregatorProcess]:
    """An aggregator of two processes, which serves HTTP."""
    made = AggregatorProcess(tmp_path / "aggregator", ("--http", "127.0.0.1:0"), processes=PROCESSES)
    yield made
    made.close()


def read(aggregator: AggregatorProcess, path: str) -> str:
    """Read a page of the aggregator's last start."""
    address = re.findall(r"probes at (http://\S+)/", aggregator.log)[-1]
    try:
        with urllib.request.urlopen(address + path, timeout=10) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.code} {error.read().decode()}"


def metrics(aggregator: AggregatorProcess) -> dict[str, float]:
    """Read all metrics. Series of one job count as the metric's."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(read(aggregator, "/metrics")):
        for sample in family.samples:
            if sample.labels.keys() <= {"job_name", "operation"}:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def is_healthy(aggregator: AggregatorProcess) -> bool:
    """Return what gRPC's health service says at the address that workers list."""
    with grpc.insecure_channel(aggregator.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def work(rank: int, aggregator: AggregatorProcess, **settings: Any) -> tuple[str, ...]:
    """Sum some tensors as one of the workers, and return the addresses that it used."""
    given = psum.Settings(aggregators=(aggregator.address,), rank=rank, num_workers=WORKERS, **settings)
    with psum.connect(given) as client:
        store = client.store()
        for size in (10, 100_000, 300_000):
            value = np.full(size, rank + 1, np.float32)
            store.push_pull(size, value)
            assert (value == 3).all()
        # All ranks look at the same moment: no rank has left.
        if rank == 0:
            check_what_operators_see(aggregator, client.settings.aggregators)
        store.push_pull("all have looked", np.ones(1, np.float32))
        return client.settings.aggregators


def check_what_operators_see(aggregator: AggregatorProcess, addresses: tuple[str, ...]) -> None:
    """One job with two workers, although each of them is connected to both processes."""
    assert read(aggregator, "/healthz") == "alive\n"
    assert read(aggregator, "/readyz") == "ready\n"
    found = metrics(aggregator)
    assert [found[f"psum_{name}"] for name in ("ready", "jobs", "workers", "workers_connected")] == [1, 1, 2, 2]
    # Rank 1 may have sent the four bytes of its next tensor already.
    assert found["psum_received_bytes_total"] - WORKERS * 4 * (10 + 100_000 + 300_000) in (0, 4)
    report = json.loads(read(aggregator, "/api/status"))
    [job] = report["jobs"]
    assert [worker["state"] for worker in job["workers"]] == ["connected"] * WORKERS
    assert job["received_bytes"] - WORKERS * 4 * (10 + 100_000 + 300_000) in (0, 4)
    assert report["aggregator"]["settings"]["PSUM_PROCESSES"] == PROCESSES
    # The second process is listed too, and shown once.
    command = [sys.executable, "-m", "psum.cli", "status", "--json", *addresses]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    listed = json.loads(done.stdout)["aggregators"]
    assert [answer["address"] for answer in listed] == list(addresses)
    assert all(len(answer["jobs"]) == 1 for answer in listed)


def test_workers_and_operators_see_one_aggregator(aggregator: AggregatorProcess) -> None:
    """Workers list one address and use all processes; probes, metrics, status page and log are for all of them."""
    with ThreadPoolExecutor(WORKERS) as pool:
        used = list(pool.map(lambda rank: work(rank, aggregator), range(WORKERS)))
    host, _, port = aggregator.address.rpartition(":")
    assert used == [(aggregator.address, f"{host}:{int(port) + 2}")] * WORKERS
    assert "process 1: job default: rank 0 of 2 joined" in aggregator.log
    os.kill(aggregator.children[1], signal.SIGSTOP)
    assert read(aggregator, "/healthz") == "503 process 1 does not answer within 1.5 s\n"
    os.kill(aggregator.children[1], signal.SIGCONT)
    wait_until(lambda: read(aggregator, "/healthz") == "alive\n", what="both answer")


def test_whatever_is_killed_or_stopped_no_bit_changes(
    aggregator: AggregatorProcess, tmp_path: pathlib.Path, undisturbed_result: dict[str, Any]
) -> None:
    """A training goes on when one process is killed, when all are ended by SIGTERM and started again, and when the
    supervisor is killed, which leaves no process behind, not even a stopped one. The result has the same bits."""
    with training(tmp_path / "training", [aggregator.address]) as trained:
        trained.wait_for_step(8)
        received = metrics(aggregator)["psum_received_bytes_total"]
        assert is_healthy(aggregator)
        os.kill(aggregator.children[1], signal.SIGKILL)
        wait_until(lambda: read(aggregator, "/readyz") == "503 process 1 is starting\n", what="it is not ready")
        wait_until(lambda: not is_healthy(aggregator), what="the first process says that one is missing")
        wait_until(lambda: read(aggregator, "/readyz") == "ready\n", what="it is ready again")
        wait_until(lambda: is_healthy(aggregator), what="all serve")
        trained.wait_for_step(trained.steps + 1)
        found = metrics(aggregator)
        assert found["psum_process_restarts_total"] == 1
        # Counters do not go back, although the process began at 0.
        assert found["psum_received_bytes_total"] > received
        assert "was killed by SIGKILL; it is started again" in aggregator.log
        assert aggregator.end(signal.SIGTERM) == 0
        assert "drained" in aggregator.log
        aggregator.start()
        trained.wait_for_step(trained.steps + 1)
        children = aggregator.children
        assert len(children) == PROCESSES
        os.kill(children[1], signal.SIGSTOP)
        aggregator.end(signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, children)), what="no process is left", timeout=5)
        aggregator.start()
        assert trained.result() == undisturbed_result


def test_one_mistake_ends_all(tmp_path: pathlib.Path) -> None:
    """What only the processes themselves find out is told as by one, and nothing stays."""
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    command = [sys.executable, "-m", "psum.cli", "aggregator", "--listen", "127.0.0.1:0", "--processes", "2"]
    command += ["--tls-cert", str(broken), "--tls-key", str(broken)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr.count("tls_cert=") == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_it_works_as_process_1(tmp_path: pathlib.Path) -> None:
    """As in a container: SIGTERM ends it, and it waits for orphans, so that no zombie stays."""
    try:
        subprocess.run([*PROCESS_1, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no PID namespaces: {error}")
    outside = AggregatorProcess(tmp_path / "aggregator", processes=PROCESSES, prefix=PROCESS_1)
    try:
        [inside] = outside.children
        # A shell there ends before its child, whose parent is process 1 then.
        within = ["nsenter", "--pid", f"--target={inside}", "sh", "-c", "sleep 0.1 & exit 0"]
        subprocess.run(within, check=True, timeout=10)
        children = pathlib.Path(f"/proc/{inside}/task/{inside}/children")
        wait_until(lambda: len(children.read_text().split()) == PROCESSES, what="the orphan was waited for")
        os.kill(inside, signal.SIGTERM)
        begin = time.monotonic()
        assert outside.process.wait(20) == 0
        assert time.monotonic() - begin < 10
    finally:
        outside.close()
