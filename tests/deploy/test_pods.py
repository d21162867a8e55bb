"""Every aggregator's pod, run as a process with its command, environment, files and probes."""

import contextlib
import pathlib
import time
from typing import Any

import numpy as np
import pytest

from faults.training import STEPS, Training, undisturbed
from psum import client as psum
from psum.client import Settings as WorkerSettings
from tests.deploy.checks import CLOSING_SECONDS
from tests.deploy.manifests import pods, rendered
from tests.deploy.processes import PodProcess, running, secrets, worker_settings

#: How long anything in these tests may take.
PATIENCE_SECONDS = 40.0


@pytest.mark.parametrize("name", ["single-node", "production", "production, large", "workers/jobset"])
def test_a_pod_is_ready_drains_and_ends(name: str, tmp_path: pathlib.Path) -> None:
    """On SIGTERM it is not ready any more, but alive; it finishes the round that is open, and ends with 0 at once."""
    pod = next(pod for pod in pods(rendered(name)) if pod.is_aggregator)
    files = secrets(rendered(name), "127.0.0.1")
    process = PodProcess(pod, tmp_path, files)
    settings = worker_settings(files, tmp_path) | {"aggregators": (process.address,), "num_workers": 2}
    with running(process):
        zero, one = (psum.connect(psum.Settings(rank=rank, **settings)) for rank in range(2))
        future = zero.store().push_pull_async("w", np.ones(100_000, np.float32))
        wait_for_open_round(process.address, settings)
        process.terminate()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while process.probe("readinessProbe") != 503:
            assert time.monotonic() < deadline
        assert process.probe("livenessProbe") == 200
        assert process.process.poll() is None
        one.store().push_pull("w", np.ones(100_000, np.float32))
        future.result(PATIENCE_SECONDS)
        assert process.wait() == 0
        assert "ERROR" not in process.log.read_text()
        # The workers would wait for the next process; there is none.
        for client in (zero, one):
            client.close(timeout=0.1)


def wait_for_open_round(address: str, settings: dict[str, Any]) -> None:
    """Waits until the aggregator has somebody's contribution."""
    files = psum.Settings(**{k: v for k, v in settings.items() if k in ("tls_ca", "token_file")})
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not any(job.rounds for job in psum.fetch_status(address, settings=files).jobs):
        assert time.monotonic() < deadline


def test_a_pod_is_gone_within_its_grace_period(tmp_path: pathlib.Path) -> None:
    """Where a round is never finished, in the time that the manifest leaves after PSUM_GRACE, which is short here."""
    pod = next(pods(rendered("single-node")))
    process = PodProcess(pod, tmp_path, {}, PSUM_GRACE="500ms")
    with running(process):
        settings: dict[str, Any] = {"aggregators": (process.address,), "num_workers": 2}
        zero, one = (psum.connect(psum.Settings(rank=rank, **settings)) for rank in range(2))
        zero.store().push_pull_async("w", np.ones(3, np.float32))
        wait_for_open_round(process.address, settings)
        process.terminate()
        begin = time.monotonic()
        assert process.wait() == 0
        assert 0.5 <= time.monotonic() - begin < 0.5 + CLOSING_SECONDS
        for client in (zero, one):
            client.close(timeout=0.1)


def test_what_prometheus_is_told_to_scrape_is_served(tmp_path: pathlib.Path) -> None:
    """The path in the ServiceMonitor, at the port that it names."""
    (monitor,) = (r for r in rendered("production") if r["kind"] == "ServiceMonitor")
    process = PodProcess(next(pods(rendered("production"))), tmp_path, secrets(rendered("production")))
    with running(process):
        for endpoint in monitor["spec"]["endpoints"]:
            assert process.get(endpoint["port"], endpoint["path"]) == 200
        assert process.get("http", "/no-such-path") == 404


@pytest.mark.parametrize(
    ("workers", "fleet", "count"),
    [
        ("workers/indexed-job", "production", 4),
        ("workers/mxjob", "production", 4),
        ("workers/jobset", "workers/jobset", 4),
        ("workers/single-node", "single-node", 2),
    ],
)
def test_the_workers_of_a_job_make_a_sum(workers: str, fleet: str, count: int, tmp_path: pathlib.Path) -> None:
    """All of them, by what their controller and their manifest tell them, but for addresses and files."""
    aggregator = next(pod for pod in pods(rendered(fleet)) if pod.is_aggregator)
    files = secrets(rendered(fleet), "127.0.0.1")
    process = PodProcess(aggregator, tmp_path, files)
    given = worker_settings(files, tmp_path) | {"aggregators": (process.address,)}
    with running(process), contextlib.ExitStack() as stack:
        futures = []
        for pod in pods(rendered(workers)):
            if not pod.is_aggregator:
                client = stack.enter_context(psum.connect(WorkerSettings.from_environment(pod.environ, **given)))
                value = np.full(3, 2.0**client.rank, np.float32)
                futures.append((value, client.store().push_pull_async("w", value)))
        for value, future in futures:
            future.result(PATIENCE_SECONDS)
            assert value.tolist() == [2.0 ** len(futures) - 1] * 3
    assert len(futures) == count


@pytest.mark.timeout(120)
def test_a_rolling_update_of_the_fleet_costs_no_step(tmp_path: pathlib.Path) -> None:
    """Three aggregators of the production overlay are replaced one by one, from the last to the first as a StatefulSet
    does it, under a training with TLS and a token. Its result is that of an undisturbed one, bit for bit.
    """
    resources = rendered("production")
    files = secrets(resources)
    fleet = [PodProcess(pod, tmp_path / pod.name, files) for pod in pods(resources)]
    assert len(fleet) == 3
    # The certificate is for the names that workers use, not for addresses of this machine: one of them is asked for.
    worker = WorkerSettings.from_environment(next(pods(rendered("workers/indexed-job"))).environ)
    settings = worker_settings(files, tmp_path / "worker") | {
        "tls_server_name": worker.aggregators[0].rpartition(":")[0],
        "reconnect_timeout": worker.reconnect_timeout,
    }
    with running(*fleet):
        training = Training(tmp_path / "training", [p.address for p in fleet], **settings)
        try:
            for process in reversed(fleet):
                training.wait_for_step(training.steps + 5)
                process.terminate()
                assert process.wait() == 0
                process.start()
            assert training.steps < STEPS, "it was over before the last was replaced"
            assert training.result() == undisturbed(tmp_path / "undisturbed")
        finally:
            training.close()
        assert not any("ERROR" in process.log.read_text() for process in fleet)
